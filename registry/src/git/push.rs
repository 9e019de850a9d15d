//! What follows a push, and what follows a kill in the middle of one.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{body::Body, http::StatusCode};
use futures::{FutureExt, StreamExt};

use super::{
    GitRunner,
    commands::{Command, Commands},
    judge::Verdict,
    process::{Finisher, Outcome},
};
use crate::{access::Access, audit, limits::GitLimits, refusal::Refusal, state::State};

/// Waits for other pushes to the repository. What it returns announces this one, keeps the
/// repository in order, and takes away what a refused push has left.
pub(super) async fn finisher(
    state: Arc<State>,
    access: Access,
    commands: Vec<Command>,
    path: PathBuf,
) -> Result<Finisher, Refusal> {
    let repository = access.repository.clone();
    let Some(alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "another push to this repository takes long; try again",
        ));
    };
    let before = Contents::of(&state.git, &path).await;
    Ok(Box::new(move |outcome: Outcome| {
        async move {
            let _alone = alone;
            // With 4 bytes git only asks whether it may push.
            if outcome.bytes_in <= 4 {
                return;
            }
            let result = if outcome.success {
                "success"
            } else {
                "failure"
            };
            state.metrics.pushes.with_label_values(&[result]).inc();
            if let Err(error) = choose_head(&state.git, &path).await {
                tracing::warn!(%repository, %error, "HEAD could not be set after a push");
            }
            drop_quarantine(&path);
            let after = Contents::of(&state.git, &path).await;
            let done = note(&state, &access, &commands, after.as_ref(), &outcome);
            let removed = before.and_then(|before| Some(before.drop_refused(&after?)));
            // Some refs may have moved even if the push as a whole failed.
            state.announce(&repository, &done);
            tracing::info!(%repository, result, ?removed, "push");
        }
        .boxed()
    }))
}

/// Tells the audit log which refs the sender may not change.
pub(super) fn note_refusals(
    state: &State,
    access: &Access,
    commands: &Commands,
    verdict: &Verdict,
) {
    let by_name: HashMap<_, _> = commands.list.iter().map(|c| (c.name.as_str(), c)).collect();
    for (name, reason) in &verdict.refused {
        let entry = access.entry("push").refused(reason.clone());
        state.audit.note(&match by_name.get(name.as_str()) {
            Some(command) => of(entry, command),
            None => entry,
        });
    }
}

/// Reads the rest of a push that git does not get to see: its sender hears nothing before it has
/// sent all of it.
pub(super) async fn pass_over(body: Body, limits: &GitLimits) -> Result<(), Refusal> {
    let mut stream = body.into_data_stream();
    let mut came = 0;
    loop {
        match tokio::time::timeout(limits.idle, stream.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(chunk))) => came += chunk.len() as u64,
            Ok(Some(Err(_))) => return Err(Refusal::bad_request("the push broke off")),
            Err(_) => return Err(Refusal::busy("the push sent nothing for too long")),
        }
        if came > limits.max_push_bytes {
            let message = format!("a push of more than {came} bytes is not taken");
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Err(Refusal::new(status, "BadRequest", message, false));
        }
    }
}

/// Tells the audit log what became of each ref that git was asked to change. What the refs name
/// now counts, whatever git had time to say. Returns what was done.
fn note(
    state: &State,
    access: &Access,
    commands: &[Command],
    after: Option<&Contents>,
    outcome: &Outcome,
) -> Vec<audit::Entry> {
    let mut all_done = Vec::new();
    let refs = after.map(Contents::names).unwrap_or_default();
    let said: HashMap<_, _> = outcome.report.results().iter().cloned().collect();
    for command in commands {
        let mut entry = of(access.entry("push"), command);
        entry.bytes = Some(outcome.bytes_in);
        let done = match refs.get(command.name.as_str()) {
            Some(now) => *now == command.new,
            None => after.is_some() && command.change() == super::commands::Change::Delete,
        };
        if !done {
            entry.result = audit::Outcome::Failed;
            entry.reason = said.get(&command.name).cloned().flatten();
        }
        state.audit.note(&entry);
        if done {
            all_done.push(entry);
        }
    }
    all_done
}

fn of(mut entry: audit::Entry, command: &Command) -> audit::Entry {
    entry.reference = Some(command.name.clone());
    entry.old = Some(command.old.clone());
    entry.new = Some(command.new.clone());
    entry
}

/// What a repository holds.
struct Contents {
    refs: Vec<u8>,
    packs: HashSet<PathBuf>,
}

