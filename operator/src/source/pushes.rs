//! What follows a change of a repository of the registry: those who follow it are resolved at once,
//! and told who changed what.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use hyprstream_contract::registry::{Change, ChangeKind};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Sources;
use crate::{
    chain,
    registry::Registry,
    reporting::events::{Event, Recorder},
};

/// Events that may wait to be written. What comes beyond is left out: nobody waits for them, and
/// the registry's audit log has all.
const QUEUE: usize = 1024;

/// Tells `sources` of every push to the registry, and the objects concerned by events. Never ends
/// by itself.
pub async fn follow_pushes(registry: Registry, sources: Arc<Sources>, recorder: Recorder) {
    let (tell, mut told) = mpsc::channel::<(ObjectReference, Event)>(QUEUE);
    // Beside, so that an API server that is slow delays no commit.
    let _writer = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some((regarding, event)) = told.recv().await {
            if let Err(error) = recorder.publish(regarding, &event).await {
                tracing::warn!(error = chain(&error), "cannot write an event of a push");
            }
        }
    }));
    let mut after = 0;
    let mut first = true;
    let mut pause = Duration::from_secs(1);
    loop {
        match registry.events(after).await {
            Ok(page) => {
                pause = Duration::from_secs(1);
                after = page.last;
                // What the tasks resolved before the first answer may be older than its events.
                if page.reset || first {
                    sources.pushed(None);
                }
                first = false;
                for event in &page.events {
                    tracing::debug!(
                        namespace = event.namespace,
                        repository = event.name,
                        "pushed to the registry"
                    );
                    let repository = (event.namespace.as_str(), event.name.as_str());
                    sources.pushed(Some(repository));
                    let Some(change) = &event.change else {
                        continue;
                    };
                    for regarding in sources.concerned(repository, change) {
                        if tell.try_send((regarding, told_of(change))).is_err() {
                            tracing::warn!("an event of a push is left out: too many wait");
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "cannot follow pushes to the registry"
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(15));
            }
        }
    }
}

/// Who changed what, for whom it concerns.
fn told_of(change: &Change) -> Event {
    let is_gone = change.new.as_deref().is_some_and(is_zero);
    let (reason, what) = match change.kind {
        ChangeKind::Push if is_gone => ("Deleted", "deleted"),
        ChangeKind::Push => ("Pushed", "pushed"),
        ChangeKind::Commit => ("Pushed", "committed"),
        ChangeKind::Merge => ("Merged", "merged"),
        ChangeKind::Fork => ("Forked", "forked"),
        ChangeKind::Delete => ("Deleted", "deleted"),
        ChangeKind::Other => ("Changed", "changed"),
    };
    let commit = |id: &Option<String>| id.clone().filter(|id| !is_zero(id));
    let mut note = match &change.reference {
        Some(reference) => format!("{reference} was {what}"),
        None => format!("the repository was {what}"),
    };
    if let Some(new) = commit(&change.new) {
        let _ = write!(note, ", it is at commit {new}");
    }
    if let Some(old) = commit(&change.old) {
        let _ = write!(note, ", before at {old}");
    }
    if let Some(bytes) = change.bytes {
        let _ = write!(note, ", {bytes} bytes");
    }
    // The end of a note is cut where it is too long: a name is the one part that others choose.
    let _ = write!(note, ", by {}", change.subject);
    Event::normal(reason, "Push", &note)
}

/// Git's name of nothing.
fn is_zero(id: &str) -> bool {
    id.bytes().all(|byte| byte == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: &Change, reason: &str, note: &str) {
        let event = told_of(change);
        assert_eq!((event.reason.as_str(), event.note.as_str()), (reason, note));
    }

    #[test]
    fn a_note_says_who_changed_what() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let push = Change {
            kind: ChangeKind::Push,
            subject: "system:serviceaccount:team-a:job-1".to_owned(),
            reference: Some("refs/heads/main".to_owned()),
            is_default: true,
            old: Some(a.clone()),
            new: Some(b.clone()),
            bytes: Some(812),
        };
        let note = format!(
            "refs/heads/main was pushed, it is at commit {b}, before at {a}, 812 bytes, by \
             system:serviceaccount:team-a:job-1"
        );
        check(&push, "Pushed", &note);
        let gone = Change {
            new: Some("0".repeat(40)),
            bytes: None,
            ..push.clone()
        };
        let note = format!(
            "refs/heads/main was deleted, before at {a}, by system:serviceaccount:team-a:job-1"
        );
        check(&gone, "Deleted", &note);
        let removed = Change {
            kind: ChangeKind::Delete,
            subject: "alice".to_owned(),
            reference: None,
            is_default: false,
            old: None,
            new: None,
            bytes: None,
        };
        check(&removed, "Deleted", "the repository was deleted, by alice");
    }
}
