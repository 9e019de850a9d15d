//! `NodeStageVolume` and `NodeUnstageVolume`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyprstream_contract::{
    VolumeAttributes,
    volume::{VolumeContent, VolumeMode},
};

use super::{Guard, Stage, Volumes, blocking};
use crate::{
    error::Error,
    fetch::{Access, Checkout, FetchError},
    journal::{Entry, PersistentVolume},
    layer::ensure_layer,
    layout::{CheckoutKey, LayerKey},
    mount::Overlay,
};

impl Volumes {
    /// Shows the volume at its staging path; does nothing if it is there.
    ///
    /// # Errors
    /// [`Error::Fetching`] while the files are still coming: call again.
    pub async fn stage(self: &Arc<Self>, stage: Stage) -> Result<(), Error> {
        let timer = self.metrics.stage_seconds.start_timer();
        let result = self.stage_in_time(stage).await;
        timer.observe_duration();
        match &result {
            Err(error) if error.lacks_room() => {
                self.no_room.notify_one();
                if error.needs_room() {
                    self.disk_full.notify_one();
                }
            }
            Err(Error::Fetch(error)) if matches!(**error, FetchError::Damaged { .. }) => {
                self.damaged.notify_one();
            }
            _ => {}
        }
        self.changed.notify_one();
        result
    }

    async fn stage_in_time(self: &Arc<Self>, stage: Stage) -> Result<(), Error> {
        let (volumes, stage) = (Arc::clone(self), Arc::new(stage));
        let asked = Arc::clone(&stage);
        blocking(move || volumes.check_against_journal(&asked)).await?;
        let volume = match &stage.content {
            VolumeContent::Commit(volume) => volume.clone(),
            VolumeContent::Adapters(model) => {
                let model = model.clone();
                return self.stage_adapters(stage, model).await;
            }
        };
        let key = CheckoutKey::of(&volume)?;
        // From here on the checkout stays, until the journal names it or we give up.
        let lease = self.checkouts.lease(&key);
        let access = Access::of(stage.word.clone().into());
        let checkout = self
            .checkouts
            .ensure(&key, &volume, &access, self.patience)
            .await?;
        self.let_go_for(&stage.handle, &volume).await;
        let guard = self.locks.take(&stage.handle)?;
        let volumes = Arc::clone(self);
        blocking(move || {
            let result = volumes.stage_checkout(&guard, &stage, &volume, &key, &checkout);
            drop(lease);
            result
        })
        .await
    }

    pub(super) fn check_against_journal(&self, stage: &Stage) -> Result<(), Error> {
        let Some(entry) = self.journal.get(&stage.handle) else {
            return Ok(());
        };
        let Some(staging) = &entry.staging else {
            return Ok(());
        };
        // After a reboot, say, what the entry tells is no longer there to be in the way.
        if self.our_mount(staging)?.is_none() {
            return Ok(());
        }
        let differently = |what| {
            Err(Error::StagedDifferently {
                handle: stage.handle.clone(),
                what,
            })
        };
        if entry.attributes != stage.content.to_map() {
            return differently("content: a handle must name one PersistentVolume");
        }
        if *staging != stage.staging {
            return differently("staging path");
        }
        if entry.context != stage.context {
            return differently("SELinux label");
        }
        Ok(())
    }

