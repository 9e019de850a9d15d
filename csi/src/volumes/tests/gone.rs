//! What becomes of what was written to volumes whose PersistentVolume is gone, or is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::persistent_volumes::{KnownVolume, KnownVolumes, MAX_VOLUMES};
use parking_lot::Mutex;
use tonic::async_trait;

use super::{Node, RW};
use crate::{
    journal::PersistentVolume,
    mount::{Mounts, Overlay, Upper},
    volumes::{IDLE_FOR, Publish, Volumes},
    witness::Witness,
};

/// The PersistentVolumes of a cluster. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Cluster(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    volumes: BTreeMap<String, KnownVolume>,
    /// Nobody answers.
    down: bool,
    /// Says nothing of any name.
    mute: bool,
    asked: Vec<BTreeSet<String>>,
}

impl Cluster {
    fn put(&self, name: &str, uid: &str, handle: &str) {
        let (uid, handle) = (uid.to_owned(), handle.to_owned());
        let volume = KnownVolume { uid, handle };
        self.0.lock().volumes.insert(name.to_owned(), volume);
    }

    fn remove(&self, name: &str) {
        assert!(self.0.lock().volumes.remove(name).is_some(), "{name}");
    }
}

#[async_trait]
impl Witness for Cluster {
    async fn known(&self, names: BTreeSet<String>) -> Result<KnownVolumes, String> {
        let mut known = self.0.lock();
        known.asked.push(names.clone());
        if known.down {
            return Err("nobody answers".to_owned());
        }
        let names = names.into_iter().filter(|_| !known.mute);
        let volumes = names.map(|name| (name.clone(), known.volumes.get(&name).cloned()));
        let volumes = volumes.collect();
        Ok(KnownVolumes { volumes })
    }
}

/// A node with the volume `a`, to which something was written, and its PersistentVolume `pv`.
struct Setup {
    node: Node,
    volumes: Arc<Volumes>,
    written: PathBuf,
}

impl Setup {
    /// The volume is on the node.
    async fn on_node() -> Self {
        let node = Node::new();
        node.cluster.put("pv", "u1", "a");
        let volumes = node.start();
        let written = volumes.layout.upper("a").join("adapter");
        let setup = Self {
            node,
            volumes,
            written,
        };
        setup.arrive().await;
        std::fs::write(&setup.written, "x").unwrap();
        setup
    }

    /// The volume was on the node, and its PersistentVolume was seen meanwhile.
    async fn left() -> Self {
        let setup = Self::on_node().await;
        setup.look(0).await;
        setup.leave().await;
        setup
    }

    async fn arrive(&self) {
        self.volumes.stage(self.node.stage("a", RW)).await.unwrap();
        let publish = Publish {
            target: self.target(),
            ..self.node.publish("a", "p")
        };
        self.volumes.publish(publish).await.unwrap();
    }

    async fn leave(&self) {
        let unpublished = self.volumes.unpublish("a".into(), self.target()).await;
        unpublished.unwrap();
        let staging = self.node.staging("a");
        self.volumes.unstage("a".into(), staging).await.unwrap();
    }

    fn target(&self) -> PathBuf {
        let path = "kubelet/pods/p/volumes/kubernetes.io~csi/pv/mount";
        self.node.noted(path)
    }

    /// Looks for volumes that are gone, however short they have been away, and finds so many.
    #[track_caller]
    fn look(&self, gone: usize) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            let found = self.volumes.let_go(Duration::ZERO).await.unwrap();
            assert_eq!(found, gone, "{at}");
            assert_eq!(self.written.exists(), gone == 0, "{at}");
            assert_eq!(self.volumes.journal.get("a").is_some(), gone == 0, "{at}");
        }
    }
}

#[tokio::test]
async fn what_was_written_goes_when_its_volume_is_gone_and_not_before() {
    let mut setup = Setup::left().await;
    setup.look(0).await;
    setup.node.cluster.remove("pv");
    let soon = setup.volumes.let_go(IDLE_FOR).await.unwrap();
    assert_eq!(soon, 0, "it has only just left");
    // Another life of the program remembers what was seen.
    setup.volumes = setup.node.start();
    setup.look(1).await;
    let left = std::fs::read_dir(setup.volumes.layout.trash()).unwrap();
    assert_eq!(left.count(), 0, "its place on the disk is free");
}

