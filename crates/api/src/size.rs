//! Sizes as specs have them: `512Mi`, `4Gi`, or a number of bytes.

/// The rule of a field with a size, which the API server checks.
pub(crate) const RULE: &str =
    "self.matches('^([1-9][0-9]{0,14}|[1-9][0-9]{0,5}(k|M|G|T|Ki|Mi|Gi|Ti))$')";

/// The bytes that a size says; `None` if it is none of those that the schema lets in, or more than
/// 64 bits hold.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|n| is_number && *n > 0)?;
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelAdapters, TrainingResources};

    #[test]
    fn sizes_are_read_as_kubernetes_reads_quantities() {
        assert_eq!(bytes("1000"), Some(1000));
        assert_eq!(bytes("3k"), Some(3000));
        assert_eq!(bytes("4Gi"), Some(4 << 30));
        assert_eq!(bytes("999999Ti"), Some(999_999 << 40));
        for wrong in [
            "",
            "Gi",
            "0",
            "-1",
            "+1",
            "1.5Gi",
            "1e3",
            "1m",
            "4 Gi",
            "99999999999Ti",
            "1é",
        ] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn memory_and_storage_are_read_alike() {
        let size = || Some("4Gi".to_owned());
        let adapters = ModelAdapters {
            memory: size(),
            ..ModelAdapters::default()
        };
        let resources = TrainingResources {
            storage: size(),
            ..TrainingResources::default()
        };
        assert_eq!(adapters.memory_bytes(), Some(4 << 30));
        assert_eq!(resources.storage_bytes(), adapters.memory_bytes());
    }
}
