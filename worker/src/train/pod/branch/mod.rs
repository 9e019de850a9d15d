//! The branch of a job: the truth, of which the pod's disk is a cache.

mod api;
mod checkpoint;
mod error;
mod finish;
mod said;

use std::{
    fs,
    path::{Path, PathBuf},
};

use hyprstream_contract::{
    adapters::{CONFIG_FILE, WEIGHTS_FILE},
    training::{self, LastKnownGood, Progress, TrainingPod},
};
use hyprstream_git2db::{
    CommitId, Credentials, Include, Limits, Observer, Reference, RemoteUrl, RepositoryHandle,
    checkout, lfs, remote, repo, store::ObjectStore, tree, trust_only,
};
use hyprstream_tls::Trust;
use hyprstream_training::{Written, adopt_checkpoint};

use checkpoint::PROGRESS;
use error::io;

pub(super) use checkpoint::Snapshot;
pub(super) use error::{BranchError, Kind};
pub(super) use finish::{Done, Making};
pub(super) use said::{Provenance, Said};

/// What the branch has on the registry.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tip {
    /// No commit of the job: the next one follows the model's.
    Model,
    /// Its last checkpoint.
    Checkpoint(CommitId, Said),
    /// All of it.
    Complete(CommitId, Said),
}

/// The branch of a job, on the registry and here.
#[derive(Debug)]
pub(super) struct Branch {
    pod: TrainingPod,
    token_file: PathBuf,
    /// By what the registry is trusted.
    trust: Trust,
    url: RemoteUrl,
    name: String,
    model: CommitId,
    /// What the registry's branch names, as far as is known; the model's commit where there is
    /// none.
    tip: CommitId,
    /// Whether the registry has the branch.
    exists: bool,
    bare: PathBuf,
    store: ObjectStore,
    scratch: PathBuf,
}

impl Branch {
    /// The branch that `pod` names, with a repository in `folder` that is made where it is missing.
    /// Nothing is asked yet.
    pub(super) fn open(
        folder: &Path,
        pod: TrainingPod,
        token_file: PathBuf,
    ) -> Result<Self, BranchError> {
        let place = |what, text: &str, why: String| BranchError::Place {
            what,
            text: text.to_owned(),
            why,
        };
        let text = format!("{}/git/{}.git", pod.registry, pod.repository);
        let url = RemoteUrl::parse(&text).map_err(|e| place("the URL", &text, e.to_string()))?;
        let bundle = pod.registry_ca_file.as_ref().map(PathBuf::from);
        let trust = Trust::of_url(&pod.registry, bundle).map_err(BranchError::Trust)?;
        trust_only(&url, trust.clone());
        let commit = pod.model.commit.as_ref().map(ToString::to_string);
        let commit = commit.unwrap_or_default();
        let model: CommitId = commit
            .parse()
            .map_err(|_| place("the model's commit", &commit, "name one".to_owned()))?;
        let (bare, scratch) = (folder.join("branch.git"), folder.join("branch.tmp"));
        fs::create_dir_all(folder).map_err(io("made", folder))?;
        if scratch.exists() {
            fs::remove_dir_all(&scratch).map_err(io("deleted", &scratch))?;
        }
        repo::init_bare(&bare)?;
        Ok(Self {
            name: training::branch(&pod.name),
            store: ObjectStore::open(&folder.join("branch.lfs"))?,
            tip: model.clone(),
            exists: false,
            pod,
            token_file,
            trust,
            url,
            model,
            bare,
            scratch,
        })
    }

    /// Asks what the branch has, and fetches that commit without its large files. What is made
    /// next follows it.
    ///
    /// # Errors
    /// [`BranchError::Taken`] where it has another job's commits.
    pub(super) fn look(&mut self) -> Result<Tip, BranchError> {
        let credentials = self.credentials()?;
        let full = format!("refs/heads/{}", self.name);
        let heads = remote::list(&self.url, &credentials, &())?;
        let found = heads.into_iter().find(|head| head.name == full);
        let Some(found) = found.filter(|found| found.commit != self.model) else {
            self.fetch(&self.model, &Reference::Head, &credentials)?;
            self.tip = self.model.clone();
            self.exists = false;
            return Ok(Tip::Model);
        };
        let reference = Reference::Branch(self.name.clone());
        self.fetch(&found.commit, &reference, &credentials)?;
        let info = self.handle()?.commit_info(&found.commit)?;
        let said = Said::parse(&info.message);
        if said.uid.as_deref() != Some(&self.pod.uid) {
            let owner = match (&said.job, &said.uid) {
                (Some(job), Some(uid)) => format!("another job ({job}, UID {uid})"),
                _ => format!("others ({})", info.subject()),
            };
            return Err(BranchError::Taken {
                branch: self.name.clone(),
                owner,
            });
        }
        self.tip = found.commit.clone();
        self.exists = true;
        Ok(match said.adapter_digest {
            Some(_) => Tip::Complete(found.commit, said),
            None => Tip::Checkpoint(found.commit, said),
        })
    }

