//! One adapter: what is wanted of it, how far that is, and what answers by its name meanwhile.

use std::{sync::Arc, time::Duration};

use futures::future::Shared;
use hyprstream_contract::{
    CommitId,
    adapters::BaseCommitPolicy,
    worker_adapters::{LoadState, Serving},
};
use hyprstream_engine::Adapter;
use hyprstream_models::adapter::{AdapterDigest, AdapterFiles};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Timing,
    packer::{PackError, Stamps},
    room::Room,
};

/// Reason of one whose name means something else.
pub(super) const NAME_TAKEN: &str = "NameTaken";

/// What is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) scale: f32,
    pub(super) source: String,
    pub(super) commit: Option<CommitId>,
    /// In the folder that is followed.
    pub(super) folder: Option<String>,
    pub(super) files: AdapterFiles,
    pub(super) base_commit: BaseCommitPolicy,
}

/// One adapter of one origin.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) wish: Wish,
    pub(super) state: LoadState,
    pub(super) job: Job,
    /// Whether its node cannot have its files for something that may pass.
    pub(super) is_hindered: bool,
    /// Which attempt a result must be of to count.
    pub(super) attempt: u64,
    /// Failed attempts at the same wish, one after the other.
    failures: u32,
    pub(super) serving: Option<Record>,
    pub(super) warning: Option<String>,
}

/// What is to be done for an entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Job {
    Nothing,
    /// Load what is wished for.
    Due,
    Running,
    /// It was tried and failed. Once more at that time, unless the files are still those that
    /// cannot be.
    Later {
        at: Instant,
        unless: Option<Stamps>,
    },
}

/// An adapter that was loaded, in memory or in its files.
#[derive(Debug)]
pub(super) struct Record {
    /// No other has it.
    pub(super) id: u64,
    pub(super) files: AdapterFiles,
    pub(super) folder: Option<String>,
    pub(super) digest: AdapterDigest,
    pub(super) rank: usize,
    pub(super) sha256: String,
    pub(super) size: u64,
    /// In seconds since 1970.
    pub(super) loaded_at: u64,
    pub(super) bytes: u64,
    pub(super) revision: Option<String>,
    pub(super) scale: f32,
    pub(super) residence: Residence,
    /// The greatest was used last.
    pub(super) used: u64,
}

/// Where a [`Record`]'s adapter is.
#[derive(Clone, Debug)]
pub(super) enum Residence {
    /// In its files only.
    Files,
    /// It is being brought back.
    Coming(Coming),
    Here(Arc<Resident>),
}

/// An adapter that will be there, or why not.
pub(super) type Coming = Shared<oneshot::Receiver<Result<Arc<Resident>, String>>>;

/// An attached adapter with the room that it takes. Requests that run with it have a clone.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) adapter: Adapter,
    /// Given back after the adapter, which is declared before it.
    pub(super) _room: Room,
}

impl Entry {
    /// One that nothing was done for yet.
    pub(super) fn new(wish: Wish) -> Self {
        Self {
            wish,
            state: LoadState::Loading,
            job: Job::Nothing,
            is_hindered: false,
            attempt: 0,
            failures: 0,
            serving: None,
            warning: None,
        }
    }

    /// What is wished for is to be loaded now. What an earlier attempt finds does not count.
    pub(super) fn load(&mut self) {
        self.state = LoadState::Loading;
        self.job = Job::Due;
        self.is_hindered = false;
        self.attempt += 1;
        self.failures = 0;
    }

    /// Nothing is to be done until somebody says so.
    pub(super) fn rest(&mut self, state: LoadState) {
        self.state = state;
        self.job = Job::Nothing;
        self.is_hindered = false;
        self.attempt += 1;
        self.failures = 0;
    }

    /// What is wished for cannot be had; what is served by the name goes on.
    pub(super) fn fail(&mut self, error: &PackError, stamps: Stamps, timing: &Timing) {
        self.state = failed(error);
        let pause = timing.min_retry * 2_u32.pow(self.failures.min(16));
        self.failures += 1;
        self.attempt += 1;
        self.job = Job::Later {
            at: Instant::now() + pause.min(timing.max_retry),
            unless: error.is_final.then_some(stamps),
        };
    }