#[tokio::test]
async fn a_volume_of_another_uid_or_handle_under_the_name_is_another() {
    for (uid, handle) in [("u2", "a"), ("u2", "b")] {
        let setup = Setup::left().await;
        setup.node.cluster.put("pv", uid, handle);
        setup.look(1).await;
    }
}

#[tokio::test]
async fn nothing_goes_that_is_published_staged_mounted_or_worked_on() {
    let setup = Setup::on_node().await;
    setup.look(0).await;
    setup.node.cluster.remove("pv");
    setup.look(0).await;
    let volumes = &setup.volumes;
    let unpublished = volumes.unpublish("a".into(), setup.target()).await;
    unpublished.unwrap();
    setup.look(0).await;
    let staging = setup.node.staging("a");
    volumes.unstage("a".into(), staging.clone()).await.unwrap();
    {
        let _call = volumes.locks.take("a").unwrap();
        setup.look(0).await;
    }
    // The journal was changed by hand, say, while the overlay is there.
    let disk = volumes.layout.disk("a");
    let (upper, work) = (volumes.layout.upper("a"), disk.join("work"));
    std::fs::create_dir_all(&work).unwrap();
    let overlay = Overlay {
        lowers: vec![],
        upper: Some(Upper { upper, work }),
        context: None,
    };
    setup.node.kernel.overlay(&overlay, &staging).unwrap();
    setup.look(0).await;
    setup.node.kernel.unmount(&staging, false).unwrap();
    setup.look(1).await;
}

#[tokio::test]
async fn what_nobody_says_keeps_what_was_written() {
    let setup = Setup::left().await;
    setup.node.cluster.remove("pv");
    setup.node.cluster.0.lock().down = true;
    setup.look(0).await;
    *setup.node.cluster.0.lock() = Known {
        mute: true,
        ..Known::default()
    };
    setup.look(0).await;
    setup.node.cluster.0.lock().mute = false;
    setup.look(1).await;
}

#[tokio::test]
async fn a_volume_that_was_never_seen_is_never_gone() {
    for handle in [None, Some("another")] {
        let setup = Setup::on_node().await;
        // Whatever the name is the name of, it is not this volume.
        setup.node.cluster.remove("pv");
        if let Some(handle) = handle {
            setup.node.cluster.put("pv", "u", handle);
        }
        setup.look(0).await;
        setup.leave().await;
        setup.look(0).await;
        setup.look(0).await;
    }
}

#[tokio::test]
async fn a_volume_that_was_made_again_is_seen_anew() {
    let setup = Setup::left().await;
    setup.node.cluster.put("pv", "u2", "a");
    setup.arrive().await;
    setup.leave().await;
    // Its first sight since, though it has left.
    setup.look(0).await;
    let seen = setup.volumes.journal.get("a").unwrap().persistent_volume;
    let expected = PersistentVolume {
        name: "pv".into(),
        uid: Some("u2".into()),
    };
    assert_eq!(seen, Some(expected));
    setup.look(0).await;
    setup.node.cluster.remove("pv");
    setup.look(1).await;
}

#[tokio::test]
async fn a_call_asks_for_few_and_all_have_their_turn() {
    let setup = Setup::left().await;
    let count = MAX_VOLUMES + 5;
    let like = setup.volumes.journal.get("a").unwrap();
    for i in 0..count {
        let mut entry = like.clone();
        entry.handle = format!("v{i:02}");
        entry.persistent_volume = Some(PersistentVolume {
            name: entry.handle.clone(),
            uid: Some("u".into()),
        });
        let handle = entry.handle.clone();
        setup.volumes.journal.put(entry).unwrap();
        setup.node.cluster.put(&handle, "u", &handle);
    }
    setup.node.cluster.0.lock().asked.clear();
    for _ in 0..2 {
        setup.look(0).await;
    }
    let asked = setup.node.cluster.0.lock().asked.clone();
    assert!(asked.iter().all(|names| names.len() == MAX_VOLUMES));
    let all: BTreeSet<String> = asked.into_iter().flatten().collect();
    assert_eq!(all.len(), count + 1);
}

#[tokio::test]
async fn volumes_that_are_only_read_are_not_asked_for() {
    let node = Node::new();
    let volumes = node.start();
    volumes.stage(node.stage("a", super::RO)).await.unwrap();
    volumes.publish(node.publish("a", "p")).await.unwrap();
    assert_eq!(volumes.let_go(Duration::ZERO).await.unwrap(), 0);
    assert_eq!(node.cluster.0.lock().asked, Vec::<BTreeSet<String>>::new());
}
