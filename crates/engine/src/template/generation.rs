//! `{% generation %}`, a tag of transformers' own.

/// `source` with `{% generation %}` and `{% endgeneration %}` made a condition that always holds.
/// transformers uses the tag to find the assistant's words in training data; it prints nothing.
pub(super) fn without_marks(source: &str) -> String {
    replace(source, |tag, word| match word {
        "generation" => Some(tag.replace(word, "if true")),
        "endgeneration" => Some(tag.replace(word, "endif")),
        _ => None,
    })
}

/// The same, but that it prints the variable [`MARK`] where what is between the tags begins and
/// ends. `None` where there are no tags.
pub(super) fn with_marks(source: &str) -> Option<String> {
    // A condition within a condition, so that each sign for white space stays on its side.
    let halves = |tag: &str, word: &str, outer: &str, inner: &str| {
        let (before, after) = tag.split_once(word)?;
        Some(format!(
            "{before}{outer} %}}{{{{ {MARK} }}}}{{% {inner}{after}"
        ))
    };
    let mut found = false;
    let marked = replace(source, |tag, word| {
        found |= word == "generation";
        match word {
            "generation" => halves(tag, word, "if true", "if true"),
            "endgeneration" => halves(tag, word, "endif", "endif"),
            _ => None,
        }
    });
    found.then_some(marked)
}

/// The variable that [`with_marks`] prints.
pub(super) const MARK: &str = "hyprstream_generation_mark";

/// `source` with each tag that `with` gives another text for in that text. `with` is given the
/// tag and the words within it.
fn replace(source: &str, mut with: impl FnMut(&str, &str) -> Option<String>) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // Behind the mark that begins it: the two may not share the `%` of `{%}`.
        let Some(end) = rest[start + 2..].find("%}") else {
            break;
        };
        let len = end + 4;
        let tag = &rest[start..start + len];
        let inner = &tag[2..end + 2];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..start]);
        match with(tag, word) {
            Some(other) => out.push_str(&other),
            None => out.push_str(tag),
        }
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{with_marks, without_marks};

    #[test]
    fn the_marks_become_conditions_and_all_else_stays() {
        for (source, expected) in [
            (
                "{% generation %}x{%- endgeneration -%}y",
                "{% if true %}x{%- endif -%}y",
            ),
            (
                "{% if generation %}{% endif %}",
                "{% if generation %}{% endif %}",
            ),
            ("{%generation%}", "{%if true%}"),
            // Found by fuzzing: the two marks share a sign.
            ("a {%} b", "a {%} b"),
            ("{%}}%}{% generation %}", "{%}}%}{% if true %}"),
            ("{% generation", "{% generation"),
            ("{%", "{%"),
        ] {
            assert_eq!(without_marks(source), expected);
        }
    }

    #[test]
    fn marks_are_printed_within_the_tags_whose_signs_keep_their_sides() {
        let source = "a{%- generation -%} x {% endgeneration %}b";
        let mark = "{{ hyprstream_generation_mark }}";
        assert_eq!(
            with_marks(source).unwrap(),
            format!("a{{%- if true %}}{mark}{{% if true -%}} x {{% endif %}}{mark}{{% endif %}}b")
        );
        assert_eq!(with_marks("a{% if x %}{% endif %}"), None);
    }
}
