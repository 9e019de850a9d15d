//! Removing what nobody needs any more.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use crate::{layout::Layout, names::Repository, state::State};

/// All repositories of the root. Folders with other names are passed over.
pub(crate) fn repositories(layout: &Layout) -> Vec<Repository> {
    let mut found = Vec::new();
    for name in folder(&layout.root().join("mirror")) {
        if let Some(Ok(id)) = name.strip_suffix(".git").map(str::parse) {
            found.push(Repository::Mirror(id));
        }
    }
    let git = layout.root().join("git");
    for namespace in folder(&git) {
        for name in folder(&git.join(&namespace)) {
            let name = name.strip_suffix(".git").map(str::parse);
            if let (Ok(namespace), Some(Ok(name))) = (namespace.parse(), name) {
                found.push(Repository::Pushed { namespace, name });
            }
        }
    }
    found
}

/// Empties the folders of what was being made or removed when the last process ended.
pub(crate) fn clear(layout: &Layout) {
    for parent in [layout.tmp(), layout.trash()] {
        for name in folder(&parent) {
            let path = parent.join(name);
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            if let Err(error) = removed {
                tracing::warn!(%error, ?path, "a leftover could not be removed");
            }
        }
    }
}

/// Removes the mirrors that nobody used for `keep` and no worker has adapters of, then the objects
/// that no repository has and that are older than `keep`. Pushed repositories and their objects
/// always stay.
pub(crate) fn collect(state: &State, keep: Duration) {
    let layout = &state.layout;
    for repository in repositories(layout) {
        if !matches!(repository, Repository::Mirror(_)) || state.mirrors.is_busy(&repository) {
            continue;
        }
        let path = layout.repository(&repository);
        let used = age(&path.join("hyprstream/used")).or_else(|| age(&path.join("HEAD")));
        // Last, since it reads every list: few mirrors are old enough for it to matter.
        if used.is_none_or(|used| used < keep) || state.adapters.names(&repository) {
            continue;
        }
        match remove(state, &repository) {
            Ok(_) => tracing::info!(%repository, "removed a mirror that nobody used"),
            Err(error) => tracing::warn!(%repository, %error, "a mirror could not be removed"),
        }
    }
    collect_objects(state, keep);
}

/// Removes a repository: out of sight at once, then from the disk. Whether it was there.
pub(crate) fn remove(state: &State, repository: &Repository) -> io::Result<bool> {
    state.mirrors.forget(repository);
    take_away(state, repository)
}

/// The same, for one whose job goes on.
pub(crate) fn take_away(state: &State, repository: &Repository) -> io::Result<bool> {
    let path = state.layout.repository(repository);
    let trash = tempfile::Builder::new()
        .prefix("gone-")
        .tempdir_in(state.layout.trash())?;
    match fs::rename(&path, trash.path().join("repository.git")) {
        Ok(()) => trash.close().map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Objects of a removed repository may just be on their way into another one that a client is
/// pushing to: they are collected after this time.
const MIN_AGE: Duration = Duration::from_mins(10);

/// Plans to collect objects, so that also the next process does it.
pub(crate) fn plan(layout: &Layout) -> io::Result<()> {
    fs::write(planned(layout), b"")
}

/// Collects objects if that was planned long enough ago.
pub(crate) fn keep_plan(state: &State) {
    if age(&planned(&state.layout)).is_some_and(|age| age >= MIN_AGE) {
        // A plan that is made from here on is another one.
        let _ = fs::remove_file(planned(&state.layout));
        collect_objects(state, MIN_AGE);
    }
}

fn planned(layout: &Layout) -> std::path::PathBuf {
    layout.root().join("collect-objects")
}

/// Removes the objects that no repository has and that nobody used for `min_age`.
pub(crate) fn collect_objects(state: &State, min_age: Duration) {
    // What a repository has is linked there, and so is kept without being listed; what is on its
    // way into one is listed.
    match state
        .layout
        .store()
        .gc(&state.mirrors.claims.in_flight(), min_age)
    {
        Ok(gone) => tracing::info!(files = gone.files, bytes = gone.bytes, "collected objects"),
        Err(error) => {
            let error = crate::refusal::chain(&error);
            tracing::warn!(error, "objects could not be collected");
        }
    }
}

/// Whether packs came or went lately.
pub(crate) fn changed_within(repository: &Path, time: Duration) -> bool {
    age(&repository.join("objects/pack")).is_some_and(|age| age < time)
}

/// Time since the file was changed; `None` if it is not there.
pub(crate) fn age(path: &Path) -> Option<Duration> {
    let modified = fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()?;
    // A time in the future is no age; the file then counts as new.
    Some(
        SystemTime::now()
            .duration_since(modified)
            .unwrap_or_default(),
    )
}

fn folder(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
