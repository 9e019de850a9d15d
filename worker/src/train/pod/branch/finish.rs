//! The last commit: the adapter, and no checkpoint any more.

use std::collections::BTreeMap;

use hyprstream_contract::training::{LastWords, Output, trailer};
use hyprstream_git2db::{
    CommitId, Include, Limits, Observer,
    commit::{self, Change, Content},
    tree::{self, EntryKind},
};
use hyprstream_models::adapter::AdapterFiles;
use hyprstream_training::Prepared;
use tracing::debug;

use super::{
    super::words,
    Branch, BranchError, Provenance, Said, Tip,
    checkpoint::{LARGE, put},
    of_contract,
    said::metadata,
};

/// Where adapters lie in a model's repository.
const FOLDER: &str = "adapters";
const TENSORS: &str = ".safetensors";
const CONFIG: &str = ".config.json";
/// Most bytes of the last words in a commit.
const WORDS_BYTES: usize = 4096;

/// A finished adapter that is to be committed.
pub(in super::super) struct Making<'a> {
    /// PEFT's pair, as it was written.
    pub(in super::super) files: &'a AdapterFiles,
    /// Its identity.
    pub(in super::super) digest: &'a str,
    /// The step that it is of.
    pub(in super::super) step: u64,
    /// What the pod will say, without where the adapter is.
    pub(in super::super) words: &'a LastWords,
    /// Reads it back.
    pub(in super::super) prepared: &'a Prepared,
}

/// A job that is done.
#[derive(Clone, Debug)]
pub(in super::super) struct Done {
    /// What it said.
    pub(in super::super) words: LastWords,
    /// Where the adapter is.
    pub(in super::super) output: Output,
}

impl Branch {
    /// Commits the adapter on top of what the registry has, reads it back, and pushes it. A push
    /// of which no answer came is found out by [`Branch::look`] before another is made.
    pub(in super::super) fn finish(
        &mut self,
        making: &Making<'_>,
        from: &Provenance,
        observer: &dyn Observer,
    ) -> Result<Output, BranchError> {
        if let Tip::Complete(commit, said) = self.look()? {
            return Ok(self.done(&commit, &said)?.output);
        }
        let stem = self.stem(&self.tip)?;
        let (tensors, config) = (format!("{stem}{TENSORS}"), format!("{stem}{CONFIG}"));
        let mut changes = self.removals(&self.tip, |_| true)?;
        changes.extend(self.replaced(&stem)?);
        changes.extend(self.attributes(&tensors)?);
        let file = |path| Content::File(path);
        changes.push(put(tensors.clone(), file(making.files.tensors.clone())));
        changes.push(put(config.clone(), file(making.files.config.clone())));
        let staged = commit::stage(&self.bare, Some(&self.tip), &changes, &self.store)?;
        let subject = format!(
            "Add the adapter {} of step {}",
            self.pod.adapter, making.step
        );
        let metrics = &making.words.metrics;
        let mut said = metadata(&self.pod, from, &subject, making.step, metrics)
            .with_trailer(trailer::ADAPTER_DIGEST, making.digest);
        for verdict in &making.words.gates {
            let line = verdict.message.replace(['\n', '\r', '\0'], " ");
            if !line.trim().is_empty() {
                said = said.with_trailer(trailer::GATE, &line);
            }
        }
        let text = words::fitting(making.words, WORDS_BYTES);
        said = said.with_trailer(trailer::LAST_WORDS, &text);
        let commit = self.commit(&staged, &said)?;
        let sha256 = self.check(&commit, making, &tensors, &config)?;
        debug!(%commit, "the adapter is committed");
        self.push(&commit, observer)?;
        Ok(Output {
            commit: of_contract(&commit),
            path: tensors,
            digest: making.digest.to_owned(),
            sha256,
            merged: None,
        })
    }

    /// What a last commit of the job says.
    pub(in super::super) fn done(
        &self,
        commit: &CommitId,
        said: &Said,
    ) -> Result<Done, BranchError> {
        let missing = |why: &str| BranchError::Place {
            what: "the last commit",
            text: commit.to_string(),
            why: format!("it {why}: delete the branch {}", self.name),
        };
        let path = format!("{}{TENSORS}", self.stem(commit)?);
        let entries = self.walk(commit)?;
        let entry = entries.into_iter().find(|entry| entry.path == path);
        let entry = entry.ok_or_else(|| missing("lacks its adapter"))?;
        let sha256 = match entry.kind {
            EntryKind::Lfs { pointer, .. } => pointer.oid.to_string(),
            EntryKind::Blob { .. } => {
                let files = self.files(commit, &[Include::literal(&path)], &())?;
                let sha256 = files.files.first().map(|file| file.sha256.to_string());
                self.clear()?;
                sha256.ok_or_else(|| missing("lacks its adapter"))?
            }
            EntryKind::Symlink { .. } => return Err(missing("has a link for its adapter")),
        };
        let digest = said.adapter_digest.clone();
        Ok(Done {
            words: said
                .last_words
                .clone()
                .ok_or_else(|| missing("does not say how the job ended"))?,
            output: Output {
                commit: of_contract(commit),
                path,
                digest: digest.unwrap_or_default(),
                sha256,
                merged: None,
            },
        })
    }

