//! Volumes over mounts in memory: decisions, restarts and kills.

mod gone;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::{
    VolumeAttributes,
    manifest::ManifestFile,
    volume::{VolumeContent, VolumeMode},
};
use tonic::Code;

use super::{Health, Locks, Publish, Reconciled, Stage, Volumes};
use crate::{
    adapters::{
        Timing,
        tests::{FakeLists, adapters},
    },
    error::Error,
    fetch::{Checkout, Checkouts, FetchError, fake::WithoutObjects},
    journal::Journal,
    layout::{CheckoutKey, Layout},
    metrics::Metrics,
    mount::{Mounts, fake::FakeMounts},
};

/// Checkouts of one file that says which commit it is of.
struct OneFile(Layout);

impl WithoutObjects for OneFile {
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError> {
        let path = self.0.checkout(key);
        Ok(path.exists().then(|| Checkout {
            path,
            files: vec![ManifestFile {
                path: "config.json".into(),
                size_bytes: 2,
                sha256: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a".into(),
            }],
        }))
    }

    fn build(&self, key: &CheckoutKey, _: &VolumeAttributes) -> Result<Checkout, FetchError> {
        std::fs::create_dir_all(self.0.checkout(key)).unwrap();
        std::fs::write(self.0.checkout(key).join("config.json"), "{}").unwrap();
        Ok(self.open(key)?.unwrap())
    }
}

/// A node with its disk and its kernel, on which the program may be started again and again.
struct Node {
    folder: tempfile::TempDir,
    kernel: FakeMounts,
    cluster: gone::Cluster,
}

impl Node {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            kernel: FakeMounts::default(),
            cluster: gone::Cluster::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn start(&self) -> Arc<Volumes> {
        let layout = Layout::new(self.path("state")).unwrap();
        layout.create().unwrap();
        let checkouts = Checkouts::new(Arc::new(OneFile(layout.clone())), layout.clone());
        let adapters = adapters(&layout, &checkouts, FakeLists::default(), Timing::default());
        tokio::spawn(Arc::clone(&adapters).follow());
        Arc::new(Volumes {
            journal: Journal::open(&layout).unwrap(),
            checkouts,
            adapters,
            layout,
            mounts: Arc::new(self.kernel.clone()),
            kubelet_dir: self.path("kubelet"),
            witness: Arc::new(self.cluster.clone()),
            asking: parking_lot::Mutex::default(),
            metrics: Metrics::new().unwrap(),
            patience: Duration::from_mins(1),
            locks: Locks::default(),
            disk_full: Arc::default(),
            no_room: tokio::sync::Notify::new(),
            damaged: Arc::default(),
            changed: tokio::sync::Notify::new(),
            named: tokio::sync::Notify::new(),
        })
    }

    /// The staging path of a volume, with the kubelet's note.
    fn staging(&self, handle: &str) -> PathBuf {
        self.noted(&format!(
            "kubelet/plugins/kubernetes.io/csi/x/{handle}/globalmount"
        ))
    }

    /// The target of a volume in a pod, with the kubelet's note.
    fn target(&self, pod: &str) -> PathBuf {
        self.noted(&format!(
            "kubelet/pods/{pod}/volumes/kubernetes.io~csi/v/mount"
        ))
    }

    fn noted(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(note(&path), "{}").unwrap();
        path
    }

    fn stage(&self, handle: &str, mode: VolumeMode) -> Stage {
        let volume = VolumeAttributes {
            repository: "mirror/1".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "s".into(),
            reference: None,
            include: vec![],
            mode,
        };
        Stage {
            handle: handle.into(),
            staging: self.staging(handle),
            content: VolumeContent::Commit(volume),
            context: None,
            word: None,
        }
    }

    /// A volume of the adapters of a Model, which has none.
    fn stage_adapters(&self, handle: &str, model: &str) -> Stage {
        Stage {
            content: VolumeContent::Adapters(model.parse().unwrap()),
            ..self.stage(handle, RO)
        }
    }

