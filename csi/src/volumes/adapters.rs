//! Staging a volume of a Model's adapters.

use std::sync::Arc;

use hyprstream_contract::adapters::ModelName;

use super::{Guard, Stage, Volumes, blocking, stage::create_folder};
use crate::error::Error;

impl Volumes {
    /// Shows the folder of the Model's adapters at the staging path. Waits for the list, and not
    /// for what it names.
    pub(super) async fn stage_adapters(
        self: &Arc<Self>,
        stage: Arc<Stage>,
        model: ModelName,
    ) -> Result<(), Error> {
        // From here on the folder stays, until the journal names the Model or we give up.
        let lease = self.adapters.lease(&model);
        self.adapters.offer(&model, stage.word.clone().into());
        self.adapters.first_list(&model, self.patience).await?;
        let guard = self.locks.take(&stage.handle)?;
        let volumes = Arc::clone(self);
        blocking(move || {
            let result = volumes.stage_folder(&guard, &stage, &model);
            volumes.follow();
            drop(lease);
            result
        })
        .await
    }

    fn stage_folder(&self, _guard: &Guard, stage: &Stage, model: &ModelName) -> Result<(), Error> {
        self.check_against_journal(stage)?;
        let folder = self.layout.adapters_shown(model);
        let mut mounted = self.our_mount(&stage.staging)?;
        if mounted
            .as_ref()
            .is_some_and(|mounted| mounted.shown.as_ref() != Some(&folder))
        {
            return Err(Error::StagedDifferently {
                handle: stage.handle.clone(),
                what: "content: the path shows something else",
            });
        }
        self.note_stage(stage)?;
        self.journal.keep_word(&stage.handle, stage.word.as_ref())?;
        self.adapters.touch(model);
        if mounted.as_ref().is_some_and(|mounted| mounted.deleted) {
            // Somebody removed the folder; another is in its place.
            self.unmount_all(&stage.staging, true)?;
            mounted = None;
        }
        if mounted.is_none() {
            create_folder(&stage.staging)?;
            self.mounts
                .bind(&folder, &stage.staging)
                .map_err(|e| Error::io("mount the adapters at", &stage.staging, e))?;
        }
        // A kill between these two calls is mended by the next call, before any pod has it.
        if !mounted.is_some_and(|mounted| mounted.read_only) {
            self.mounts
                .set_read_only(&stage.staging, true)
                .map_err(|e| Error::io("make read-only", &stage.staging, e))?;
            tracing::info!(
                volume = stage.handle,
                %model,
                staging = %stage.staging.display(),
                "volume of adapters staged"
            );
        }
        Ok(())
    }
}
