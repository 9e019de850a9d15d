"""Writes methods.json: what Jinja2 makes of Python's methods and of its own filters.

Run with Jinja2 3.1 from this folder: python3 methods.py
"""

import json

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Names that every expression may use.
NAMES = {
    "s": "  One two  two\tthree \n",
    "t": "a-b-c-b",
    "u": "ÉCOLE straße 12",
    "e": "",
    "n": 42,
    "f": 2.5,
    "list": ["b", "a", "c", "a"],
    "map": {"b": 1, "a": [True, None, 1.0]},
    "long": "The quick brown fox jumps over the lazy dog, and then sleeps.",
    "odd": "a\x0bb\x1cc\u2028d\x85e",
    "lines": "a\nb\r\nc\n\nd",
}

EXPRESSIONS = r"""
s.split()
s.split(None, 1)
s.split(maxsplit=1)
s.split(maxsplit=2)
t.split('-')
t.split('-', 1)
t.split('-', maxsplit=1)
t.split(sep='-', maxsplit=2)
t.split('-', -1)
t.split('-', 0)
t.split('x')
e.split()
e.split(',')
t.split('')
t.rsplit('-')
t.rsplit('-', 1)
t.rsplit('-', maxsplit=2)
s.rsplit()
s.rsplit(None, 1)
s.rsplit(maxsplit=2)
s.rsplit(None, 0)
s.split(None, 0)
t.partition('-')
t.partition('x')
t.rpartition('-')
t.rpartition('x')
t.partition('-')[2]
t.partition('')
t.index('b')
t.index('b', 3)
t.index('x')
t.rindex('b')
t.rindex('x')
t.find('b')
t.find('b', 3)
t.find('b', -1)
t.find('b', 0, 2)
t.find('x')
t.find('')
t.rfind('b')
t.rfind('b', 0, 5)
t.rfind('x')
u.find('O')
u.index('straße')
u.rfind('1')
t.count('-')
t.count('b', 3)
t.count('')
t.count('b', 0, 3)
u.count('')
'7'.zfill(3)
'-7'.zfill(4)
'+'.zfill(3)
u.zfill(20)
t.ljust(10)
t.ljust(10, '*')
t.rjust(10, '.')
t.rjust(3)
t.center(10)
t.center(12, '*')
'ab'.center(5)
'abc'.center(6, '-')
t.ljust(9, 'ab')
u.lower()
u.upper()
u.casefold()
u.swapcase()
u.title()
u.capitalize()
"they're bill's".title()
'hello WORLD 1a'.capitalize()
s.strip()
s.lstrip()
s.rstrip()
t.strip('a-')
t.lstrip('ab')
t.rstrip('b-')
t.strip(none)
t.replace('b', 'x')
t.replace('b', 'x', 1)
t.replace('b', 'x', 0)
t.replace('b', 'x', -1)
'ab'.replace('', '.')
t.startswith('a')
t.startswith(('x', 'a'))
t.startswith('b', 2)
t.startswith('b', 2, 3)
t.startswith('')
t.endswith('b')
t.endswith(('x', 'c-b'))
t.endswith('c', 0, 5)
t.startswith(['a'])
lines.splitlines()
lines.splitlines(True)
lines.splitlines(keepends=True)
e.splitlines()
odd.splitlines()
', '.join(list)
e.join('abc')
'-'.join([])
'{} and {}'.format('a', 2)
'{1} {0}'.format('a', 'b')
'{x}-{y}'.format(x='a', y=none)
'{} {}'.format(true, list)
'{:>5}|{:<4}|{:^5}'.format('a', 'b', 'c')
'{:.2f} {:05d} {:,}'.format(f, n, 1234567)
'%s is %d' % ('x', 3)
'%s' % n
'%05.1f|%3d|%-4s|' % (f, n, 'a')
'%x %%' % 255
'%s %s' % (true, none)
'%s' % list
'a' ~ '%s' % n ~ 'b'
'%s' % t.split('-')[1]
'%s' % t|upper
('%s' % n) + '!'
7 % 4
n % 5
'%s, %s'|format('a', n)
'%s'|format(none)
u.isalpha()
'abc'.isalpha()
'ab1'.isalnum()
'é1'.isalnum()
'12'.isdigit()
'²'.isdigit()
'½'.isdigit()
'½'.isnumeric()
'12'.isdecimal()
'²'.isdecimal()
e.isdigit()
'abc'.islower()
'aBc'.islower()
'a1'.islower()
'1'.islower()
'ABC'.isupper()
'A1'.isupper()
' \t'.isspace()
e.isspace()
'Ab Cd'.istitle()
'ab Cd'.istitle()
'ab_1'.isidentifier()
'1ab'.isidentifier()
'abc'.isascii()
u.isascii()
t.removeprefix('a-')
t.removeprefix('x')
t.removesuffix('-b')
'a\tbc\td'.expandtabs()
'a\tbc\td'.expandtabs(4)
list.index('a')
list.index('c')
list.index('a', 2)
list.index('x')
list.count('a')
list.count('x')
list.copy()
map.copy()
map.get('b')
map.get('x')
map.get('x', 'd')
map.keys()|list
map.values()|list
map.items()|list
map.get('a')[1]
(1, 2)
(1,)
[(1, 2)]
n.bit_length()
f.is_integer()
long|truncate(20)
long|truncate(20, true)
long|truncate(20, true, '')
long|truncate(20, false, '...', 0)
long|truncate(60)
long|truncate(20, end='!')
long|truncate(length=10, killwords=true)
'short'|truncate
long|wordcount
e|wordcount
u|wordcount
'a-b c_d e.f'|wordcount
'ab'|center(7)
t|center
t|upper
t|capitalize
u|title
"foo-bar (baz) {qux}"|title
s|trim
t|trim('a')
t|replace('b', 'x')
t|replace('b', 'x', 1)
list|join(', ')
list|sort
list|sort(reverse=true)
list|unique|list
list|first
list|last
list|length
list|reverse|list
'abc'|reverse
list|map('upper')|list
list|select('equalto', 'a')|list
list|reject('equalto', 'a')|list
list|batch(3)|list
list|batch(3, '-')|list
list|slice(3)|list
map|dictsort
map|items|list
map|length
n|string
f|round
2.567|round(2)
2.5|round(method='ceil')
n|float
'12'|int
'x'|int
'x'|int(7)
'0x1f'|int(0, 16)
'1.5'|float
'x'|float
'x'|float(1)
none|int
true|int
'-7.9'|int
'12'|int(base=16)
2.9|int
none|default('d')
missing|default('d')
e|default('d', true)
-3|abs
[1, 2, 3]|sum
[1, 2]|max
'a\nb'|indent
'a\nb'|indent(2, true)
'a\n\nb'|indent(2)
'<a>'|e
'<a>'|forceescape
list|list
'abc'|list
n is divisibleby 7
n is callable
range is callable
t is string
list is sequence
map is mapping
n is number
n is integer
f is float
true is boolean
none is none
missing is undefined
'a' in list
'-' in t
t is in [t]
'upper' is filter
'nope' is filter
'odd' is test
'ab' * 3
'a' ~ 1 ~ none ~ true
t[::-1]
t[1:3]
list[-1]
""".strip("\n").split("\n")


def main():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    cases = []
    for expression in EXPRESSIONS:
        try:
            shown = environment.from_string("{{ " + expression + " }}").render(**NAMES)
        except Exception as error:
            shown = None
            print(expression, "->", repr(error))
        cases.append({"expression": expression, "shown": shown})
    with open("methods.json", "w") as file:
        json.dump({"names": NAMES, "cases": cases}, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