    /// Brings the checkpoint of a commit into `folder`, where the trainer looks for them.
    pub(super) fn restore(
        &self,
        commit: &CommitId,
        folder: &Path,
        observer: &dyn Observer,
    ) -> Result<Written, BranchError> {
        let of = training::checkpoint_dir(&self.pod.name);
        let files = self.files(commit, &[format!("{}/**", Include::literal(&of))], observer)?;
        let aside = self.scratch.join("restored");
        fs::create_dir_all(&aside).map_err(io("made", &aside))?;
        for file in &files.files {
            let from = files.path.join(&file.path);
            let name = file.path.rsplit('/').next().unwrap_or(&file.path);
            // Copied, since what is checked out belongs to the store.
            fs::copy(&from, aside.join(name)).map_err(io("copied", &from))?;
        }
        let written =
            adopt_checkpoint(&aside, folder).map_err(|source| BranchError::Checkpoint {
                commit: commit.to_string(),
                source: Box::new(source),
            })?;
        self.clear()?;
        Ok(written)
    }

    /// Brings the two files of an adapter of the branch's repository into `folder`.
    pub(super) fn bring(&self, good: &LastKnownGood, folder: &Path) -> Result<(), BranchError> {
        let text = good.commit.to_string();
        let commit: CommitId = text.parse().map_err(|_| BranchError::Place {
            what: "the commit of the last known good adapter",
            text: text.clone(),
            why: "name one".to_owned(),
        })?;
        let reference = Reference::Commit(commit.clone());
        self.fetch(&commit, &reference, &self.credentials()?)?;
        let globs = [&good.weights, &good.config].map(|path| Include::literal(path));
        let files = self.files(&commit, &globs, &())?;
        fs::create_dir_all(folder).map_err(io("made", folder))?;
        for (path, name) in [(&good.weights, WEIGHTS_FILE), (&good.config, CONFIG_FILE)] {
            let from = files.path.join(path);
            // Copied, since what is checked out belongs to the store.
            fs::copy(&from, folder.join(name)).map_err(io("copied", &from))?;
        }
        self.clear()
    }

    /// How far the job was at the checkpoint of a commit, if that says so.
    pub(super) fn progress(&self, commit: &CommitId) -> Option<Progress> {
        let of = training::checkpoint_dir(&self.pod.name);
        let shown = self
            .handle()
            .ok()?
            .show(commit, &format!("{of}/{PROGRESS}"));
        serde_json::from_slice(&shown.ok()?.blob).ok()
    }

    /// The branch's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The files of a commit that these globs name, large ones included. [`Self::clear`] takes them
    /// away.
    fn files(
        &self,
        commit: &CommitId,
        globs: &[String],
        observer: &dyn Observer,
    ) -> Result<checkout::Checkout, BranchError> {
        let include = Include::new(globs).map_err(|error| BranchError::Place {
            what: "the name",
            text: self.pod.name.clone(),
            why: error.to_string(),
        })?;
        let limits = Limits::default();
        let objects = tree::pointers(&tree::walk(&self.bare, commit, &include, &limits)?);
        let missing = objects
            .iter()
            .any(|object| !self.store.contains(&object.oid));
        if missing {
            lfs::Client::new(&self.url, &self.credentials()?, lfs::Options::default())?.download(
                &objects,
                &self.store,
                observer,
            )?;
        }
        let source = checkout::Source {
            bare: &self.bare,
            commit,
            include: &include,
            limits,
            store: &self.store,
        };
        Ok(checkout::materialise(&source, &self.scratch)?)
    }

    /// Paths of a commit that these globs name.
    fn paths(&self, commit: &CommitId, globs: &[String]) -> Result<Vec<String>, BranchError> {
        let include = Include::new(globs).map_err(|error| BranchError::Place {
            what: "the name",
            text: self.pod.name.clone(),
            why: error.to_string(),
        })?;
        let entries = tree::walk(&self.bare, commit, &include, &Limits::default())?;
        Ok(entries.into_iter().map(|entry| entry.path).collect())
    }

    fn fetch(
        &self,
        commit: &CommitId,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<(), BranchError> {
        let fetch = repo::Fetch {
            url: &self.url,
            reference,
            commit,
            history: repo::History::None,
            credentials,
        };
        Ok(repo::fetch_commit(&self.bare, &fetch, &())?)
    }

    fn credentials(&self) -> Result<Credentials, BranchError> {
        Ok(Credentials::Token(token(&self.token_file)?))
    }

    fn handle(&self) -> Result<RepositoryHandle, BranchError> {
        Ok(RepositoryHandle::open(&self.bare, self.store.clone())?)
    }

    /// Takes away what was checked out.
    fn clear(&self) -> Result<(), BranchError> {
        match fs::remove_dir_all(&self.scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io("deleted", &self.scratch)(error))
            }
            _ => Ok(()),
        }
    }
}

/// The token in the file at `path`, which the kubelet renews.
fn token(path: &Path) -> Result<String, BranchError> {
    let text = fs::read_to_string(path).map_err(|source| BranchError::Token {
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim().to_owned())
}

/// A commit of git2db as the contract has it.
pub(super) fn of_contract(commit: &CommitId) -> hyprstream_contract::CommitId {
    let text = commit.to_string();
    text.parse().expect("both are 40 hexadecimal digits")
}
