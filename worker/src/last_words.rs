//! What a worker says before it ends.

use std::{fs, path::Path};

use hyprstream_contract::worker::LastWords;
use tracing::warn;

/// The kubelet reads no more than this, in bytes.
const MAX_BYTES: usize = 4096;

/// Writes `reason` and `message` to the file at `path`. Not being able to is logged only: outside
/// of a pod there is no such file.
pub(crate) fn leave(path: &Path, reason: &str, message: &str) {
    let words = LastWords {
        reason: reason.to_owned(),
        message: shorten(message),
    };
    let written = serde_json::to_string(&words)
        .map_err(std::io::Error::from)
        .and_then(|text| fs::write(path, text));
    if let Err(error) = written {
        warn!(path = %path.display(), %error, "the reason cannot be left for the kubelet");
    }
}

fn shorten(message: &str) -> String {
    // Escapes can double the length, and the rest of the JSON needs room too.
    let limit = MAX_BYTES / 2 - 256;
    if message.len() <= limit {
        return message.to_owned();
    }
    let end = (0..=limit)
        .rev()
        .find(|&at| message.is_char_boundary(at))
        .unwrap_or(0);
    format!("{}…", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_whole_json_however_long_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        leave(&path, "InvalidWeights", &"é\"".repeat(10_000));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() <= MAX_BYTES, "{}", text.len());
        assert_eq!(
            serde_json::from_str::<LastWords>(&text).unwrap().reason,
            "InvalidWeights"
        );
        leave(
            Path::new("/nonexistent/log"),
            "InternalError",
            "nobody reads this",
        );
    }
}