    fn publish(&self, handle: &str, pod: &str) -> Publish {
        Publish {
            handle: handle.into(),
            staging: self.staging(handle),
            target: self.target(pod),
            read_only: true,
            exclusive: false,
            word: None,
        }
    }

    fn mounts(&self) -> Vec<PathBuf> {
        self.kernel
            .list()
            .unwrap()
            .into_iter()
            .map(|mounted| mounted.mount.path)
            .collect()
    }
}

/// What a volume of a commit shows, to be changed.
fn commit_of(stage: &mut Stage) -> &mut VolumeAttributes {
    match &mut stage.content {
        VolumeContent::Commit(volume) => volume,
        VolumeContent::Adapters(model) => panic!("{model}"),
    }
}

fn note(path: &Path) -> PathBuf {
    path.parent().unwrap().join("vol_data.json")
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    tonic::Status::from(result.unwrap_err()).code()
}

const RO: VolumeMode = VolumeMode::ReadOnly;
const RW: VolumeMode = VolumeMode::ReadWrite {
    capacity_bytes: 16 << 20,
};

#[tokio::test]
async fn every_call_may_come_twice() {
    let node = Node::new();
    let volumes = node.start();
    let (staging, target) = (node.staging("a"), node.target("p"));
    for _ in 0..2 {
        volumes.stage(node.stage("a", RO)).await.unwrap();
    }
    for _ in 0..2 {
        volumes.publish(node.publish("a", "p")).await.unwrap();
    }
    assert_eq!(node.mounts(), [staging.clone(), target.clone()]);
    for _ in 0..2 {
        volumes.unpublish("a".into(), target.clone()).await.unwrap();
    }
    assert!(!target.exists());
    for _ in 0..2 {
        volumes.unstage("a".into(), staging.clone()).await.unwrap();
    }
    assert_eq!(node.mounts(), Vec::<PathBuf>::new());
    assert_eq!(volumes.journal.all(), []);
}

#[tokio::test]
async fn a_handle_names_one_content() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RO)).await.unwrap();
    let mut other = node.stage("a", RO);
    commit_of(&mut other).reference = Some("other".into());
    assert_eq!(code(volumes.stage(other).await), Code::AlreadyExists);
    let mut elsewhere = node.stage("a", RO);
    elsewhere.staging = node.staging("b");
    assert_eq!(code(volumes.stage(elsewhere).await), Code::AlreadyExists);
}

#[tokio::test]
async fn what_another_life_staged_is_not_in_the_way_once_it_is_gone() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RO)).await.unwrap();
    let mut other = node.stage("a", RO);
    commit_of(&mut other).commit = "1123456789abcdef0123456789abcdef01234567".parse().unwrap();

    // With the journal lost, the mount tells that it shows something else.
    volumes.journal.remove("a").unwrap();
    assert_eq!(
        code(volumes.stage(other.clone()).await),
        Code::AlreadyExists
    );
    volumes.stage(node.stage("a", RO)).await.unwrap();

    node.kernel.reboot();
    node.start().stage(other).await.unwrap();
    assert_eq!(node.mounts().len(), 1);
}

#[tokio::test]
async fn only_what_is_staged_is_published() {
    let node = Node::new();
    let volumes = node.start();
    let published = volumes.publish(node.publish("a", "p")).await;
    assert_eq!(code(published), Code::FailedPrecondition);
    volumes.stage(node.stage("a", RO)).await.unwrap();
    volumes.publish(node.publish("a", "p")).await.unwrap();
    let mut writable = node.publish("a", "p");
    writable.read_only = false;
    assert_eq!(code(volumes.publish(writable).await), Code::AlreadyExists);
}

