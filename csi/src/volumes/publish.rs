//! `NodePublishVolume` and `NodeUnpublishVolume`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyprstream_contract::{adapters::ModelName, volume::VolumeContent};

use super::{Guard, Publish, Volumes, blocking, gone::note_name, stage::create_folder};
use crate::{
    error::Error,
    fetch::FetchError,
    journal::{Entry, Target},
    layout::CheckoutKey,
};

impl Volumes {
    /// Shows the staged volume at the target as well; does nothing if it is there.
    pub async fn publish(self: &Arc<Self>, publish: Publish) -> Result<(), Error> {
        let guard = self.locks.take(&publish.handle)?;
        let volumes = Arc::clone(self);
        blocking(move || volumes.publish_now(&guard, &publish)).await
    }

    fn publish_now(&self, _guard: &Guard, publish: &Publish) -> Result<(), Error> {
        let handle = &publish.handle;
        let not_staged = || Error::NotStaged {
            handle: handle.clone(),
            path: publish.staging.clone(),
        };
        let mut entry = self.journal.get(handle).ok_or_else(not_staged)?;
        if entry.staging.as_ref() != Some(&publish.staging) {
            return Err(not_staged());
        }
        let staged = self.our_mount(&publish.staging)?.ok_or_else(not_staged)?;

        if self.our_mount(&publish.target)?.is_none() {
            self.refuse_damaged(&entry)?;
        }

        let target = Target {
            read_only: publish.read_only,
            // Two pods would write over each other's files.
            exclusive: publish.exclusive || entry.is_writable(),
        };
        let known = entry.targets.get(&publish.target);
        if known.is_some_and(|known| known.read_only != target.read_only) {
            return Err(Error::PublishedDifferently {
                handle: handle.clone(),
                path: publish.target.clone(),
                what: "readOnly",
            });
        }
        let is_known = known == Some(&target);
        let is_named = note_name(&mut entry, &publish.target);
        if !is_known {
            self.check_exclusive(&entry.targets, publish, target)?;
            entry.targets.insert(publish.target.clone(), target);
        }
        if !is_known || is_named {
            self.journal.put(entry.clone())?;
        }
        if is_named {
            self.named.notify_one();
        }

        if let Some(model) = entry.adapters() {
            self.take_word(publish, &model);
        }

        create_folder(&publish.target)?;
        match self.our_mount(&publish.target)? {
            Some(mounted) if !mounted.is_same(&staged) => {
                // Left from before this volume was staged anew: it shows the same, but keeps the
                // old mount alive.
                self.unmount_all(&publish.target, true)?;
                self.bind(publish)?;
            }
            // The kubelet asks again and again, for the sake of the word.
            Some(_) => {}
            None => {
                self.bind(publish)?;
                tracing::info!(
                    volume = handle,
                    target = %publish.target.display(),
                    "volume published"
                );
            }
        }
        // A kill between these two calls is mended by the next call, before the pod starts.
        if self
            .our_mount(&publish.target)?
            .is_some_and(|mounted| !mounted.read_only)
            && (publish.read_only || entry.adapters().is_some())
        {
            self.mounts
                .set_read_only(&publish.target, true)
                .map_err(|e| Error::io("make read-only", &publish.target, e))?;
        }
        Ok(())
    }

    /// The kubelet brings the word of a volume that is followed: it may be another by now. Whatever
    /// becomes of it, the pod has its volume.
    fn take_word(&self, publish: &Publish, model: &ModelName) {
        let word = publish.word.as_ref();
        if word.is_some()
            && let Err(error) = self.journal.keep_word(&publish.handle, word)
        {
            tracing::warn!(%model, %error, "the word of a volume is not kept over a restart");
        }
        self.adapters.offer(model, publish.word.clone().into());
    }

    /// No further pod gets damaged files.
    fn refuse_damaged(&self, entry: &Entry) -> Result<(), Error> {
        let VolumeContent::Commit(volume) = entry.content()? else {
            // A damaged adapter is not shown.
            return Ok(());
        };
        let key = CheckoutKey::of(&volume)?;
        let Some(checkout) = self.checkouts.open(&key)? else {
            return Ok(());
        };
        match self.checkouts.damage(&key, &checkout) {
            Some(path) => Err(Error::Fetch(Arc::new(FetchError::Damaged { path }))),
            None => Ok(()),
        }
    }

    fn bind(&self, publish: &Publish) -> Result<(), Error> {
        self.mounts
            .bind(&publish.staging, &publish.target)
            .map_err(|e| Error::io("mount the volume at", &publish.target, e))
    }

    fn check_exclusive(
        &self,
        targets: &std::collections::BTreeMap<PathBuf, Target>,
        publish: &Publish,
        asked: Target,
    ) -> Result<(), Error> {
        for (path, target) in targets {
            if *path != publish.target
                && (target.exclusive || asked.exclusive)
                && self.our_mount(path)?.is_some()
            {
                let (handle, other) = (publish.handle.clone(), path.clone());
                return Err(Error::SingleWriter { handle, other });
            }
        }
        Ok(())
    }

    /// Takes the volume away from the target and removes the target. Neither need be there.
    pub async fn unpublish(self: &Arc<Self>, handle: String, target: PathBuf) -> Result<(), Error> {
        let guard = self.locks.take(&handle)?;
        let volumes = Arc::clone(self);
        blocking(move || volumes.unpublish_now(&guard, &handle, &target)).await
    }

    pub(super) fn unpublish_now(
        &self,
        _guard: &Guard,
        handle: &str,
        target: &Path,
    ) -> Result<(), Error> {
        let entry = self.journal.get(handle);
        // As when unstaging: an upper must be free before it is mounted again.
        self.unmount_all(target, !entry.as_ref().is_some_and(Entry::is_writable))?;
        match std::fs::remove_dir(target) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", target, e));
            }
            _ => {}
        }
        let Some(mut entry) = entry else {
            return Ok(());
        };
        if entry.targets.remove(target).is_some() {
            if entry.staging.is_none() && entry.targets.is_empty() && !self.has_upper(handle) {
                self.journal.remove(handle)?;
            } else {
                self.journal.lessen(entry)?;
            }
            self.follow();
            tracing::info!(volume = handle, target = %target.display(), "volume unpublished");
        }
        Ok(())
    }

    pub(super) fn has_upper(&self, handle: &str) -> bool {
        self.layout.volume(handle).exists()
    }
}
