//! What is known of the repositories that objects name.
//!
//! # Expected flow
//! A reconciliation calls [`Sources::observe`] with what its object asks for and gets what is known
//! by now. Behind it runs one task per object: resolve the reference, mirror the commit, wait for
//! the interval or for a wake-up, again. When something changes, the task triggers the
//! reconciliation of its object.
//!
//! # Guarantees
//! - A finding always belongs to the source that was observed last: another URL, reference or
//!   Secret name starts over.
//! - An error is tried again with growing pauses, never given up.
//! - A slow upstream takes one of [`SLOTS`], not a reconciliation, and those of one namespace at
//!   most half of them.
//! - Objects of one source share its answers, but a new object, a push and another `token` are
//!   answered with what was asked after them.
//!
//! # Caveats
//! Findings live in memory. After a restart every reference is resolved once more, and until then
//! a reconciliation keeps to what the cluster holds.

mod pushes;
mod resolve;
mod secret;
mod spec;
mod task;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyprstream_api::Model;
use hyprstream_contract::{
    CommitId,
    registry::{Change, Reference},
};
use hyprstream_slots::Slots;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Resource as _};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use self::resolve::Resolver;
pub use self::{pushes::follow_pushes, spec::InvalidSource};
use crate::{
    kind::{Subject, Trigger},
    registry::Registry,
};

/// How many upstreams are asked at once.
const SLOTS: usize = 32;

/// What an object asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceKey {
    /// Namespace of the object.
    pub namespace: String,
    /// URL of the repository.
    pub url: String,
    /// What to follow.
    pub reference: Reference,
    /// Globs of the files.
    pub include: Vec<String>,
    /// Name of the Secret with credentials.
    pub secret: Option<String>,
    /// How often to resolve.
    pub interval: Duration,
}

/// What is known of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The commit that the reference names.
    pub latest: Option<CommitId>,
    /// `latest` lies complete on the registry, here.
    pub mirrored: Option<Mirrored>,
    /// How far `latest` is.
    pub download: Option<Progress>,
    /// Why the last step failed. What was found before it stays.
    pub problem: Option<Problem>,
}

/// A commit that lies complete on the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The commit.
    pub commit: CommitId,
    /// Path of the repository on the registry.
    pub repository: String,
    /// Size of its LFS objects.
    pub size_bytes: u64,
}

/// A commit that workers are made of, whatever the reference names by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// URL that it came from.
    pub url: String,
    /// Name of the Secret with credentials for it.
    pub secret: Option<String>,
    /// The commit.
    pub commit: CommitId,
    /// Globs of its files.
    pub include: Vec<String>,
}

/// Bytes on the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there.
    pub done_bytes: u64,
    /// Bytes in all, 0 while unknown.
    pub total_bytes: u64,
}

/// Why a source cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// CamelCase reason.
    pub reason: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether it may go away without an edit or a push.
    pub retriable: bool,
}

/// All tasks and their findings.
pub struct Sources {
    shared: Arc<Shared>,
    trigger: Trigger,
    entries: Mutex<HashMap<String, Entry>>,
}

/// How often what is done. Tests hurry.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Pause after the first failure; it doubles up to `last_pause`.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub last_pause: Duration,
    /// How often the Secret is looked at while its credentials do not work.
    pub secret: Duration,
    /// How often the registry is asked while it fetches.
    pub poll: Duration,
    /// How often progress is reported at most.
    pub report: Duration,
    /// How often the file of the workers' master key is looked at.
    pub key: Duration,
    /// How long the registry may be silent before that is reported, so that its restart is not.
    pub silence: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(5),
            last_pause: Duration::from_mins(5),
            secret: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            report: Duration::from_secs(3),
            key: Duration::from_secs(10),
            silence: Duration::from_secs(8),
        }
    }
}

/// What the tasks share.
struct Shared {
    pace: Pace,
    registry: Registry,
    client: Client,
    slots: Arc<Slots>,
    resolver: Resolver,
}

struct Entry {
    key: SourceKey,
    subject: Subject,
    token: Option<String>,
    wake: Arc<Notify>,
    findings: Arc<Mutex<Findings>>,
    serving: Arc<Mutex<Vec<Serving>>>,
    _task: AbortOnDropHandle<()>,
}

impl Sources {
    /// No tasks yet. Reconciliations are triggered through `trigger`.
    pub fn new(registry: Registry, client: Client, trigger: Trigger, pace: Pace) -> Self {
        let slots = Arc::new(Slots::new(SLOTS));
        let shared = Arc::new(Shared {
            pace,
            resolver: Resolver::new(registry.clone(), slots.clone()),
            registry,
            client,
            slots,
        });
        Self {
            shared,
            trigger,
            entries: Mutex::default(),
        }
    }

