//! Pointer files: what lies in git in place of a large file.

use std::fmt;

use crate::Digest;

/// The name of an LFS object: what a pointer file says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pointer {
    /// SHA-256 of the content.
    pub oid: Digest,
    /// Size of the content in bytes.
    pub size: u64,
}

/// A content that is no pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPointer {
    /// It does not have the form of a pointer; an ordinary file.
    #[error("this is not an LFS pointer")]
    NotAPointer,
    /// A pointer with extension lines, whose content needs another program.
    #[error("the LFS pointer uses extensions")]
    Extension,
}

/// A pointer is shorter than this, in bytes.
pub(crate) const MAX_POINTER_BYTES: usize = 1024;

/// The specification and the names it had before.
const VERSIONS: [&str; 3] = [
    "https://git-lfs.github.com/spec/v1",
    "http://git-media.io/v/2",
    "https://hawser.github.com/spec/v1",
];

impl Pointer {
    /// Reads a pointer file.
    ///
    /// As git-lfs does, it takes surrounding white space and the older version URLs; lines that
    /// it does not know make the content an ordinary file.
    pub fn parse(content: &[u8]) -> Result<Self, InvalidPointer> {
        use InvalidPointer::{Extension, NotAPointer};
        if content.len() >= MAX_POINTER_BYTES {
            return Err(NotAPointer);
        }
        let text = std::str::from_utf8(content)
            .map_err(|_| NotAPointer)?
            .trim();
        let mut lines = text.lines().map(|line| line.split_once(' '));
        match lines.next().flatten() {
            Some(("version", version)) if VERSIONS.contains(&version) => {}
            _ => return Err(NotAPointer),
        }
        let mut extended = false;
        let oid = loop {
            match lines.next().flatten() {
                Some(("oid", oid)) => break parse_oid(oid).ok_or(NotAPointer)?,
                Some((key, value)) if is_extension(key) && parse_oid(value).is_some() => {
                    extended = true;
                }
                _ => return Err(NotAPointer),
            }
        };
        let size = match lines.next().flatten() {
            Some(("size", size)) if size.bytes().all(|b| b.is_ascii_digit()) => {
                size.parse().map_err(|_| NotAPointer)?
            }
            _ => return Err(NotAPointer),
        };
        match (lines.next(), extended) {
            (Some(_), _) => Err(NotAPointer),
            (None, true) => Err(Extension),
            (None, false) => Ok(Self { oid, size }),
        }
    }
}

fn parse_oid(text: &str) -> Option<Digest> {
    let hex = text.strip_prefix("sha256:")?;
    let lower = hex.bytes().all(|b| !b.is_ascii_uppercase());
    hex.parse().ok().filter(|_| lower)
}

/// `ext-N-name`, N one digit.
fn is_extension(key: &str) -> bool {
    let Some((number, name)) = key
        .strip_prefix("ext-")
        .and_then(|rest| rest.split_once('-'))
    else {
        return false;
    };
    number.len() == 1 && number.as_bytes()[0].is_ascii_digit() && !name.is_empty()
}

/// The pointer file, byte for byte as git-lfs writes it.
impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "version {}\noid sha256:{}\nsize {}",
            VERSIONS[0], self.oid, self.size
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OID: &str = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";

    fn text(version: &str, middle: &str, size: &str) -> String {
        format!("version {version}\n{middle}oid sha256:{OID}\nsize {size}\n")
    }

    #[test]
    fn the_example_of_the_specification_is_read() {
        let pointer = Pointer::parse(text(VERSIONS[0], "", "12345").as_bytes()).unwrap();
        assert_eq!((pointer.oid.as_str(), pointer.size), (OID, 12345));
        assert_eq!(pointer.to_string(), text(VERSIONS[0], "", "12345"));
        for old in &VERSIONS[1..] {
            assert_eq!(
                Pointer::parse(text(old, "", "12345").as_bytes()).unwrap(),
                pointer
            );
        }
    }

    #[test]
    fn what_differs_is_an_ordinary_file() {
        let good = text(VERSIONS[0], "", "1");
        for content in [
            String::new(),
            "{}".to_owned(),
            good.replace("v1", "v9"),
            good.replace("sha256:", "sha1:"),
            good.replace("4d7a", "4D7A"),
            good.replace("4d7a", ""),
            good.replace("size 1", "size -1"),
            good.replace("size 1", "size +1"),
            good.replace("size 1", "size"),
            good.replace("size 1", "size 99999999999999999999999"),
            good.replace("size 1\n", "size 1\nother x\n"),
            good.replace("oid", "unknown x\noid"),
            format!("{good}{}", " ".repeat(MAX_POINTER_BYTES)),
        ] {
            assert_eq!(
                Pointer::parse(content.as_bytes()),
                Err(InvalidPointer::NotAPointer),
                "{content:?}"
            );
        }
    }

    #[test]
    fn extensions_are_told_apart_from_ordinary_files() {
        let extended = text(VERSIONS[0], &format!("ext-0-foo sha256:{OID}\n"), "1");
        assert_eq!(
            Pointer::parse(extended.as_bytes()),
            Err(InvalidPointer::Extension)
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(oid in "[0-9a-f]{64}", size in any::<u64>()) {
            let pointer = Pointer { oid: oid.parse().unwrap(), size };
            prop_assert_eq!(Pointer::parse(pointer.to_string().as_bytes()), Ok(pointer));
        }

        #[test]
        fn no_content_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pointer::parse(&content);
            let mut tail = b"version https://git-lfs.github.com/spec/v1\n".to_vec();
            tail.extend(content);
            let _ = Pointer::parse(&tail);
        }
    }
}