    /// The files are still those that cannot be.
    pub(super) fn not_yet(&mut self, stamps: Stamps, pause: Duration) {
        self.job = Job::Later {
            at: Instant::now() + pause,
            unless: Some(stamps),
        };
    }

    /// `record` answers from now on.
    pub(super) fn serve(&mut self, record: Record, warning: Option<String>) {
        self.serving = Some(record);
        self.warning = warning;
        self.rest(LoadState::Loaded);
    }

    /// Another has its name.
    pub(super) fn give_way(&mut self, why: &str) {
        self.serving = None;
        self.warning = None;
        self.rest(LoadState::Failed {
            reason: NAME_TAKEN.to_owned(),
            message: why.to_owned(),
        });
    }

    /// Whether it had to give way.
    pub(super) fn gave_way(&self) -> bool {
        matches!(&self.state, LoadState::Failed { reason, .. } if reason == NAME_TAKEN)
    }

    /// What is served, if it was loaded from the folder that is wished for.
    pub(super) fn current(&mut self) -> Option<&mut Record> {
        let folder = self.wish.folder.as_ref();
        let record = self.serving.as_mut()?;
        (folder.is_some() && record.folder.as_ref() == folder).then_some(record)
    }
}

impl Record {
    pub(super) fn resident(&self) -> Option<&Arc<Resident>> {
        match &self.residence {
            Residence::Here(resident) => Some(resident),
            Residence::Files | Residence::Coming(_) => None,
        }
    }

    /// What is told of it.
    pub(super) fn serving(&self) -> Serving {
        Serving {
            digest: self.digest.to_string(),
            rank: u32::try_from(self.rank).unwrap_or(u32::MAX),
            sha256: self.sha256.clone(),
            size: self.size,
            loaded_at: self.loaded_at,
            bytes: self.bytes,
            resident: self.resident().is_some(),
        }
    }
}

/// As it is told.
pub(super) fn failed(error: &PackError) -> LoadState {
    LoadState::Failed {
        reason: error.reason.clone(),
        message: error.message.clone(),
    }
}

/// What its user should know of an adapter that says it was trained on `revision`, where `commit` is
/// served.
///
/// # Errors
/// It is not to be served.
pub(super) fn base_commit(
    policy: BaseCommitPolicy,
    revision: Option<&str>,
    commit: Option<&str>,
) -> Result<Option<String>, PackError> {
    let is_commit = |text: &&str| {
        (7..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let (Some(revision), Some(commit)) = (revision.filter(is_commit), commit) else {
        return Ok(None);
    };
    if policy == BaseCommitPolicy::Ignore || commit.starts_with(&revision.to_ascii_lowercase()) {
        return Ok(None);
    }
    let message = format!("it was made for the commit {revision} of the model, and {commit} runs");
    match policy {
        BaseCommitPolicy::Require => Err(PackError::new("BaseCommitMismatch", message, true)),
        _ => Ok(Some(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_of_another_commit_is_refused_or_told_as_is_wished() {
        use BaseCommitPolicy::{Ignore, Require, Warn};
        let served = "0123456789abcdef0123456789abcdef01234567";
        let other = "fedcba9";
        let check = |policy, revision: Option<&str>| base_commit(policy, revision, Some(served));
        let refused = check(Require, Some(other)).unwrap_err();
        assert_eq!(refused.reason, "BaseCommitMismatch");
        let warning = check(Warn, Some(other)).unwrap().unwrap();
        for text in [&refused.message, &warning] {
            assert!(text.contains(other) && text.contains(served), "{text}");
        }
        let fine = Ok(None);
        assert_eq!(check(Ignore, Some(other)), fine);
        for same in ["0123456", "0123456789ABCDEF", served] {
            assert_eq!(check(Require, Some(same)), fine, "{same}");
        }
        // A branch, something short, and nothing at all are no commits.
        for none in [Some("main"), Some("fedcba"), Some(""), None] {
            assert_eq!(check(Require, none), fine, "{none:?}");
        }
        assert_eq!(base_commit(Require, Some(other), None), fine);
    }
}