    /// What is known of the source of the object `subject` with `uid`; starts looking if nobody
    /// does. Another `token` than at the last call resolves at once.
    pub fn observe(
        &self,
        uid: &str,
        subject: &Subject,
        key: &SourceKey,
        token: Option<&str>,
    ) -> Findings {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(uid)
            && entry.key == *key
        {
            if entry.token.as_deref() != token {
                entry.token = token.map(str::to_owned);
                entry.wake.notify_one();
            }
            return entry
                .findings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
        }
        let wake = Arc::new(Notify::new());
        let findings = Arc::new(Mutex::new(Findings::default()));
        let serving = Arc::default();
        let task = task::Task {
            shared: self.shared.clone(),
            key: key.clone(),
            wake: wake.clone(),
            findings: findings.clone(),
            serving: Arc::clone(&serving),
            asked_for_serving: Mutex::default(),
            trigger: self.trigger.clone(),
            subject: subject.clone(),
        };
        let span = tracing::info_span!(
            parent: None,
            "source",
            kind = subject.kind,
            namespace = subject.namespace,
            object = subject.name,
        );
        let task = AbortOnDropHandle::new(tokio::spawn(task.run().instrument(span)));
        let token = token.map(str::to_owned);
        entries.insert(
            uid.to_owned(),
            Entry {
                key: key.clone(),
                subject: subject.clone(),
                token,
                wake,
                findings,
                serving,
                _task: task,
            },
        );
        Findings::default()
    }

    /// From now on the registry is asked for these commits too, at the interval of the source that
    /// the object with `uid` was last observed with, so that it does not let them go. Those of
    /// another URL are asked for with the Secret that they came with.
    pub fn keep(&self, uid: &str, serving: Vec<Serving>) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(uid) {
            *entry.serving.lock().unwrap_or_else(PoisonError::into_inner) = serving;
        }
    }

    /// What is known of that source, if the object with `uid` was last observed with it.
    pub fn known(&self, uid: &str, key: &SourceKey) -> Findings {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(uid).filter(|entry| entry.key == *key);
        entry.map_or_else(Findings::default, |entry| {
            let findings = entry.findings.lock();
            findings.unwrap_or_else(PoisonError::into_inner).clone()
        })
    }

    /// Stops looking at the source of the object with `uid`.
    pub fn forget(&self, uid: &str) {
        self.entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    /// Stops looking at the sources of all objects that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|uid, _| keep(uid));
    }

    /// The objects that follow what changed in a repository of the registry.
    pub fn concerned(&self, repository: (&str, &str), change: &Change) -> Vec<ObjectReference> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let follows = |entry: &Entry| {
            own_repository(&entry.key.url) == Some(repository)
                && change.concerns(&entry.key.reference)
        };
        entries
            .iter()
            .filter(|(_, entry)| follows(entry))
            .map(|(uid, entry)| ObjectReference {
                api_version: Some(Model::api_version(&()).into_owned()),
                kind: Some(entry.subject.kind.to_owned()),
                namespace: Some(entry.subject.namespace.clone()),
                name: Some(entry.subject.name.clone()),
                uid: Some(uid.clone()),
                ..ObjectReference::default()
            })
            .collect()
    }

    /// Resolves at once what follows a repository of the registry; `None` for all of them.
    pub fn pushed(&self, repository: Option<(&str, &str)>) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.values() {
            let Some(own) = own_repository(&entry.key.url) else {
                continue;
            };
            if repository.is_none_or(|pushed| pushed == own) {
                entry.wake.notify_one();
            }
        }
    }
}

/// Namespace and name of a repository on the registry, if the URL names one.
pub fn own_repository(url: &str) -> Option<(&str, &str)> {
    let (namespace, name) = url.strip_prefix("hyprstream://")?.split_once('/')?;
    let name = name.trim_end_matches('/');
    Some((namespace, name.strip_suffix(".git").unwrap_or(name)))
}

#[cfg(test)]
mod tests {
    use super::own_repository;

    #[test]
    fn own_repositories_are_named_by_namespace_and_name() {
        assert_eq!(
            own_repository("hyprstream://default/m"),
            Some(("default", "m"))
        );
        assert_eq!(
            own_repository("hyprstream://default/m.git/"),
            Some(("default", "m"))
        );
        assert_eq!(own_repository("https://default/m"), None);
    }
}
