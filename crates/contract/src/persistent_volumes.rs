//! Which PersistentVolumes there are, as a node asks the registry and the registry asks the API
//! server (`docs/adr/0009-how-a-node-hears-of-volumes-that-are-gone.md`).
//!
//! | Call | Token | Body | Answer |
//! |---|---|---|---|
//! | `POST /api/v1/persistentvolumes` | admin, node | [`VolumesRequest`] | 200 [`KnownVolumes`]; 501 where the registry may not ask, 503 while nobody answers it |

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Path of [`VolumesRequest`].
pub const VOLUMES_PATH: &str = "/api/v1/persistentvolumes";
/// Most names of one call.
pub const MAX_VOLUMES: usize = 16;

/// Asks which of these PersistentVolumes are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumesRequest {
    /// Names of PersistentVolumes, at most [`MAX_VOLUMES`].
    pub names: BTreeSet<String>,
}

/// What the API server said of each name that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownVolumes {
    /// By name. `None` where no volume of our driver has it.
    pub volumes: BTreeMap<String, Option<KnownVolume>>,
}

/// A PersistentVolume of our driver that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownVolume {
    /// Tells it from others that had its name before or will have it.
    pub uid: String,
    /// By which the node plugin knows it.
    pub handle: String,
}

/// Whether a PersistentVolume can have this name: a DNS subdomain of at most 253 bytes.
#[must_use]
pub fn is_volume_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().last()];
        label.bytes().all(allowed) && ends.iter().all(|b| b.is_some_and(|b| b != b'-'))
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_gone_is_told_from_one_that_was_not_asked_for() {
        let known = KnownVolume {
            uid: "u".into(),
            handle: "h".into(),
        };
        let said = KnownVolumes {
            volumes: BTreeMap::from([("there".into(), Some(known)), ("gone".into(), None)]),
        };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(
            text,
            r#"{"volumes":{"gone":null,"there":{"uid":"u","handle":"h"}}}"#
        );
        let read: KnownVolumes = serde_json::from_str(&text).unwrap();
        assert_eq!(read, said);
        assert_eq!(read.volumes.get("other"), None);
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for good in ["hyprstream-a-m.v1-0123456-89abcdef", "a", "1.b-2"] {
            assert!(is_volume_name(good), "{good}");
        }
        let long = "a".repeat(254);
        for bad in [
            "", ".", "..", "a/b", "A", "a..b", "-a", "a-", "a?b", "a%2fb", &long,
        ] {
            assert!(!is_volume_name(bad), "{bad}");
        }
    }
}
