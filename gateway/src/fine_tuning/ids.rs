//! Ids of files and names of jobs.

use sha2::{Digest, Sha256};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BASE36: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const FILE: &str = "file-";
const JOB: &str = "ftjob-";
const FILE_CHARS: usize = 24;
const JOB_CHARS: usize = 24;

/// What ids are made of: of chance, or of what a client calls a request that it may repeat.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// Every one is new.
    Chance,
    /// The same for every repetition of a request of a namespace.
    Request {
        namespace: &'a str,
        idempotency_key: &'a str,
    },
}

/// The id of a file: `file-` and 24 letters and digits.
pub(super) fn file(origin: Origin<'_>) -> String {
    format!("{FILE}{}", text(origin, FILE, BASE62, FILE_CHARS))
}

/// The name of a job, which is a DNS label: `ftjob-` and 24 small letters and digits.
pub(super) fn job(origin: Origin<'_>) -> String {
    format!("{JOB}{}", text(origin, JOB, BASE36, JOB_CHARS))
}

/// The id of an event or checkpoint, which follows from what it is of.
pub(super) fn of(prefix: &str, parts: &[&str]) -> String {
    format!("{prefix}{}", digits(&hash(parts), BASE62, 24))
}

/// Whether a text could be the id of a file; only such ones are asked for.
pub(super) fn is_file(id: &str) -> bool {
    let own = id.strip_prefix(FILE);
    own.is_some_and(|own| own.len() == FILE_CHARS && own.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Whether a text could be the name of a job.
pub(super) fn is_job(id: &str) -> bool {
    let own = id.strip_prefix(JOB);
    own.is_some_and(|own| own.len() == JOB_CHARS && own.bytes().all(|b| BASE36.contains(&b)))
}

fn text(origin: Origin<'_>, kind: &str, alphabet: &[u8], chars: usize) -> String {
    match origin {
        Origin::Chance => (0..chars)
            .map(|_| char::from(alphabet[fastrand::usize(..alphabet.len())]))
            .collect(),
        Origin::Request {
            namespace,
            idempotency_key,
        } => digits(&hash(&[kind, namespace, idempotency_key]), alphabet, chars),
    }
}

fn hash(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Of 32 bytes at most 32 digits.
fn digits(bytes: &[u8; 32], alphabet: &[u8], chars: usize) -> String {
    bytes
        .iter()
        .take(chars)
        .map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_they_must_be_and_repeat_only_with_their_request() {
        let request = |namespace, idempotency_key| Origin::Request {
            namespace,
            idempotency_key,
        };
        for (make, is) in [
            (
                file as fn(Origin<'_>) -> String,
                is_file as fn(&str) -> bool,
            ),
            (job, is_job),
        ] {
            let (one, two) = (make(Origin::Chance), make(Origin::Chance));
            assert!(is(&one), "{one}");
            assert_ne!(one, two);
            assert!(is(&make(request("a", "k"))));
            assert_eq!(make(request("a", "k")), make(request("a", "k")));
            assert_ne!(make(request("a", "k")), make(request("b", "k")));
            assert!(!is("../x") && !is(&format!("{one}/x")));
        }
    }
}
