//! How a pod says that it ended.

use std::{fs, path::Path};

use hyprstream_contract::training::LastWords;
use tracing::warn;

/// The kubelet reads no more than this, in bytes.
const MAX_BYTES: usize = 4096;

/// Leaves `words` in the file at `path`. Not being able to is logged only: outside of a pod there
/// is no such file.
pub(super) fn leave(path: &Path, words: &LastWords) {
    if let Err(error) = fs::write(path, fitting(words, MAX_BYTES)) {
        warn!(path = %path.display(), %error, "the reason cannot be left for the kubelet");
    }
}

/// The words as JSON of at most `most` bytes: texts are cut where they would not fit.
pub(super) fn fitting(words: &LastWords, most: usize) -> String {
    let mut words = words.clone();
    for limit in [1024, 512, 256, 128, 64, 32, 0] {
        let text = json(&words);
        if text.len() <= most {
            return text;
        }
        // What it ended with says more than what each gate found.
        words.message = cut(&words.message, limit.max(256) * 2);
        for verdict in &mut words.gates {
            verdict.message = cut(&verdict.message, limit);
        }
    }
    while json(&words).len() > most && words.gates.pop().is_some() {}
    json(&words)
}

fn json(words: &LastWords) -> String {
    serde_json::to_string(words).expect("it is of texts and numbers")
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(most)])
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::training::{Metric, Verdict};

    use super::*;

    #[test]
    fn last_words_are_whole_json_however_much_there_is_to_say() {
        let verdict = Verdict {
            metric: Metric::EvalLoss,
            value: Some(1.0),
            baseline: None,
            passed: true,
            message: "é\"".repeat(1000),
        };
        for gates in [0, 1, 10, 100] {
            let words = LastWords {
                reason: "Complete".to_owned(),
                message: "\u{1}\"é".repeat(10_000),
                step: 1,
                steps: 2,
                metrics: [("loss".to_owned(), 1.5)].into(),
                dataset_digest: Some("d".repeat(64)),
                checkpoint: None,
                gates: vec![verdict.clone(); gates],
                output: None,
            };
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            leave(&path, &words);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.len() <= MAX_BYTES, "{}", text.len());
            let read: LastWords = serde_json::from_str(&text).unwrap();
            assert_eq!((read.step, read.reason.as_str()), (1, "Complete"));
            assert!(!read.message.is_empty());
        }
    }
}
