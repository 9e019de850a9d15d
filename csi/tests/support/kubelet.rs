//! What the kubelet does: notes, folders and calls.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use hyprstream_contract::grants::Word;
use hyprstream_csi::proto::csi::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use tonic::{Code, Status, transport::Channel};

use super::program::Node;

#[derive(Clone)]
pub struct Kubelet {
    folder: PathBuf,
    /// What the Secrets of volumes hold, by handle.
    words: Arc<Mutex<HashMap<String, Word>>>,
    client: NodeClient<Channel>,
}

impl Kubelet {
    pub async fn connect(node: &Node) -> Self {
        let channel = node.connect(&node.csi_socket()).await;
        Self {
            folder: node.path("kubelet"),
            words: Arc::default(),
            client: NodeClient::new(channel),
        }
    }

    /// Puts a word into the Secret of a volume.
    pub fn set_word(&self, handle: &str, word: &Word) {
        let mut words = self.words.lock().unwrap();
        words.insert(handle.to_owned(), word.clone());
    }

    fn secrets(&self, handle: &str) -> HashMap<String, String> {
        let words = self.words.lock().unwrap();
        let word = words.get(handle).map(|word| word.expose().to_owned());
        word.map(|word| ("word".to_owned(), word))
            .into_iter()
            .collect()
    }

    pub fn client(&self) -> NodeClient<Channel> {
        self.client.clone()
    }

    pub fn staging(&self, handle: &str) -> PathBuf {
        self.folder
            .join(format!("plugins/kubernetes.io/csi/x/{handle}/globalmount"))
    }

    pub fn target(&self, pod: &str) -> PathBuf {
        self.folder
            .join(format!("pods/{pod}/volumes/kubernetes.io~csi/v/mount"))
    }

    pub async fn stage(
        &self,
        handle: &str,
        volume: &BTreeMap<String, String>,
    ) -> Result<PathBuf, Status> {
        let staging = self.staging(handle);
        std::fs::create_dir_all(&staging).unwrap();
        note(&staging);
        let request = NodeStageVolumeRequest {
            volume_id: handle.into(),
            staging_target_path: text(&staging),
            volume_capability: capability(volume),
            volume_context: volume.clone().into_iter().collect(),
            secrets: self.secrets(handle),
            ..Default::default()
        };
        self.client()
            .node_stage_volume(request)
            .await
            .map(|_| staging)
    }

    /// Stages as often as the kubelet would until it is done or refused for good.
    pub async fn stage_patiently(
        &self,
        handle: &str,
        volume: &BTreeMap<String, String>,
    ) -> Result<PathBuf, Status> {
        loop {
            match self.stage(handle, volume).await {
                Err(status) if status.code() == Code::Aborted => {}
                done => return done,
            }
        }
    }

    pub async fn publish(
        &self,
        handle: &str,
        pod: &str,
        read_only: bool,
    ) -> Result<PathBuf, Status> {
        let target = self.target(pod);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        note(&target);
        let request = NodePublishVolumeRequest {
            volume_id: handle.into(),
            staging_target_path: text(&self.staging(handle)),
            target_path: text(&target),
            volume_capability: capability(&BTreeMap::new()),
            readonly: read_only,
            secrets: self.secrets(handle),
            ..Default::default()
        };
        self.client()
            .node_publish_volume(request)
            .await
            .map(|_| target)
    }

    pub async fn unpublish(&self, handle: &str, pod: &str) -> Result<(), Status> {
        let target = self.target(pod);
        let request = NodeUnpublishVolumeRequest {
            volume_id: handle.into(),
            target_path: text(&target),
        };
        self.client().node_unpublish_volume(request).await?;
        assert!(!target.exists(), "the target is removed");
        let _ = std::fs::remove_file(note_path(&target));
        Ok(())
    }

    pub async fn unstage(&self, handle: &str) -> Result<(), Status> {
        let staging = self.staging(handle);
        let request = NodeUnstageVolumeRequest {
            volume_id: handle.into(),
            staging_target_path: text(&staging),
        };
        self.client().node_unstage_volume(request).await?;
        let _ = std::fs::remove_dir_all(staging.parent().unwrap());
        Ok(())
    }
}

/// As the kubelet tells the access mode that the operator gives a volume with these attributes.
pub fn capability(volume: &BTreeMap<String, String>) -> Option<VolumeCapability> {
    let mode = match volume.get("hyprstream.io/mode").map(String::as_str) {
        Some("rw") => Mode::SingleNodeSingleWriter,
        _ => Mode::MultiNodeReaderOnly,
    };
    Some(VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    })
}

pub fn note_path(path: &Path) -> PathBuf {
    path.parent().unwrap().join("vol_data.json")
}

fn note(path: &Path) {
    std::fs::write(note_path(path), "{}").unwrap();
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Our mounts below `folder`, the kubelet's, that this process sees.
pub fn mounts_below(folder: &Path) -> Vec<hyprstream_csi::mount::Mounted> {
    use hyprstream_csi::mount::{Kernel, Mounts};
    let kernel = Kernel::of(&folder.with_file_name("state")).unwrap();
    let list = kernel.list().unwrap().into_iter();
    list.filter(|mounted| mounted.is_ours() && mounted.path.starts_with(folder))
        .collect()
}
