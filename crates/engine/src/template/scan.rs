//! What stands between the marks of a template, word by word.

use std::ops::Range;

/// A word of the template's language.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Where it stands in the source, in bytes.
    pub(super) at: Range<usize>,
    /// Which pair of marks it stands between.
    block: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// A name or a number.
    Word,
    Sign(char),
}

/// All tokens of `source`. Comments and raw parts have none.
pub(super) fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut at, mut block) = (0, 0);
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        let from = start + 2;
        match source.get(start..from) {
            Some("{{") => at = between(source, from, "}}", block, &mut tokens),
            Some("{%") => {
                let before = tokens.len();
                at = between(source, from, "%}", block, &mut tokens);
                let words: Vec<_> = tokens[before..]
                    .iter()
                    .filter(|t| t.kind == Kind::Word)
                    .collect();
                if let [word] = words[..]
                    && source[word.at.clone()] == *"raw"
                {
                    at = source[at..]
                        .find("endraw")
                        .map_or(source.len(), |end| at + end);
                }
            }
            Some("{#") => {
                at = source[from..]
                    .find("#}")
                    .map_or(source.len(), |end| from + end + 2);
            }
            _ => at = start + 1,
        }
        block += 1;
    }
    tokens
}

/// Appends the tokens from `at` up to the mark `close`, and returns where that ends.
fn between(source: &str, mut at: usize, close: &str, block: usize, out: &mut Vec<Token>) -> usize {
    let mut depth = 0_usize;
    while let Some(c) = source[at..].chars().next() {
        if depth == 0 && source[at..].starts_with(close) {
            return at + close.len();
        }
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let rest = &source[at + c.len_utf8()..];
        let (kind, len) = match c {
            '\'' | '"' => (Kind::Text, c.len_utf8() + text_len(rest, c)),
            c if word(c) => (
                Kind::Word,
                source[at..].find(|c| !word(c)).unwrap_or(source.len() - at),
            ),
            c => (Kind::Sign(c), c.len_utf8()),
        };
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !c.is_whitespace() {
            out.push(Token {
                kind,
                at: at..at + len,
                block,
            });
        }
        at += len;
    }
    at
}

/// Bytes of a text up to and with its closing sign.
fn text_len(text: &str, close: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == close => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// The filters and the tests that `source` names.
pub(super) fn names(source: &str) -> (Vec<&str>, Vec<&str>) {
    let tokens = tokens(source);
    let text = |token: &Token| &source[token.at.clone()];
    let (mut filters, mut tests) = (Vec::new(), Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        let next = |by: usize| {
            tokens
                .get(at + by)
                .filter(|other| other.block == token.block)
        };
        let is_word = |other: Option<&Token>| other.is_some_and(|other| other.kind == Kind::Word);
        if token.kind == Kind::Sign('|') && is_word(next(1)) {
            filters.extend(next(1).map(text));
        } else if token.kind == Kind::Word && text(token) == "is" {
            let not = next(1).is_some_and(|other| text(other) == "not");
            let test = next(1 + usize::from(not));
            if is_word(test) {
                tests.extend(test.map(text));
            }
        }
    }
    (filters, tests)
}

/// `source` with Python's formatting of texts (`'%s' % x`) as the filter that does the same: an
/// operator cannot be given a meaning. Only what is written out as a text is found; a format in a
/// variable stays an error.
pub(super) fn with_formats(source: &str) -> String {
    let tokens = tokens(source);
    let mut edits: Vec<(Range<usize>, &str)> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let percent = tokens.get(at + 1);
        let formats = |other: &&Token| other.block == token.block && other.kind == Kind::Sign('%');
        let Some(percent) = percent.filter(formats).filter(|_| token.kind == Kind::Text) else {
            continue;
        };
        let rest = &tokens[at + 2..];
        let rest = &rest[..rest.iter().take_while(|t| t.block == token.block).count()];
        let Some((operand, is_group)) = operand(rest) else {
            continue;
        };
        if is_group {
            edits.push((percent.at.start..rest[0].at.start, "|format"));
        } else {
            edits.push((percent.at.start..rest[0].at.start, "|format("));
            let end = rest[operand - 1].at.end;
            edits.push((end..end, ")"));
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    let (mut out, mut from) = (String::with_capacity(source.len()), 0);
    for (range, text) in edits {
        out.push_str(&source[from..range.start]);
        out.push_str(text);
        from = range.end;
    }
    out.push_str(&source[from..]);
    out
}

/// How many of `tokens` are the operand of a formatting, and whether that is a group in brackets
/// and nothing else. None for mappings.
fn operand(tokens: &[Token]) -> Option<(usize, bool)> {
    let sign = |at: usize| match tokens.get(at).map(|token| token.kind) {
        Some(Kind::Sign(sign)) => Some(sign),
        _ => None,
    };
    let mut at = usize::from(sign(0) == Some('-'));
    match sign(at) {
        Some('(' | '[') => at = group(tokens, at)?,
        Some(_) => return None,
        None => at += 1,
    }
    if at > tokens.len() {
        return None;
    }
    let first = at;
    loop {
        at = match sign(at) {
            Some('.' | '|') if at + 1 < tokens.len() => at + 2,
            Some('(' | '[') => group(tokens, at)?,
            _ => break,
        };
    }
    Some((at, at == first && sign(0) == Some('(')))
}

/// The index behind the group that begins at `at`.
fn group(tokens: &[Token], at: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.kind {
            Kind::Sign('(' | '[' | '{') => depth += 1,
            Kind::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_become_filters_and_all_else_stays() {
        for (source, expected) in [
            ("{{ '%s' % x }}", "{{ '%s' |format(x) }}"),
            (
                "{{ '%s%s' % (a, 'b)') ~ 1 }}",
                "{{ '%s%s' |format(a, 'b)') ~ 1 }}",
            ),
            (
                "{{ \"%d\" % a.b[0](c)|int + 1 }}",
                "{{ \"%d\" |format(a.b[0](c)|int) + 1 }}",
            ),
            ("{{ '%d' % -x }}", "{{ '%d' |format(-x) }}"),
            (
                "{{ '%s' % ('%s' % x) }}",
                "{{ '%s' |format('%s' |format(x)) }}",
            ),
            ("{{ '%s' % (x).y }}", "{{ '%s' |format((x).y) }}"),
            (
                "{% if 'a' %}'%s' % x{% endif %}",
                "{% if 'a' %}'%s' % x{% endif %}",
            ),
            ("{{ x % 2 }}{# '%s' % x #}", "{{ x % 2 }}{# '%s' % x #}"),
            (
                "{% raw %}{{ '%s' % x }}{% endraw %}",
                "{% raw %}{{ '%s' % x }}{% endraw %}",
            ),
            ("{{ '%(a)s' % {'a': 1} }}", "{{ '%(a)s' % {'a': 1} }}"),
            ("{{ '%s' % ", "{{ '%s' % "),
            ("{{ 'é\\'' % é", "{{ 'é\\'' |format(é)"),
        ] {
            assert_eq!(with_formats(source), expected);
        }
    }

    #[test]
    fn filters_and_tests_are_found_by_name() {
        let source = "{{ a|trim | upper('|x') if b is not defined else 'c is d' }}{# |no #}is not x
            {% for a in b|c if d is odd %}{% endfor %}{{ {'a': {}}|f }}";
        let (filters, tests) = names(source);
        assert_eq!(filters, ["trim", "upper", "c", "f"]);
        assert_eq!(tests, ["defined", "odd"]);
    }
}
