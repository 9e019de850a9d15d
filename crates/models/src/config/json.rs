//! JSON as Python writes it.

use std::borrow::Cow;

/// `text` with the numbers that JSON does not have, which Python's `json` writes all the same
/// (`NaN`, `Infinity`, `-Infinity`), made texts: a file loads where they do not matter, and an option
/// that must be a number is refused.
pub(crate) fn of_python(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !WORDS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let (mut quoted, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let word = WORDS.iter().find(|word| rest.starts_with(**word));
        if let Some(word) = word.filter(|_| !quoted) {
            out.push('"');
            out.push_str(word);
            out.push('"');
            rest = &rest[word.len()..];
            continue;
        }
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::of_python;

    #[test]
    fn only_bare_words_are_changed() {
        for (text, expected) in [
            (
                r#"{"a": NaN, "b": [-Infinity,Infinity]}"#,
                r#"{"a": "NaN", "b": ["-Infinity","Infinity"]}"#,
            ),
            (
                r#"{"NaN": "a \" Infinity", "b": "\\", "c": NaN}"#,
                r#"{"NaN": "a \" Infinity", "b": "\\", "c": "NaN"}"#,
            ),
            (r#"{"é": 1}"#, r#"{"é": 1}"#),
        ] {
            assert_eq!(of_python(text), expected);
        }
    }
}
