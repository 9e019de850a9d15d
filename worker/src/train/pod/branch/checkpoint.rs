//! Checkpoints as commits.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hyprstream_contract::training;
use hyprstream_git2db::{
    CommitId, Digest, Expected, Observer, PushRef, Reference,
    commit::{self, Change, Content, Staged},
    remote, repo,
};
use tracing::debug;

use super::{Branch, BranchError, Provenance, error::io, said::metadata};

/// The file of a checkpoint's commit with how far the job was.
pub(super) const PROGRESS: &str = "progress.json";
/// How many were taken, for names.
static TAKEN: AtomicU64 = AtomicU64::new(0);
const ATTRIBUTES: &str = ".gitattributes";
/// Gives tensors to LFS in the folder that has this file.
pub(super) const LARGE: &str = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";

/// A checkpoint that is to be committed: links to the trainer's files, which therefore stay until
/// this is gone, whatever the trainer deletes.
#[derive(Debug)]
pub(in super::super) struct Snapshot {
    /// Steps that were done.
    pub(in super::super) step: u64,
    /// The figures of that step.
    pub(in super::super) metrics: BTreeMap<String, f64>,
    folder: PathBuf,
}

impl Snapshot {
    /// Links the files of the checkpoint in `checkpoint` into a new folder below `folder`, and puts
    /// `progress` beside them.
    pub(in super::super) fn take(
        checkpoint: &Path,
        folder: &Path,
        step: u64,
        metrics: BTreeMap<String, f64>,
        progress: &[u8],
    ) -> Result<Self, BranchError> {
        let snapshot = Self {
            step,
            metrics,
            // The last step may come twice.
            folder: folder.join(TAKEN.fetch_add(1, Ordering::Relaxed).to_string()),
        };
        let to = &snapshot.folder;
        fs::create_dir_all(to).map_err(io("made", to))?;
        let entries = fs::read_dir(checkpoint).map_err(io("read", checkpoint))?;
        for entry in entries {
            let entry = entry.map_err(io("read", checkpoint))?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            fs::hard_link(&from, &to)
                .or_else(|_| fs::copy(&from, &to).map(drop))
                .map_err(io("linked", &from))?;
        }
        // What came with a checkpoint of an earlier pod is a link to that one's file.
        let path = to.join(PROGRESS);
        drop(fs::remove_file(&path));
        fs::write(&path, progress).map_err(io("written", &path))?;
        Ok(snapshot)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // What stays is cleared at the next start.
        drop(fs::remove_dir_all(&self.folder));
    }
}

impl Branch {
    /// Commits a checkpoint on top of what the registry has, and pushes it.
    pub(in super::super) fn push_checkpoint(
        &mut self,
        snapshot: &Snapshot,
        from: &Provenance,
        observer: &dyn Observer,
    ) -> Result<CommitId, BranchError> {
        let staged = self.stage_checkpoint(snapshot)?;
        let subject = format!("Train {}: step {}", self.pod.name, snapshot.step);
        let said = metadata(&self.pod, from, &subject, snapshot.step, &snapshot.metrics);
        let commit = self.commit(&staged, &said)?;
        debug!(step = snapshot.step, %commit, "a checkpoint is committed");
        self.push(&commit, observer)?;
        // Only what was just made can still be needed here.
        let keep: HashSet<Digest> = staged
            .objects
            .iter()
            .map(|object| object.oid.clone())
            .collect();
        self.store.gc(&keep, Duration::ZERO)?;
        Ok(commit)
    }

