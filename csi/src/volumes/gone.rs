//! Letting go what was written to volumes whose PersistentVolume is gone.
//!
//! No call of the kubelet says that a PersistentVolume was deleted. So those of volumes that are
//! written to are asked for. Two answers are needed: the first, while the volume is on the node,
//! says that the name is the right one and notes the UID; the second, while it is not, that no
//! volume of that UID has the name any more. Whatever else is answered, or is not, keeps what was
//! written for as long as it is kept without anybody to ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::{
    VolumeAttributes,
    persistent_volumes::{KnownVolume, MAX_VOLUMES, is_volume_name},
    volume::VolumeMode,
};

use super::{Volumes, blocking};
use crate::{
    error::Error,
    journal::{Entry, PersistentVolume},
};

/// For how long a volume must not have been on the node before anybody is asked for it, unless its
/// place is needed.
pub const IDLE_FOR: Duration = Duration::from_mins(2);

/// How long a stage that finds no room waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of whom to ask.
#[derive(Debug, Default)]
pub struct Asking {
    /// The handle that was asked for last: the next call goes on behind it.
    last: Option<String>,
    /// Why the last call had no answer, so that it is told once.
    trouble: Option<String>,
}

impl Volumes {
    /// Asks which PersistentVolumes of written volumes are there, at most `MAX_VOLUMES` of them in
    /// turn, and deletes what was written to those that are gone and have not been on the node for
    /// `idle_for`. Returns how many went.
    ///
    /// # Errors
    /// What is gone could not be deleted. That nobody could say anything is no error: it is logged.
    pub async fn let_go(self: &Arc<Self>, idle_for: Duration) -> Result<usize, Error> {
        let asked = self.to_ask(idle_for);
        if asked.is_empty() {
            return Ok(0);
        }
        let names: BTreeSet<String> = asked.values().map(|volume| volume.name.clone()).collect();
        let said = match self.witness.known(names).await {
            Ok(said) => {
                if self.asking.lock().trouble.take().is_some() {
                    tracing::info!("it can be told again which PersistentVolumes are gone");
                }
                said.volumes
            }
            Err(why) => {
                let mut asking = self.asking.lock();
                if asking.trouble.as_ref() != Some(&why) {
                    tracing::warn!(
                        why,
                        "it cannot be told which PersistentVolumes are gone: what was written to \
                         volumes stays for --keep-unused"
                    );
                }
                asking.trouble = Some(why);
                return Ok(0);
            }
        };
        let volumes = Arc::clone(self);
        blocking(move || volumes.judge(&asked, &said)).await
    }

    /// The same, whatever the time, where the node's disk has no room for the capacity of `volume`:
    /// what is gone is worth less than what else could be deleted for it. What does not work here is
    /// found by the stage itself.
    pub(super) async fn let_go_for(self: &Arc<Self>, handle: &str, volume: &VolumeAttributes) {
        let VolumeMode::ReadWrite { capacity_bytes } = volume.mode else {
            return;
        };
        let (volumes, of) = (Arc::clone(self), handle.to_owned());
        let fits = blocking(move || {
            let needed_bytes = volumes.missing_bytes(&of, capacity_bytes)?;
            Ok(needed_bytes <= volumes.layout.free_bytes()?)
        });
        if fits.await.unwrap_or(true) {
            return;
        }
        match tokio::time::timeout(PATIENCE, self.let_go(Duration::ZERO)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what is gone could not be deleted"),
            Err(_) => tracing::warn!("nobody says in time which PersistentVolumes are gone"),
        }
    }

    /// The volumes to ask for, by handle.
    fn to_ask(&self, idle_for: Duration) -> BTreeMap<String, PersistentVolume> {
        let wanted = |entry: &Entry| {
            let volume = entry.persistent_volume.clone()?;
            let is_due = match volume.uid {
                None => true,
                Some(_) => entry.is_off_node() && entry.age() >= idle_for,
            };
            is_due.then(|| (entry.handle.clone(), volume))
        };
        let all: Vec<_> = self.journal.all().iter().filter_map(wanted).collect();
        let mut asking = self.asking.lock();
        let from = asking.last.as_ref().map_or(0, |last| {
            all.iter().take_while(|(handle, _)| handle <= last).count()
        });
        let turn = all[from..].iter().chain(&all[..from]).take(MAX_VOLUMES);
        let turn: Vec<_> = turn.cloned().collect();
        if let Some((handle, _)) = turn.last() {
            asking.last = Some(handle.clone());
        }
        turn.into_iter().collect()
    }