#[tokio::test]
async fn an_exclusive_volume_is_published_once() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RW)).await.unwrap();
    let exclusive = |pod| Publish {
        exclusive: true,
        ..node.publish("a", pod)
    };
    volumes.publish(exclusive("p")).await.unwrap();
    volumes.publish(exclusive("p")).await.unwrap();
    assert_eq!(
        code(volumes.publish(exclusive("q")).await),
        Code::FailedPrecondition
    );
    volumes
        .unpublish("a".into(), node.target("p"))
        .await
        .unwrap();
    volumes.publish(exclusive("q")).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_written_to_is_published_once_whatever_its_access_mode() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RW)).await.unwrap();
    volumes.publish(node.publish("a", "p")).await.unwrap();
    let volumes = node.start();
    volumes.publish(node.publish("a", "p")).await.unwrap();
    let second = volumes.publish(node.publish("a", "q")).await;
    assert_eq!(code(second), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_disk_whose_volume_is_forgotten_is_unmounted_and_kept() {
    let node = Node::new();
    let volumes = node.start();
    // Killed between the disk and the overlay.
    node.kernel.kill_after(Some(2));
    volumes.stage(node.stage("a", RW)).await.unwrap_err();
    node.kernel.kill_after(None);
    assert_eq!(node.mounts(), [volumes.layout.disk("a")]);
    let volumes = node.start();
    volumes.reconcile().unwrap();
    assert_eq!(node.mounts().len(), 1, "the kubelet still wants it");
    std::fs::remove_file(note(
        &node.path("kubelet/plugins/kubernetes.io/csi/x/a/globalmount"),
    ))
    .unwrap();
    volumes.reconcile().unwrap();
    assert_eq!(node.mounts(), Vec::<PathBuf>::new());
    assert!(volumes.layout.disk_image("a").exists());
    assert!(volumes.journal.get("a").is_some());
}

#[tokio::test]
async fn a_volume_in_use_by_a_call_is_busy_for_others() {
    let node = Node::new();
    let volumes = node.start();
    let _guard = volumes.locks.take("a").unwrap();
    assert_eq!(
        code(volumes.stage(node.stage("a", RO)).await),
        Code::Aborted
    );
    volumes.stage(node.stage("b", RO)).await.unwrap();
}

#[tokio::test]
async fn what_was_written_stays_for_the_same_content_only() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RW)).await.unwrap();
    let written = volumes.layout.upper("a").join("adapter");
    std::fs::write(&written, "x").unwrap();
    volumes
        .unstage("a".into(), node.staging("a"))
        .await
        .unwrap();

    let volumes = node.start();
    volumes.stage(node.stage("a", RW)).await.unwrap();
    assert!(written.exists());
    volumes
        .unstage("a".into(), node.staging("a"))
        .await
        .unwrap();

    let mut next = node.stage("a", RW);
    commit_of(&mut next).commit = "1123456789abcdef0123456789abcdef01234567".parse().unwrap();
    volumes.stage(next).await.unwrap();
    assert!(
        !written.exists(),
        "what was written above another commit would hide files"
    );
}

#[tokio::test]
async fn an_upper_is_never_mounted_twice() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RW)).await.unwrap();
    volumes.publish(node.publish("a", "p")).await.unwrap();
    let unstaged = volumes.unstage("a".into(), node.staging("a")).await;
    assert_eq!(code(unstaged), Code::FailedPrecondition);

    let volumes = node.start();
    volumes
        .unpublish("a".into(), node.target("p"))
        .await
        .unwrap();
    node.kernel.set_busy(&node.staging("a"));
    assert!(
        volumes
            .unstage("a".into(), node.staging("a"))
            .await
            .is_err(),
        "never detached"
    );
    volumes.stage(node.stage("a", RW)).await.unwrap();
    assert_eq!(node.mounts(), [volumes.layout.disk("a"), node.staging("a")]);
}

#[tokio::test]
async fn a_busy_read_only_mount_is_detached() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RO)).await.unwrap();
    node.kernel.set_busy(&node.staging("a"));
    volumes
        .unstage("a".into(), node.staging("a"))
        .await
        .unwrap();
    assert_eq!(node.mounts(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_restart_keeps_what_the_kubelet_knows() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RO)).await.unwrap();
    volumes.publish(node.publish("a", "p")).await.unwrap();

    let volumes = node.start();
    assert_eq!(volumes.reconcile().unwrap(), Reconciled::default());
    assert_eq!(node.mounts().len(), 2);
    assert_eq!(
        volumes.health("a", &[node.target("p")]).unwrap(),
        Health::Good
    );
}

