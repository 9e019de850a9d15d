//! What the kubelet asks for, checked.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use hyprstream_contract::{
    grants::{WORD_KEY, Word},
    volume::{VolumeContent, VolumeMode},
};

use crate::{
    error::Error,
    proto::csi::{
        NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability,
        volume_capability::{AccessType, access_mode::Mode},
    },
};

/// Set by the kubelet on volumes that stand in a pod rather than in a PersistentVolume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// A checked `NodeStageVolume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Handle of the volume.
    pub handle: String,
    /// Where to stage it.
    pub staging: PathBuf,
    /// What to show.
    pub content: VolumeContent,
    /// SELinux label to mount it with.
    pub context: Option<String>,
    /// What opens it on the registry, if it has a word of its own.
    pub word: Option<Word>,
}

/// A checked `NodePublishVolume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Handle of the volume.
    pub handle: String,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where to publish it.
    pub target: PathBuf,
    /// Whether this publication is read-only.
    pub read_only: bool,
    /// Whether it must be the only one.
    pub exclusive: bool,
    /// What opens it on the registry, if the kubelet brings it.
    pub word: Option<Word>,
}

impl Stage {
    /// Checks a request.
    pub fn new(request: NodeStageVolumeRequest) -> Result<Self, Error> {
        let handle = required("volume_id", request.volume_id)?;
        let staging = absolute_path("staging_target_path", &request.staging_target_path)?;
        let capability = Capability::new(request.volume_capability)?;
        refuse_inline(&request.volume_context)?;
        let content =
            VolumeContent::from_map(&request.volume_context).map_err(Error::Attributes)?;
        if let (VolumeContent::Adapters(_), Some(label)) = (&content, &capability.context) {
            return Err(Error::LabelOfAdapters(label.clone()));
        }
        if capability.many_nodes && is_written(&content) {
            return Err(Error::ManyWriters);
        }
        Ok(Self {
            handle,
            staging,
            content,
            context: capability.context,
            word: word(&request.secrets)?,
        })
    }
}

impl Publish {
    /// Checks a request.
    pub fn new(request: NodePublishVolumeRequest) -> Result<Self, Error> {
        let handle = required("volume_id", request.volume_id)?;
        let target = absolute_path("target_path", &request.target_path)?;
        let capability = Capability::new(request.volume_capability)?;
        refuse_inline(&request.volume_context)?;
        if request.staging_target_path.is_empty() {
            return Err(Error::NotStaged {
                handle,
                path: PathBuf::new(),
            });
        }
        let staging = absolute_path("staging_target_path", &request.staging_target_path)?;
        Ok(Self {
            handle,
            staging,
            target,
            read_only: request.readonly,
            exclusive: capability.exclusive,
            word: word(&request.secrets)?,
        })
    }
}

/// `path`, if it is absolute and leads nowhere upwards.
pub fn absolute_path(field: &'static str, path: &str) -> Result<PathBuf, Error> {
    let path = PathBuf::from(required(field, path.to_owned())?);
    if is_plain(&path) {
        Ok(path)
    } else {
        Err(Error::InvalidPath {
            field,
            path: path.display().to_string(),
        })
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| part != Component::ParentDir)
}

fn required(field: &'static str, value: String) -> Result<String, Error> {
    if value.is_empty() {
        Err(Error::Missing(field))
    } else {
        Ok(value)
    }
}

fn refuse_inline(context: &HashMap<String, String>) -> Result<(), Error> {
    match context.get(EPHEMERAL).map(String::as_str) {
        Some("true") => Err(Error::InlineVolume),
        _ => Ok(()),
    }
}

/// The word among the secrets of a call. A volume that names no Secret has none.
fn word(secrets: &HashMap<String, String>) -> Result<Option<Word>, Error> {
    if secrets.is_empty() {
        return Ok(None);
    }
    let text = secrets.get(WORD_KEY).map_or("", String::as_str);
    text.parse().map(Some).map_err(Error::Word)
}

fn is_written(content: &VolumeContent) -> bool {
    matches!(content, VolumeContent::Commit(volume) if volume.mode != VolumeMode::ReadOnly)
}

struct Capability {
    context: Option<String>,
    exclusive: bool,
    many_nodes: bool,
}

