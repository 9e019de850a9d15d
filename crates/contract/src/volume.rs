//! What a PersistentVolume of ours tells the node plugin.

use std::collections::BTreeMap;

use crate::{CommitId, adapters::ModelName};

/// Name of the CSI driver.
pub const DRIVER_NAME: &str = "csi.hyprstream.io";

const REPOSITORY: &str = "hyprstream.io/repository";
const COMMIT: &str = "hyprstream.io/commit";
const SOURCE: &str = "hyprstream.io/source";
const REFERENCE: &str = "hyprstream.io/ref";
const INCLUDE: &str = "hyprstream.io/include";
const MODE: &str = "hyprstream.io/mode";
const CAPACITY: &str = "hyprstream.io/capacity";
const ADAPTERS: &str = "hyprstream.io/adapters";
/// What the names of our attributes begin with.
const PREFIX: &str = "hyprstream.io/";

/// The smallest capacity of a volume that is written to, in bytes. Its filesystem needs a part of
/// it for itself.
pub const MIN_CAPACITY_BYTES: u64 = 16 << 20;

/// How a volume may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeMode {
    /// Overlay of the checkout and the manifest layer, without an upper.
    ReadOnly,
    /// The same with an upper of its own on its node, for one pod at a time.
    ReadWrite {
        /// Size of the filesystem that the upper lies on, at least [`MIN_CAPACITY_BYTES`].
        capacity_bytes: u64,
    },
}

/// What a volume shows, by the `volumeAttributes` of its PersistentVolume.
///
/// The attribute `hyprstream.io/adapters` alone makes it the second kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeContent {
    /// A commit; it never changes.
    Commit(VolumeAttributes),
    /// The adapters of a Model, which come and go while pods have the volume mounted; see
    /// [`crate::adapters::AdapterFolder`].
    Adapters(ModelName),
}

/// The `volumeAttributes` of a volume that shows a commit, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeAttributes {
    /// Path of the repository on the registry, as in [`crate::registry::MirrorStatus::repository`].
    pub repository: String,
    /// The commit to show.
    pub commit: CommitId,
    /// The upstream without credentials, for the manifest.
    pub source: String,
    /// The branch or tag that led to the commit, for the manifest.
    pub reference: Option<String>,
    /// Globs of the files to show, relative to the repository's root; empty for all.
    pub include: Vec<String>,
    /// Read-only or with an upper.
    pub mode: VolumeMode,
}

/// An attribute is missing, unknown or malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttributes {
    /// A required attribute is not there.
    #[error("volume attribute {0} is missing")]
    Missing(&'static str),
    /// An attribute of our prefix that we do not know.
    #[error("volume attribute {0:?} is unknown")]
    Unknown(String),
    /// A value that cannot be read.
    #[error("volume attribute {name} has the value {value:?}: {why}")]
    Malformed {
        /// Name of the attribute.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl VolumeContent {
    /// The attributes as they stand in the PersistentVolume.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        match self {
            Self::Commit(attributes) => attributes.to_map(),
            Self::Adapters(model) => BTreeMap::from([(ADAPTERS.to_owned(), model.to_string())]),
        }
    }

    /// Reads what [`Self::to_map`] wrote. Attributes without our prefix are passed over.
    pub fn from_map<'a>(
        map: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, InvalidAttributes> {
        let mut ours: BTreeMap<&String, &String> = map
            .into_iter()
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        let Some(model) = ours.remove(&ADAPTERS.to_owned()) else {
            return VolumeAttributes::from_map(ours).map(Self::Commit);
        };
        if let Some(name) = ours.into_keys().next() {
            return Err(InvalidAttributes::Unknown(name.clone()));
        }
        let model = model.parse().map_err(|why| InvalidAttributes::Malformed {
            name: ADAPTERS,
            value: model.clone(),
            why: format!("{why}"),
        })?;
        Ok(Self::Adapters(model))
    }
}

impl VolumeAttributes {
    /// The attributes as they stand in the PersistentVolume.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let (mode, capacity) = match self.mode {
            VolumeMode::ReadOnly => ("ro", None),
            VolumeMode::ReadWrite { capacity_bytes } => ("rw", Some(capacity_bytes)),
        };
        let mut map = BTreeMap::from([
            (REPOSITORY.to_owned(), self.repository.clone()),
            (COMMIT.to_owned(), self.commit.to_string()),
            (SOURCE.to_owned(), self.source.clone()),
            (MODE.to_owned(), mode.to_owned()),
        ]);
        if let Some(bytes) = capacity {
            map.insert(CAPACITY.to_owned(), bytes.to_string());
        }
        if let Some(reference) = &self.reference {
            map.insert(REFERENCE.to_owned(), reference.clone());
        }
        if !self.include.is_empty() {
            let list = serde_json::to_string(&self.include).expect("a list of strings is JSON");
            map.insert(INCLUDE.to_owned(), list);
        }
        map
    }

    /// Reads what [`Self::to_map`] wrote. Attributes without our prefix, such as the pod
    /// information that the kubelet adds, are passed over.
    pub fn from_map<'a>(
        map: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, InvalidAttributes> {
        let mut ours: BTreeMap<&str, &str> = map
            .into_iter()
            .filter(|(name, _)| name.starts_with(PREFIX))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let mut required =
            |name: &'static str| ours.remove(name).ok_or(InvalidAttributes::Missing(name));
        let malformed = |name, value: &str, why: String| InvalidAttributes::Malformed {
            name,
            value: value.to_owned(),
            why,
        };
        let repository = required(REPOSITORY)?.to_owned();
        let commit = required(COMMIT)?;
        let commit = commit
            .parse()
            .map_err(|e| malformed(COMMIT, commit, format!("{e}")))?;
        let source = required(SOURCE)?.to_owned();
        let mode = match required(MODE)? {
            "ro" => VolumeMode::ReadOnly,
            "rw" => {
                let text = required(CAPACITY)?;
                let capacity_bytes =
                    read_capacity(text).map_err(|why| malformed(CAPACITY, text, why))?;
                VolumeMode::ReadWrite { capacity_bytes }
            }
            other => return Err(malformed(MODE, other, "it must be \"ro\" or \"rw\"".into())),
        };
        let reference = ours.remove(REFERENCE).map(str::to_owned);
        let include = match ours.remove(INCLUDE) {
            None => Vec::new(),
            Some(list) => {
                serde_json::from_str(list).map_err(|e| malformed(INCLUDE, list, e.to_string()))?
            }
        };
        match ours.into_keys().next() {
            Some(name) => Err(InvalidAttributes::Unknown(name.to_owned())),
            None => Ok(Self {
                repository,
                commit,
                source,
                reference,
                include,
                mode,
            }),
        }
    }
}