    /// The adapter's path without its ending. One of the same name keeps its number, else it is the
    /// next that is free. Commits of the job have the model's adapters, and the last its own too.
    fn stem(&self, commit: &CommitId) -> Result<String, BranchError> {
        let stems = self.walk(commit)?.into_iter().filter_map(|entry| {
            let rest = entry
                .path
                .strip_prefix(FOLDER)?
                .strip_prefix('/')?
                .to_owned();
            let (stem, is_folder) = match rest.split_once('/') {
                Some((folder, _)) => (folder.to_owned(), true),
                None => (rest, false),
            };
            let stem = if is_folder {
                &stem
            } else {
                stem.strip_suffix(TENSORS).or(stem.strip_suffix(CONFIG))?
            };
            let (number, name) = stem.split_once('_')?;
            Some((name.to_owned(), number.parse::<u32>().ok()?))
        });
        let taken: BTreeMap<String, u32> = stems.collect();
        let number = taken.get(&self.pod.adapter).copied();
        let number = number.unwrap_or_else(|| taken.values().max().map_or(0, |last| last + 1));
        Ok(format!("{FOLDER}/{number:02}_{}", self.pod.adapter))
    }

    /// What takes away an adapter that lies there as a folder.
    fn replaced(&self, stem: &str) -> Result<Vec<Change>, BranchError> {
        let globs = [format!("{}/**", Include::literal(stem))];
        let paths = self.paths(&self.tip, &globs)?;
        Ok(paths
            .into_iter()
            .map(|path| Change::Remove { path })
            .collect())
    }

    /// What gives the adapter to LFS, where the model's own attributes do not.
    ///
    /// The file has one line whatever the adapter is called, so that what two jobs add merges.
    /// Where tensors of adapters lie in git already it would make them look changed: there this one
    /// goes the way of those.
    fn attributes(&self, tensors: &str) -> Result<Option<Change>, BranchError> {
        let probe = put(tensors.to_owned(), Content::Bytes(b"probe".to_vec()));
        let probe = commit::stage(&self.bare, Some(&self.tip), &[probe], &self.store);
        let is_large = probe.is_ok_and(|staged| !staged.objects.is_empty());
        let path = format!("{FOLDER}/.gitattributes");
        let is_taken = self.walk(&self.tip)?.into_iter().any(|entry| {
            let plain = matches!(entry.kind, EntryKind::Blob { .. });
            entry.path == path || plain && entry.path.ends_with(TENSORS)
        });
        if is_large || is_taken {
            return Ok(None);
        }
        Ok(Some(put(path, Content::Bytes(LARGE.into()))))
    }

    fn walk(&self, commit: &CommitId) -> Result<Vec<tree::Entry>, BranchError> {
        let include = Include::new(&[format!("{FOLDER}/**")]).expect("it is a glob");
        Ok(tree::walk(
            &self.bare,
            commit,
            &include,
            &Limits::default(),
        )?)
    }

    /// Reads the adapter out of its commit. Returns the SHA-256 of its tensors.
    fn check(
        &self,
        commit: &CommitId,
        making: &Making<'_>,
        tensors: &str,
        config: &str,
    ) -> Result<String, BranchError> {
        let globs = [Include::literal(tensors), Include::literal(config)];
        let committed = self.files(commit, &globs, &())?;
        let files = AdapterFiles {
            tensors: committed.path.join(tensors),
            config: committed.path.join(config),
        };
        let found = making.prepared.digest(&files);
        let found = found.map_err(|error| BranchError::Adapter(Box::new(error)))?;
        let found = found.to_string();
        let mut sums = committed.files.iter();
        let sha256 = sums.find(|file| file.path == tensors);
        let sha256 = sha256
            .map(|file| file.sha256.to_string())
            .unwrap_or_default();
        self.clear()?;
        if found == making.digest {
            return Ok(sha256);
        }
        Err(BranchError::Changed {
            found,
            expected: making.digest.to_owned(),
        })
    }
}