    fn stage_checkpoint(&self, snapshot: &Snapshot) -> Result<Staged, BranchError> {
        let of = training::checkpoint_dir(&self.pod.name);
        let mut changes = vec![put(
            format!("{of}/{ATTRIBUTES}"),
            Content::Bytes(LARGE.into()),
        )];
        let mut names = HashSet::from([format!("{of}/{ATTRIBUTES}")]);
        let entries = fs::read_dir(&snapshot.folder).map_err(io("read", &snapshot.folder))?;
        for entry in entries {
            let entry = entry.map_err(io("read", &snapshot.folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{of}/{name}");
            if name != ATTRIBUTES {
                changes.push(put(path.clone(), Content::File(entry.path())));
                names.insert(path);
            }
        }
        changes.extend(self.removals(&self.tip, |path| !names.contains(path))?);
        Ok(commit::stage(
            &self.bare,
            Some(&self.tip),
            &changes,
            &self.store,
        )?)
    }

    /// Changes that take away those files of the checkpoint's folder that are `unwanted`.
    pub(super) fn removals(
        &self,
        commit: &CommitId,
        unwanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Change>, BranchError> {
        let of = training::checkpoint_dir(&self.pod.name);
        let globs = [format!("{}/**", hyprstream_git2db::Include::literal(&of))];
        let paths = self.paths(commit, &globs)?;
        let unwanted = paths.into_iter().filter(|path| unwanted(path));
        Ok(unwanted.map(|path| Change::Remove { path }).collect())
    }

    /// Commits on top of what the registry has.
    pub(super) fn commit(
        &self,
        staged: &Staged,
        said: &commit::Metadata,
    ) -> Result<CommitId, BranchError> {
        // A commit that was never pushed is forgotten.
        let branch = Reference::Branch(self.name.clone());
        repo::set_reference(&self.bare, &branch, &self.tip)?;
        Ok(commit::commit_with(&self.bare, &self.name, staged, said)?)
    }

    /// Pushes `commit`, which follows what the registry has.
    pub(super) fn push(
        &mut self,
        commit: &CommitId,
        observer: &dyn Observer,
    ) -> Result<(), BranchError> {
        let expected = if self.exists {
            Expected::Is(self.tip.clone())
        } else {
            Expected::Any
        };
        let branch = PushRef::branch(&self.name).expecting(expected);
        self.handle()?
            .push(&self.url, &[branch], &self.credentials()?, observer)?;
        self.tip = commit.clone();
        self.exists = true;
        Ok(())
    }

    /// Tags the checkpoint of `step`, if that is wished, and has older ones let go. What does not
    /// work costs nothing: it is done with the next one.
    pub(in super::super) fn tidy(
        &self,
        step: u64,
        commit: &CommitId,
        observer: &dyn Observer,
    ) -> Vec<String> {
        let mut notices = Vec::new();
        if self.pod.tag {
            let tagged = self.tag(step, commit, observer);
            notices.extend(tagged.err().map(|error| {
                format!(
                    "the tag of step {step} cannot be made: {}",
                    super::super::chain(&error)
                )
            }));
            let untagged = self.untag(observer);
            notices.extend(untagged.err().map(|error| {
                format!(
                    "older tags cannot be deleted: {}",
                    super::super::chain(&error)
                )
            }));
        }
        notices.extend(
            self.keep()
                .err()
                .map(|error| format!("older checkpoints stay: {}", super::super::chain(&error))),
        );
        notices
    }

    fn tag(
        &self,
        step: u64,
        commit: &CommitId,
        observer: &dyn Observer,
    ) -> Result<(), BranchError> {
        let tag = PushRef {
            source: Some(commit.to_string()),
            target: format!("refs/tags/{}", training::tag(&self.pod.name, step)),
            force: false,
            expected: Expected::Any,
        };
        self.handle()?
            .push(&self.url, &[tag], &self.credentials()?, observer)?;
        Ok(())
    }

    /// Deletes the tags of checkpoints that are no more kept.
    fn untag(&self, observer: &dyn Observer) -> Result<(), BranchError> {
        let credentials = self.credentials()?;
        let heads = remote::list(&self.url, &credentials, observer)?;
        let prefix = format!("refs/tags/{}/step-", self.pod.name);
        let mut steps: Vec<u64> = heads
            .iter()
            .filter_map(|head| head.name.strip_prefix(&prefix)?.parse().ok())
            .collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        let old: Vec<PushRef> = steps
            .iter()
            .skip(self.pod.keep.max(1) as usize)
            .map(|step| PushRef::delete(&format!("{prefix}{step}")))
            .collect();
        if !old.is_empty() {
            self.handle()?
                .push(&self.url, &old, &credentials, observer)?;
        }
        Ok(())
    }
}

pub(super) fn put(path: String, content: Content) -> Change {
    Change::Put {
        path,
        content,
        executable: false,
    }
}
