//! Names that must not come from a repository onto a disk.

use super::Refusal;

/// Longest name of a file or folder on Linux, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Checks one name of a tree, and gives it as text.
pub(crate) fn check_name(name: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(name).map_err(|_| Refusal::Name("is not UTF-8"))?;
    if text.is_empty() || text == "." || text == ".." {
        return Err(Refusal::Name("is empty, '.' or '..'"));
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(Refusal::Name("is longer than 255 bytes"));
    }
    if text.contains(['/', '\\', '\0']) || text.contains(char::is_control) {
        return Err(Refusal::Name(
            "holds a slash, a backslash or a control character",
        ));
    }
    if is_dot_git(text) {
        return Err(Refusal::Name("is a form of .git"));
    }
    Ok(text)
}

/// Whether the path lies at or below `.hyprstream`, in any case.
pub(crate) fn is_reserved(path: &str) -> bool {
    path.split('/')
        .next()
        .is_some_and(|first| normal(first) == ".hyprstream")
}

/// `.git` also as other file systems see it: in any case, by its short name, with ignored
/// characters, trailing dots and spaces, or a stream.
fn is_dot_git(name: &str) -> bool {
    let normal = normal(name);
    let stem = normal
        .split(':')
        .next()
        .unwrap_or_default()
        .trim_end_matches(['.', ' ']);
    stem == ".git" || (stem.strip_prefix("git~").is_some_and(is_number))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// In lower case, without the characters that HFS+ ignores.
fn normal(name: &str) -> String {
    let ignored = |c: &char| {
        matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}'
            | '\u{feff}')
    };
    name.chars()
        .filter(|c| !ignored(c))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for name in [
            "config.json",
            ".gitattributes",
            ".gitignore",
            "a b",
            "ü",
            "git",
            "git~x",
        ] {
            assert_eq!(check_name(name.as_bytes()), Ok(name));
        }
    }

    #[test]
    fn forms_of_dot_git_and_names_that_escape_are_refused() {
        for name in [
            ".git",
            ".GIT",
            ".Git ",
            ".git.",
            ".git. .",
            "git~1",
            "GIT~2",
            ".git:stream",
            ".git::$INDEX_ALLOCATION",
            ".g\u{200c}it",
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            "..\\x",
            "a\0b",
            "a\nb",
        ] {
            assert!(check_name(name.as_bytes()).is_err(), "{name:?}");
        }
        assert!(check_name(b"\xff").is_err());
        assert!(check_name(&[b'a'; 256]).is_err());
    }

    #[test]
    fn our_own_folder_is_reserved_in_any_case() {
        for path in [
            ".hyprstream",
            ".HyprStream/manifest.json",
            ".hyprstr\u{200d}eam/x",
        ] {
            assert!(is_reserved(path), "{path}");
        }
        for path in ["hyprstream", "a/.hyprstream", ".hyprstream2"] {
            assert!(!is_reserved(path), "{path}");
        }
    }
}