impl Capability {
    fn new(capability: Option<VolumeCapability>) -> Result<Self, Error> {
        let capability = capability.ok_or(Error::Missing("volume_capability"))?;
        let mount = match capability.access_type {
            None => return Err(Error::Missing("volume_capability.access_type")),
            Some(AccessType::Block(_)) => return Err(Error::BlockVolume),
            Some(AccessType::Mount(mount)) => mount,
        };
        if !matches!(mount.fs_type.as_str(), "" | "overlay") {
            return Err(Error::Unsupported {
                field: "fsType",
                value: mount.fs_type,
            });
        }
        let mut context = None;
        for option in mount.mount_flags {
            match option.split_once('=') {
                // The kubelet quotes it, for it may hold commas.
                Some(("context", label)) => context = Some(label.trim_matches('"').to_owned()),
                // These hold of every volume.
                None if matches!(option.as_str(), "nosuid" | "nodev" | "noatime") => {}
                _ => {
                    return Err(Error::Unsupported {
                        field: "mount option",
                        value: option,
                    });
                }
            }
        }
        let mode = capability.access_mode.map(|mode| mode.mode());
        Ok(Self {
            context,
            exclusive: mode == Some(Mode::SingleNodeSingleWriter),
            many_nodes: matches!(
                mode,
                Some(
                    Mode::MultiNodeReaderOnly
                        | Mode::MultiNodeSingleWriter
                        | Mode::MultiNodeMultiWriter
                )
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::VolumeAttributes;

    use super::*;
    use crate::proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn attributes() -> HashMap<String, String> {
        let volume = VolumeAttributes {
            repository: "mirror/1".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "s".into(),
            reference: None,
            include: vec![],
            mode: VolumeMode::ReadOnly,
        };
        volume.to_map().into_iter().collect()
    }

    fn request() -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: "h".into(),
            staging_target_path: "/staging".into(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode {
                    mode: Mode::MultiNodeReaderOnly.into(),
                }),
            }),
            volume_context: attributes(),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut NodeStageVolumeRequest), words: &str) {
        let mut request = request();
        change(&mut request);
        let error = Stage::new(request).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    fn mount(change: impl FnOnce(&mut MountVolume)) -> VolumeCapability {
        let mut mount = MountVolume::default();
        change(&mut mount);
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: None,
        }
    }

    #[test]
    fn everything_wrong_is_named() {
        check(|r| r.volume_id.clear(), "volume_id");
        check(|r| r.staging_target_path.clear(), "staging_target_path");
        check(|r| r.staging_target_path = "relative".into(), "absolute");
        check(|r| r.staging_target_path = "/a/../b".into(), "absolute");
        check(|r| r.volume_capability = None, "volume_capability");
        check(
            |r| r.volume_context.clear(),
            "hyprstream.io/repository is missing",
        );
        check(
            |r| r.volume_capability = Some(mount(|m| m.fs_type = "ext4".into())),
            "ext4",
        );
        check(
            |r| r.volume_capability = Some(mount(|m| m.mount_flags = vec!["sync".into()])),
            "sync",
        );
        let block = AccessType::Block(BlockVolume {});
        check(
            |r| r.volume_capability.as_mut().unwrap().access_type = Some(block),
            "volumeMode must be Filesystem",
        );
        check(
            |r| {
                r.volume_context.insert(EPHEMERAL.into(), "true".into());
            },
            "inline volumes are refused",
        );
    }

    #[test]
    fn the_word_of_a_volume_is_read_and_one_that_is_none_is_not_shown() {
        assert_eq!(Stage::new(request()).unwrap().word, None);
        let word = Word::from_bytes([7; 32]);
        let with = |key: &str, text: &str| {
            let secrets = HashMap::from([(key.to_owned(), text.to_owned())]);
            Stage::new(NodeStageVolumeRequest {
                secrets,
                ..request()
            })
        };
        let stage = with("word", word.expose()).unwrap();
        assert_eq!(stage.word, Some(word.clone()));
        assert!(!format!("{stage:?}").contains(word.expose()));
        for (key, text) in [("word", "planted"), ("token", word.expose()), ("word", "")] {
            let error = with(key, text).unwrap_err().to_string();
            assert!(
                error.contains("has no word") && !error.contains("planted"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_volume_that_is_written_to_is_for_one_node() {
        let written = |mode: Mode| {
            let mut request = request();
            let context = &mut request.volume_context;
            context.insert("hyprstream.io/mode".into(), "rw".into());
            context.insert("hyprstream.io/capacity".into(), "16777216".into());
            let capability = request.volume_capability.as_mut().unwrap();
            capability.access_mode = Some(AccessMode { mode: mode.into() });
            Stage::new(request)
        };
        for mode in [Mode::SingleNodeSingleWriter, Mode::SingleNodeMultiWriter] {
            written(mode).unwrap();
        }
        for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeReaderOnly] {
            let error = written(mode).unwrap_err().to_string();
            assert!(error.contains("ReadWriteOncePod"), "{error}");
        }
    }

    #[test]
    fn the_label_of_selinux_is_taken() {
        let mut request = request();
        let label = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        request.volume_capability = Some(mount(|m| {
            m.mount_flags = vec![label.into(), "nodev".into()];
        }));
        let stage = Stage::new(request).unwrap();
        assert_eq!(
            stage.context.unwrap(),
            "system_u:object_r:container_file_t:s0:c1,c2"
        );
    }

    #[test]
    fn a_volume_of_adapters_has_no_label_of_its_own() {
        let adapters = |flags: Vec<String>| NodeStageVolumeRequest {
            volume_capability: Some(mount(|m| m.mount_flags = flags)),
            volume_context: HashMap::from([("hyprstream.io/adapters".into(), "a/m".into())]),
            ..request()
        };
        let stage = Stage::new(adapters(vec!["nodev".into()])).unwrap();
        let expected = VolumeContent::Adapters("a/m".parse().unwrap());
        assert_eq!(stage.content, expected);
        let error = Stage::new(adapters(vec!["context=x".into()])).unwrap_err();
        assert!(error.to_string().contains("seLinuxMount"), "{error}");
    }
}
