//! Commits that Models were given: they stay when their branches move on.
//!
//! A ref keeps each, `refs/hyprstream/commits/<commit>`, and a note tells when it was last asked
//! for. Git packs refs, so that the time of a ref says nothing. With `--keep` a commit that nobody
//! asked for in that time, and that no list of adapters names, is let go: if nothing else leads to
//! it, git takes it away two weeks later.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use hyprstream_git2db::CommitId;

use crate::{collect, layout::make_folder, names::Repository, state::State};

/// Notes that a commit was asked for.
pub(crate) fn touch(repository: &Path, commit: &CommitId) {
    if let Err(error) = try_touch(repository, commit.as_str()) {
        tracing::debug!(%error, ?repository, "the use of a commit could not be noted");
    }
}

fn try_touch(repository: &Path, commit: &str) -> io::Result<()> {
    let folder = repository.join("hyprstream/pins");
    make_folder(&folder)?;
    fs::write(folder.join(commit), b"")
}

/// Lets the commits of a repository go that nobody asked for in the time `keep`.
pub(crate) async fn let_go(state: &Arc<State>, repository: &Repository, keep: Duration) {
    let path = state.layout.repository(repository);
    let arguments = [
        "for-each-ref",
        "--format=%(refname)",
        "refs/hyprstream/commits",
    ];
    let refs = match state.git.run(&path, &arguments).await {
        Ok(refs) => String::from_utf8_lossy(&refs).into_owned(),
        Err(error) => {
            tracing::warn!(%repository, %error, "the commits of Models cannot be listed");
            return;
        }
    };
    for name in refs.lines() {
        let Some(commit) = name.strip_prefix("refs/hyprstream/commits/") else {
            continue;
        };
        let note = path.join("hyprstream/pins").join(commit);
        let Some(unused) = collect::age(&note) else {
            // It comes from an older release: its time begins now.
            let _ = try_touch(&path, commit);
            continue;
        };
        if unused < keep || state.adapters.names_commit(repository, commit) {
            continue;
        }
        // Not while somebody pushes or git tidies, which lock refs.
        let Some(_alone) = state.git.try_alone(&path) else {
            return;
        };
        // It may have been asked for meanwhile.
        if collect::age(&note).is_none_or(|unused| unused < keep) {
            continue;
        }
        match state.git.run(&path, &["update-ref", "-d", name]).await {
            Ok(_) => {
                let _ = fs::remove_file(&note);
                tracing::info!(%repository, commit, "let a commit go that nothing uses");
            }
            Err(error) => tracing::warn!(%repository, commit, %error, "a commit was not let go"),
        }
    }
}
