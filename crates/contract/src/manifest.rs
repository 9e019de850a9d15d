//! `.hyprstream/manifest.json`: what a mounted volume says of itself.

use serde::{Deserialize, Serialize};

use crate::CommitId;

/// Where the manifest lies below the root of a volume.
pub const MANIFEST_PATH: &str = ".hyprstream/manifest.json";

/// The content of one commit as it lies on a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The upstream that the commit came from, without credentials.
    pub repository: String,
    /// The branch or tag that led to the commit, if one did.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The commit.
    pub commit: CommitId,
    /// Every file of the volume, ordered by path.
    pub files: Vec<ManifestFile>,
}

/// One file of a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManifestFile {
    /// Path below the root, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the content, 64 lower-case hexadecimal digits. For an LFS file its oid.
    pub sha256: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_survives_the_round_trip() {
        let manifest = Manifest {
            repository: "https://example.org/m.git".into(),
            reference: Some("main".into()),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            files: vec![ManifestFile {
                path: "config.json".into(),
                size_bytes: 2,
                sha256: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a".into(),
            }],
        };
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    }
}