fn read_capacity(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(bytes) if bytes >= MIN_CAPACITY_BYTES => Ok(bytes),
        Ok(_) => Err(format!("it must be at least {MIN_CAPACITY_BYTES}")),
        Err(_) => Err("it must be a number of bytes, without a unit".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn attributes_survive_the_round_trip(
            repository in "[a-z0-9/]{1,40}", commit in "[0-9a-f]{40}", source in ".{0,60}",
            reference in proptest::option::of("[a-z/]{1,20}"),
            include in proptest::collection::vec(".{1,20}", 0..4),
            capacity in proptest::option::of(MIN_CAPACITY_BYTES..),
        ) {
            let attributes = VolumeAttributes {
                repository, source, reference, include,
                commit: commit.parse().unwrap(),
                mode: capacity.map_or(VolumeMode::ReadOnly, |capacity_bytes| {
                    VolumeMode::ReadWrite { capacity_bytes }
                }),
            };
            let mut map = attributes.to_map();
            map.insert("csi.storage.k8s.io/pod.name".into(), "p".into());
            prop_assert_eq!(VolumeAttributes::from_map(&map), Ok(attributes.clone()));
            prop_assert_eq!(VolumeContent::from_map(&map), Ok(VolumeContent::Commit(attributes)));
        }

        #[test]
        fn adapters_survive_the_round_trip(
            namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            model in "[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?",
        ) {
            let content = VolumeContent::Adapters(format!("{namespace}/{model}").parse().unwrap());
            let mut map = content.to_map();
            map.insert("csi.storage.k8s.io/pod.name".into(), "p".into());
            prop_assert_eq!(VolumeContent::from_map(&map), Ok(content));
        }
    }

    #[test]
    fn adapters_are_of_one_model_and_nothing_beside() {
        let read = |pairs: &[(&str, &str)]| {
            let map: BTreeMap<String, String> = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            VolumeContent::from_map(&map).map_err(|error| error.to_string())
        };
        assert!(read(&[(ADAPTERS, "default/chat")]).is_ok());
        for wrong in ["", "chat", "a/b/c", "a.b/c", "../m", "a/..", "A/m", "a/-m"] {
            let error = read(&[(ADAPTERS, wrong)]).unwrap_err();
            assert!(
                error.contains(ADAPTERS) && error.contains(&format!("{wrong:?}")),
                "{error}"
            );
        }
        for other in [MODE, REPOSITORY, "hyprstream.io/scale"] {
            let error = read(&[(ADAPTERS, "a/m"), (other, "ro")]).unwrap_err();
            assert!(
                error.contains(other) && error.contains("unknown"),
                "{error}"
            );
        }
        let error = read(&[]).unwrap_err();
        assert!(
            error.contains("hyprstream.io/repository is missing"),
            "{error}"
        );
    }

    #[test]
    fn what_is_missing_unknown_or_malformed_is_named() {
        let good = VolumeAttributes {
            repository: "git/default/m".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "hyprstream://default/m".into(),
            reference: None,
            include: vec![],
            mode: VolumeMode::ReadOnly,
        }
        .to_map();
        let mut map = good.clone();
        map.remove(COMMIT);
        assert_eq!(
            VolumeAttributes::from_map(&map),
            Err(InvalidAttributes::Missing(COMMIT))
        );
        let mut map = good.clone();
        map.insert("hyprstream.io/upper".into(), "x".into());
        assert!(matches!(
            VolumeAttributes::from_map(&map),
            Err(InvalidAttributes::Unknown(_))
        ));
        let mut map = good.clone();
        map.insert(MODE.into(), "rw".into());
        assert_eq!(
            VolumeAttributes::from_map(&map),
            Err(InvalidAttributes::Missing(CAPACITY))
        );
        for wrong in ["", "1Gi", "-1", "1024"] {
            map.insert(CAPACITY.into(), wrong.into());
            let error = VolumeAttributes::from_map(&map).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}: it must be")), "{error}");
        }
        map.insert(CAPACITY.into(), MIN_CAPACITY_BYTES.to_string());
        VolumeAttributes::from_map(&map).unwrap();
        map.insert(MODE.into(), "ro".into());
        assert_eq!(
            VolumeAttributes::from_map(&map),
            Err(InvalidAttributes::Unknown(CAPACITY.to_owned())),
            "what is only read has none"
        );
        let mut map = good;
        map.insert(MODE.into(), "wo".into());
        let error = VolumeAttributes::from_map(&map).unwrap_err().to_string();
        assert!(
            error.contains("hyprstream.io/mode") && error.contains("wo"),
            "{error}"
        );
    }
}