    fn stage_checkout(
        &self,
        _guard: &Guard,
        stage: &Stage,
        volume: &VolumeAttributes,
        key: &CheckoutKey,
        checkout: &Checkout,
    ) -> Result<(), Error> {
        self.check_against_journal(stage)?;
        let mounted = self.our_mount(&stage.staging)?;
        let is_staged = mounted.is_some();
        // The journal may have been lost; the mount tells what it shows.
        if mounted.is_some_and(|mounted| !mounted.folders.contains(&checkout.path)) {
            return Err(Error::StagedDifferently {
                handle: stage.handle.clone(),
                what: "content: the path shows another commit",
            });
        }
        self.note_stage(stage)?;
        self.checkouts.touch(key)?;
        if is_staged {
            return Ok(());
        }
        let layer_key = LayerKey::of(key, volume);
        let layer = ensure_layer(&self.layout, &layer_key, volume, checkout)?;
        let upper = match volume.mode {
            VolumeMode::ReadOnly => None,
            VolumeMode::ReadWrite { capacity_bytes } => {
                Some(self.ensure_upper(&stage.handle, key, capacity_bytes)?)
            }
        };
        let overlay = Overlay {
            lowers: vec![layer, checkout.path.clone()],
            upper,
            context: stage.context.clone(),
        };
        create_folder(&stage.staging)?;
        self.mounts
            .overlay(&overlay, &stage.staging)
            .map_err(|e| Error::io("mount an overlay at", &stage.staging, e))?;
        tracing::info!(
            volume = stage.handle,
            commit = volume.commit.as_str(),
            staging = %stage.staging.display(),
            "volume staged"
        );
        Ok(())
    }

    /// Notes in the journal that the volume is about to be staged.
    pub(super) fn note_stage(&self, stage: &Stage) -> Result<(), Error> {
        let attributes = stage.content.to_map();
        let before = self.journal.get(&stage.handle);
        // What was written above another commit would hide files of this one.
        if before
            .as_ref()
            .is_some_and(|entry| entry.attributes != attributes)
        {
            self.discard_upper(&stage.handle)?;
        }
        // It may have been deleted and made again: that it is there is to be heard anew.
        let persistent_volume = before
            .as_ref()
            .filter(|entry| entry.attributes == attributes)
            .and_then(|entry| entry.persistent_volume.clone())
            .map(|volume| PersistentVolume {
                uid: None,
                ..volume
            });
        let targets = before.map(|entry| entry.targets).unwrap_or_default();
        self.journal.put(Entry {
            handle: stage.handle.clone(),
            attributes,
            context: stage.context.clone(),
            staging: Some(stage.staging.clone()),
            targets,
            persistent_volume,
            written_seconds: 0,
        })
    }

    /// Takes the volume away from its staging path. It may not be known, or not be staged.
    ///
    /// What was written to a read-write volume is kept for a while: the same volume may come back.
    pub async fn unstage(self: &Arc<Self>, handle: String, staging: PathBuf) -> Result<(), Error> {
        let guard = self.locks.take(&handle)?;
        let volumes = Arc::clone(self);
        let result = blocking(move || volumes.unstage_now(&guard, &handle, &staging)).await;
        self.changed.notify_one();
        result
    }

    pub(super) fn unstage_now(
        &self,
        _guard: &Guard,
        handle: &str,
        staging: &Path,
    ) -> Result<(), Error> {
        let entry = self.journal.get(handle);
        let writable = entry.as_ref().is_some_and(Entry::is_writable);
        let mut targets = BTreeMap::new();
        for (path, target) in entry.iter().flat_map(|entry| &entry.targets) {
            if self.our_mount(path)?.is_some() {
                // Staged anew, its upper would be mounted twice.
                if writable {
                    let (handle, path) = (handle.to_owned(), path.clone());
                    return Err(Error::StillPublished { handle, path });
                }
                targets.insert(path.clone(), *target);
            }
        }
        // Nobody may write to an upper that a later stage mounts again, so that one is not detached.
        self.unmount_all(staging, !writable)?;
        if writable {
            self.unmount_disk(handle)?;
        }
        let Some(mut entry) = entry else {
            return Ok(());
        };
        // Nothing on the way down may need space: a full disk must not keep pods from ending.
        if let Some((key, _)) = entry.lowers()
            && let Err(error) = self.checkouts.touch(&key)
        {
            tracing::warn!(%error, "the use of a checkout could not be noted");
        }
        if let Some(model) = entry.adapters() {
            self.adapters.touch(&model);
        }
        if writable || !targets.is_empty() {
            entry.staging = None;
            entry.targets = targets;
            self.journal.lessen(entry)?;
        } else {
            self.journal.remove(handle)?;
        }
        self.follow();
        tracing::info!(volume = handle, staging = %staging.display(), "volume unstaged");
        Ok(())
    }
}

/// Makes the folder and those above it, if they are not there.
pub(super) fn create_folder(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))
}
