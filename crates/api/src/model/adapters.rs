use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Which adapters workers serve beside those of kind Adapter, and how much they may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelAdapters {
    /// Whether the adapters in the folder adapters of the model's own repository are served.
    #[serde(default = "yes")]
    pub from_repository: bool,
    /// Largest rank of an adapter. Without it, what workers take by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub max_rank: Option<i32>,
    /// Most adapters that are ready to compute with in a worker; others are read again from their
    /// files when a request names them. Without it, as many as memory holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_resident: Option<i32>,
    /// Memory of a worker for adapters that are ready to compute with, as 512Mi or 4Gi. Without
    /// it, what workers take by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        validation = Rule::new("self.matches('^([1-9][0-9]{0,14}|[1-9][0-9]{0,5}(k|M|G|T|Ki|Mi|Gi|Ti))$')").message("memory must be a number of bytes such as 512Mi or 4Gi"),
    )]
    pub memory: Option<String>,
}

impl Default for ModelAdapters {
    fn default() -> Self {
        Self {
            from_repository: yes(),
            max_rank: None,
            max_resident: None,
            memory: None,
        }
    }
}

impl ModelAdapters {
    /// [`Self::memory`] in bytes; `None` if it is none or is no such number.
    pub fn memory_bytes(&self) -> Option<u64> {
        let text = self.memory.as_deref()?;
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
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_kubernetes_reads_quantities() {
        let bytes = |text: &str| {
            let adapters = ModelAdapters {
                memory: Some(text.into()),
                ..ModelAdapters::default()
            };
            adapters.memory_bytes()
        };
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
}