impl Contents {
    async fn of(git: &GitRunner, repository: &Path) -> Option<Self> {
        let refs = git.run(repository, &["for-each-ref"]).await.ok()?;
        let entries = fs::read_dir(repository.join("objects/pack")).ok()?;
        let packs = entries.flatten().map(|entry| entry.path()).collect();
        Some(Self { refs, packs })
    }

    /// What each ref names.
    fn names(&self) -> HashMap<&str, &str> {
        let text = std::str::from_utf8(&self.refs).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let (id, rest) = line.split_once(' ')?;
                let (_, name) = rest.split_once('\t')?;
                Some((name, id))
            })
            .collect()
    }

    /// Removes the packs that have come since, if no ref has changed: git keeps the pack of a push
    /// of which it has refused every ref. Returns how many files went. Nobody else may push to the
    /// repository or tidy it meanwhile.
    fn drop_refused(&self, after: &Self) -> usize {
        if self.refs != after.refs {
            return 0;
        }
        let new = after.packs.difference(&self.packs);
        new.filter(|path| fs::remove_file(path).is_ok()).count()
    }
}

/// Removes what a push that was ended has left of its pack. Nobody else pushes meanwhile.
fn drop_quarantine(repository: &Path) {
    let Ok(entries) = fs::read_dir(repository.join("objects")) else {
        return;
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("tmp_objdir-")
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Lets `HEAD` name a branch that exists, if the one that it names does not: the first push to a
/// repository may be of `master`.
pub(crate) async fn choose_head(git: &GitRunner, path: &Path) -> std::io::Result<()> {
    if git
        .run(path, &["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])
        .await
        .is_ok()
    {
        return Ok(());
    }
    let branches = git
        .run(path, &["for-each-ref", "--format=%(refname)", "refs/heads"])
        .await?;
    let branches = String::from_utf8_lossy(&branches);
    let branches = branches.lines();
    // What a job makes is nobody's default: its own branch would be safe from itself.
    let mut branches = branches.filter(|name| !name.starts_with("refs/heads/train/"));
    let Some(first) = branches.next() else {
        return Ok(());
    };
    let chosen = branches
        .find(|name| *name == "refs/heads/master")
        .unwrap_or(first);
    git.run(path, &["symbolic-ref", "HEAD", chosen])
        .await
        .map(drop)
}

/// Removes the locks and half packs that a killed git left in a repository. Returns how many.
///
/// Only what is older than `min_age` goes, so that a process that still runs keeps its own.
pub(crate) fn repair(repository: &Path, min_age: Duration) -> usize {
    let old = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|m| m.modified());
        let age = modified
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        age.is_some_and(|age| age >= min_age)
    };
    let mut removed = 0;
    let mut folders = vec![repository.join("refs")];
    let locks = |folder: &Path| -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else {
            return Vec::new();
        };
        entries.flatten().map(|entry| entry.path()).collect()
    };
    for path in locks(repository) {
        // The last one is not git's: it stays there, and whether it is held is up to the kernel.
        let is_lock =
            path.extension().is_some_and(|e| e == "lock") && !path.ends_with("hyprstream.lock");
        if is_lock && old(&path) {
            removed += usize::from(fs::remove_file(&path).is_ok());
        }
    }
    while let Some(folder) = folders.pop() {
        for path in locks(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "lock") && old(&path) {
                removed += usize::from(fs::remove_file(&path).is_ok());
            }
        }
    }
    for path in locks(&repository.join("objects")) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("tmp_objdir-") && old(&path) {
            removed += usize::from(fs::remove_dir_all(&path).is_ok());
        }
    }
    for path in locks(&repository.join("objects/pack")) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (name.starts_with("tmp_") || name.starts_with(".tmp-")) && old(&path) {
            removed += usize::from(fs::remove_file(&path).is_ok());
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_a_killed_push_go_and_branches_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "x").unwrap();
            path
        };
        let stale = [
            file("HEAD.lock"),
            file("packed-refs.lock"),
            file("refs/heads/feature/x.lock"),
            file("objects/tmp_objdir-incoming-abc/pack/p"),
            file("objects/pack/tmp_pack_abc"),
        ];
        let kept = [
            file("HEAD"),
            file("refs/heads/main"),
            file("objects/pack/pack-1.pack"),
        ];
        assert_eq!(repair(dir.path(), Duration::from_hours(1)), 0);
        assert_eq!(repair(dir.path(), Duration::ZERO), 5);
        assert!(stale.iter().all(|path| !path.exists()));
        assert!(kept.iter().all(|path| path.exists()));
    }
}
