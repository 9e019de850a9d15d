//! `{% generation %}`, a tag of transformers' own.

/// `source` with `{% generation %}` and `{% endgeneration %}` made a condition that always holds.
/// transformers uses the tag to find the assistant's words in training data; it prints nothing.
pub(super) fn without_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}").map(|at| at + 2) else {
            break;
        };
        let tag = &rest[start..start + len];
        let inner = &tag[2..tag.len() - 2];
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
