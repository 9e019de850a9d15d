//! `{% generation %}`, a tag of transformers' own.

/// `source` with `{% generation %}` and `{% endgeneration %}` made a condition that always holds.
/// transformers uses the tag to find the assistant's words in training data; it prints nothing.
pub(super) fn without_marks(source: &str) -> String {
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
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::without_marks;

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
}