    /// Does what follows from an answer. Blocks.
    fn judge(
        &self,
        asked: &BTreeMap<String, PersistentVolume>,
        said: &BTreeMap<String, Option<KnownVolume>>,
    ) -> Result<usize, Error> {
        let mut gone = 0;
        for (handle, volume) in asked {
            let Some(found) = said.get(&volume.name) else {
                continue;
            };
            match (&volume.uid, found) {
                (None, Some(found)) if found.handle == *handle => {
                    self.note_uid(handle, volume, &found.uid)?;
                }
                // Of a volume that was never seen nothing can be gone: its name may be another.
                (None, _) => {}
                (Some(uid), Some(found)) if found.uid == *uid => {}
                (Some(_), _) => gone += usize::from(self.discard(handle, volume)?),
            }
        }
        if gone > 0 {
            crate::gc::empty_trash(&self.layout)?;
        }
        Ok(gone)
    }

    fn note_uid(&self, handle: &str, volume: &PersistentVolume, uid: &str) -> Result<(), Error> {
        let Ok(_guard) = self.locks.take(handle) else {
            return Ok(());
        };
        match self.journal.get(handle) {
            Some(mut entry) if entry.persistent_volume.as_ref() == Some(volume) => {
                entry.persistent_volume = Some(PersistentVolume {
                    uid: Some(uid.to_owned()),
                    ..volume.clone()
                });
                self.journal.put(entry)
            }
            _ => Ok(()),
        }
    }

    /// Takes away what was written to a volume that is gone. Returns whether it was.
    fn discard(&self, handle: &str, volume: &PersistentVolume) -> Result<bool, Error> {
        let Ok(guard) = self.locks.take(handle) else {
            return Ok(false);
        };
        let entry = self.journal.get(handle);
        // Somebody may have staged it since, or another volume of this name.
        let Some(entry) = entry.filter(|e| e.persistent_volume.as_ref() == Some(volume)) else {
            return Ok(false);
        };
        let discarded = self.discard_idle(&guard, &entry)?;
        if discarded {
            tracing::info!(
                volume = handle,
                name = volume.name,
                "what was written is deleted, for its PersistentVolume is gone"
            );
        }
        Ok(discarded)
    }

    /// Deletes what was written to a volume and forgets it, unless it is staged, published or
    /// mounted. The collector empties the trash. Blocks.
    pub(crate) fn discard_idle(&self, _guard: &super::Guard, entry: &Entry) -> Result<bool, Error> {
        if !entry.is_off_node() || self.is_shown(&entry.handle)? {
            return Ok(false);
        }
        self.discard_upper(&entry.handle)?;
        self.journal.remove(&entry.handle)?;
        Ok(true)
    }
}

/// Notes by which name the kubelet knows the PersistentVolume of a written volume, which it publishes
/// at `target`. Returns whether that was news.
pub(super) fn note_name(entry: &mut Entry, target: &Path) -> bool {
    let Some(name) = name_in(target).filter(|_| entry.is_writable()) else {
        return false;
    };
    let known = entry.persistent_volume.as_ref();
    if known.is_some_and(|known| known.name == name) {
        return false;
    }
    let uid = None;
    entry.persistent_volume = Some(PersistentVolume { name, uid });
    true
}

/// The PersistentVolume that the kubelet publishes at a target:
/// `.../pods/UID/volumes/kubernetes.io~csi/NAME/mount`.
fn name_in(target: &Path) -> Option<String> {
    let mut parts = target.iter().rev();
    (parts.next()? == "mount").then_some(())?;
    let name = parts.next()?.to_str()?;
    (parts.next()? == "kubernetes.io~csi").then_some(())?;
    is_volume_name(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_tells_the_name_of_a_volume_by_its_target() {
        let name = |path: &str| name_in(Path::new(path));
        let pod = "/var/lib/kubelet/pods/u/volumes";
        let found = name(&format!("{pod}/kubernetes.io~csi/hyprstream-a-j.1/mount"));
        assert_eq!(found.as_deref(), Some("hyprstream-a-j.1"));
        for other in [
            format!("{pod}/kubernetes.io~csi/hyprstream-a-j.1"),
            format!("{pod}/kubernetes.io~nfs/hyprstream-a-j.1/mount"),
            format!("{pod}/kubernetes.io~csi/A_b/mount"),
            "mount".to_owned(),
        ] {
            assert_eq!(name(&other), None, "{other}");
        }
    }
}