#[tokio::test]
async fn a_restart_cleans_what_the_kubelet_forgot() {
    let node = Node::new();
    let volumes = node.start();
    for handle in ["a", "b"] {
        volumes.stage(node.stage(handle, RO)).await.unwrap();
        volumes.publish(node.publish(handle, handle)).await.unwrap();
    }
    let forgotten = [node.staging("a"), node.target("a")];
    for path in &forgotten {
        std::fs::remove_file(note(path)).unwrap();
    }
    let volumes = node.start();
    assert_eq!(volumes.reconcile().unwrap().unmounted, 2);
    assert_eq!(node.mounts(), [node.staging("b"), node.target("b")]);
    assert_eq!(volumes.journal.all().len(), 1);

    // The same with the journal lost.
    std::fs::remove_file(note(&node.target("b"))).unwrap();
    volumes.journal.remove("b").unwrap();
    std::fs::remove_file(note(&node.staging("b"))).unwrap();
    assert_eq!(node.start().reconcile().unwrap().unmounted, 2);
}

#[tokio::test]
async fn after_a_reboot_written_data_is_there_and_vanished_mounts_are_told() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("rw", RW)).await.unwrap();
    volumes.stage(node.stage("ro", RO)).await.unwrap();
    volumes.publish(node.publish("rw", "p")).await.unwrap();
    let written = volumes.layout.upper("rw").join("adapter");
    std::fs::write(&written, "x").unwrap();
    node.kernel.reboot();
    std::fs::remove_file(note(
        &node.path("kubelet/plugins/kubernetes.io/csi/x/ro/globalmount"),
    ))
    .unwrap();

    let volumes = node.start();
    assert_eq!(
        volumes.reconcile().unwrap(),
        Reconciled {
            unmounted: 0,
            forgotten: 1
        }
    );
    let gone = volumes.health("rw", &[]).unwrap();
    assert_eq!(
        gone,
        Health::MountVanished {
            path: node.staging("rw")
        }
    );
    assert_eq!(volumes.journal.get("rw").unwrap().targets, BTreeMap::new());
    volumes.stage(node.stage("rw", RW)).await.unwrap();
    assert_eq!(volumes.health("rw", &[]).unwrap(), Health::Good);
    assert!(written.exists());
}

#[tokio::test]
async fn a_missing_file_is_told() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RO)).await.unwrap();
    let key = CheckoutKey::of(commit_of(&mut node.stage("a", RO))).unwrap();
    std::fs::remove_file(volumes.layout.checkout(&key).join("config.json")).unwrap();
    let damaged = Health::FilesDamaged {
        path: "config.json".into(),
    };
    assert_eq!(volumes.health("a", &[]).unwrap(), damaged);
}

#[tokio::test]
async fn usage_is_told_for_the_volume_and_its_paths_only() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", RO)).await.unwrap();
    let usage = volumes.usage("a", &node.staging("a")).unwrap();
    assert_eq!((usage.used_bytes, usage.used_inodes), (2, 1));
    assert!(usage.total_bytes >= usage.available_bytes && usage.total_bytes > 0);
    assert_eq!(
        code(volumes.usage("a", Path::new("/some/path"))),
        Code::NotFound
    );
    assert_eq!(code(volumes.usage("b", &node.staging("a"))), Code::NotFound);
}

