//! What Python does with strings.

use minijinja::{Error, ErrorKind};

/// Largest width of a field.
pub(super) const MAX_WIDTH: i64 = 10_000;

pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Digits are numeric characters but for fractions and Roman numerals.
pub(super) fn is_digit(c: char) -> bool {
    let others = matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{2189}' | '\u{3007}');
    c.is_numeric() && !others
}

/// Decimals are digits but for raised, lowered and circled ones.
pub(super) fn is_decimal(c: char) -> bool {
    let others = matches!(
        c,
        '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}'..='\u{2089}' | '\u{2460}'..='\u{24ff}'
            | '\u{2776}'..='\u{2793}'
    );
    is_digit(c) && !others
}

/// Whether there are characters and all are so.
pub(super) fn all(text: &str, is_so: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(is_so)
}

/// Whether some characters are of one case and none of the other.
pub(super) fn cased(text: &str, one: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(one) && !text.chars().any(other)
}

pub(super) fn is_cased(text: &str) -> bool {
    text.chars().any(|c| c.is_lowercase() || c.is_uppercase())
}

pub(super) fn is_identifier(text: &str) -> bool {
    let begins = |c: char| c.is_alphabetic() || c == '_';
    text.starts_with(begins) && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Every run of letters begins with a capital and goes on in small letters.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        if !c.is_alphabetic() {
            out.push(c);
        } else if within {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        within = c.is_alphabetic();
    }
    out
}

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    out
}

/// The words of `text`, parted at most `most` times; the rest stands in the last.
pub(super) fn words(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if parts.len() == most {
            // Python leaves the end of the rest as it is.
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

/// The same from the end; the rest stands in the first.
pub(super) fn words_from_end(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let start = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let start = start.map_or(0, |(at, c)| at + c.len_utf8());
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let len = rest.find(ends).unwrap_or(rest.len());
        let end = match &rest[len..] {
            more if more.starts_with("\r\n") => len + 2,
            more => len + more.chars().next().map_or(0, char::len_utf8),
        };
        parts.push(&rest[..if keep_ends { end } else { len }]);
        rest = &rest[end..];
    }
    parts
}

pub(super) fn zfill(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let (sign, digits) = match text.chars().next() {
        Some('+' | '-') => text.split_at(1),
        _ => ("", text),
    };
    format!("{sign}{}{digits}", "0".repeat(missing))
}

/// `text` in a field of `width`, by the method `name`.
pub(super) fn pad(text: &str, width: usize, fill: char, name: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    let mut out: String = std::iter::repeat_n(fill, left).collect();
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, missing - left));
    out
}

pub(super) fn expandtabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}

/// The first words of `text` in `length` characters, as the filter `truncate` has them.
pub(super) fn truncate(
    text: &str,
    length: usize,
    kill_words: bool,
    end: &str,
    leeway: usize,
) -> Result<String, Error> {
    let Some(room) = length.checked_sub(end.chars().count()) else {
        let why = "the length is less than that of the end";
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let mut shown: String = text.chars().take(room).collect();
    if !kill_words && let Some(at) = shown.rfind(' ') {
        shown.truncate(at);
    }
    Ok(shown + end)
}

pub(super) fn wordcount(text: &str) -> usize {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !part(c))
        .filter(|word| !word.is_empty())
        .count()
}

/// The whole number that `text` is in `base`, or the whole part of the number that it is.
pub(super) fn integer(text: &str, base: u32) -> Option<i64> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let bare = digits.strip_prefix(prefix).unwrap_or(digits);
    let is_base = (2..=36).contains(&base) && !bare.starts_with(['+', '-']);
    let number = is_base
        .then(|| i64::from_str_radix(bare, base).ok())
        .flatten();
    match number {
        Some(number) => Some(sign * number),
        None => text.parse().ok().and_then(whole),
    }
}

/// The whole part of a number.
pub(super) fn whole(number: f64) -> Option<i64> {
    number.is_finite().then_some(number as i64)
}

/// Refuses fields of widths that only cost memory: in `format`, what follows a sign of per cent or
/// stands in braces has no long numbers.
pub(super) fn check_widths(format: &str) -> Result<(), Error> {
    let flags = |c: char| !matches!(c, '0'..='9' | ' ' | '+' | '-' | '#' | '.');
    let percent = format
        .split('%')
        .skip(1)
        .filter_map(|part| part.split(flags).next());
    let braces = format
        .split('{')
        .skip(1)
        .filter_map(|part| part.split('}').next());
    let mut runs = percent
        .chain(braces)
        .flat_map(|part| part.split(|c: char| !c.is_ascii_digit()));
    if runs.any(|run| run.len() > 4) {
        let why = "a width is too large";
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    Ok(())
}

/// A bound of Python's slices in a sequence of `len`.
pub(super) fn bound(at: i64, len: usize) -> usize {
    let from_end = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
    if at < 0 {
        len.saturating_sub(from_end)
    } else {
        from_end.min(len)
    }
}

/// A part of a text between two characters.
pub(super) struct Window<'t> {
    pub(super) text: &'t str,
    /// Characters before it.
    before: usize,
}

impl<'t> Window<'t> {
    /// None when it begins behind the end, where nothing is found, not even the empty text.
    pub(super) fn of(text: &'t str, start: Option<i64>, end: Option<i64>) -> Option<Self> {
        let len = text.chars().count();
        if start.is_some_and(|start| usize::try_from(start).is_ok_and(|start| start > len)) {
            return None;
        }
        let start = start.map_or(0, |start| bound(start, len));
        let end = end.map_or(len, |end| bound(end, len));
        let byte = |at: usize| {
            text.char_indices()
                .nth(at)
                .map_or(text.len(), |(byte, _)| byte)
        };
        Some(Self {
            text: text.get(byte(start)..byte(end))?,
            before: start,
        })
    }

    /// Characters of the whole text before the first or last `what`.
    pub(super) fn find(&self, what: &str, from_end: bool) -> Option<usize> {
        let at = if from_end {
            self.text.rfind(what)
        } else {
            self.text.find(what)
        };
        at.map(|at| self.before + self.text[..at].chars().count())
    }
}