#[tokio::test]
async fn a_volume_of_adapters_is_read_only_and_its_folder_is_shared() {
    let node = Node::new();
    let volumes = node.start();
    for handle in ["a", "b"] {
        for _ in 0..2 {
            let stage = node.stage_adapters(handle, "default/chat");
            volumes.stage(stage).await.unwrap();
        }
        let mut publish = node.publish(handle, handle);
        publish.read_only = false;
        for _ in 0..2 {
            volumes.publish(publish.clone()).await.unwrap();
        }
    }
    let shown = volumes
        .layout
        .adapters_shown(&"default/chat".parse().unwrap());
    let mounts = node.kernel.list().unwrap();
    assert_eq!(mounts.len(), 4);
    for mounted in &mounts {
        assert!(mounted.is_ours() && mounted.read_only, "{mounted:?}");
        assert_eq!(mounted.shown.as_ref(), Some(&shown));
    }
    let usage = volumes.usage("a", &node.staging("a")).unwrap();
    assert_eq!(usage.used_inodes, 1, "adapters.json");
    for target in [vec![], vec![node.target("a")]] {
        // The kernel of this test binds nothing.
        let told = shown.join("adapters.json");
        std::fs::copy(&told, node.staging("a").join("adapters.json")).unwrap();
        assert_eq!(volumes.health("a", &target).unwrap(), Health::Good);
    }

    let other = node.stage_adapters("a", "default/other");
    assert_eq!(code(volumes.stage(other).await), Code::AlreadyExists);
    let commit = node.stage("a", RO);
    assert_eq!(code(volumes.stage(commit).await), Code::AlreadyExists);

    // Another life knows them.
    let volumes = node.start();
    assert_eq!(volumes.reconcile().unwrap(), Reconciled::default());
    for handle in ["a", "b"] {
        for path in [node.target(handle), node.staging(handle)] {
            std::fs::remove_file(note(&path)).unwrap();
        }
    }
    assert_eq!(volumes.reconcile().unwrap().unmounted, 4);
    assert_eq!(volumes.journal.all(), []);
}

#[tokio::test]
async fn a_lost_journal_keeps_no_volume_of_adapters_from_its_calls() {
    let node = Node::new();
    let volumes = node.start();
    let stage = node.stage_adapters("a", "default/chat");
    volumes.stage(stage.clone()).await.unwrap();
    volumes.journal.remove("a").unwrap();
    let volumes = node.start();
    let other = node.stage_adapters("a", "default/other");
    assert_eq!(code(volumes.stage(other).await), Code::AlreadyExists);
    volumes.stage(stage).await.unwrap();
    volumes.journal.remove("a").unwrap();
    std::fs::remove_file(note(
        &node.path("kubelet/plugins/kubernetes.io/csi/x/a/globalmount"),
    ))
    .unwrap();
    assert_eq!(node.start().reconcile().unwrap().unmounted, 1);
}

/// Kills the program after every number of changes to mounts, starts it again and finishes.
#[tokio::test]
async fn a_kill_after_any_mount_is_mended_by_the_next_calls() {
    let kinds: [fn(&Node) -> Stage; 3] = [
        |node| node.stage("a", RO),
        |node| node.stage("a", RW),
        |node| node.stage_adapters("a", "default/chat"),
    ];
    for (kind, stage) in kinds.into_iter().enumerate() {
        for changes in 0..10 {
            let node = Node::new();
            let paths = (node.staging("a"), node.target("p"));
            node.kernel.kill_after(Some(changes));
            let _ = whole_life(&node, &node.start(), stage(&node), &paths).await;

            node.kernel.kill_after(None);
            let volumes = node.start();
            volumes.reconcile().unwrap();
            whole_life(&node, &volumes, stage(&node), &paths)
                .await
                .unwrap();
            assert_eq!(
                node.mounts(),
                Vec::<PathBuf>::new(),
                "{kind} after {changes}"
            );
        }
    }
}

async fn whole_life(
    node: &Node,
    volumes: &Arc<Volumes>,
    stage: Stage,
    (staging, target): &(PathBuf, PathBuf),
) -> Result<(), Error> {
    volumes.stage(stage).await?;
    volumes.publish(node.publish("a", "p")).await?;
    volumes.unpublish("a".into(), target.clone()).await?;
    volumes.unstage("a".into(), staging.clone()).await
}
