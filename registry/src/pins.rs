//! Commits that Models were given: they stay when their branches move on.
//!
//! A ref keeps each, `refs/hyprstream/commits/<commit>`, and a note tells when it was last asked
//! for. Git packs refs, so that the time of a ref says nothing. With `--keep` a commit that nobody
//! asked for in that time, and that no list of adapters names, is let go: if nothing else leads to
//! it, git takes it away two weeks later.

use std::{fs, io, path::Path, time::Duration};

use hyprstream_git2db::CommitId;

use crate::{collect, git::GitRunner, layout::make_folder, names::Repository, state::State};

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
pub(crate) async fn let_go(state: &State, repository: &Repository, keep: Duration) {
    let path = state.layout.repository(repository);
    let in_use = |commit: &str| state.adapters.names_commit(repository, commit);
    match let_go_unused(&state.git, &path, keep, in_use).await {
        Ok(gone) if !gone.is_empty() => {
            tracing::info!(%repository, ?gone, "let commits go that nothing uses");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%repository, %error, "commits of Models are not let go"),
    }
}

/// The same; returns which went.
async fn let_go_unused(
    git: &GitRunner,
    path: &Path,
    keep: Duration,
    in_use: impl Fn(&str) -> bool,
) -> io::Result<Vec<String>> {
    let arguments = [
        "for-each-ref",
        "--format=%(refname)",
        "refs/hyprstream/commits",
    ];
    let refs = git.run(path, &arguments).await?;
    let mut gone = Vec::new();
    for name in String::from_utf8_lossy(&refs).lines() {
        let Some(commit) = name.strip_prefix("refs/hyprstream/commits/") else {
            continue;
        };
        let note = path.join("hyprstream/pins").join(commit);
        let is_unused = || collect::age(&note).is_some_and(|unused| unused >= keep);
        if !note.exists() {
            // It comes from an older release: its time begins now.
            try_touch(path, commit)?;
        } else if is_unused() && !in_use(commit) {
            // Not while somebody pushes or git tidies, which lock refs.
            let Some(_alone) = git.try_alone(path) else {
                return Ok(gone);
            };
            // It may have been asked for meanwhile.
            if is_unused() {
                git.run(path, &["update-ref", "-d", name]).await?;
                fs::remove_file(&note)?;
                gone.push(commit.to_owned());
            }
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use hyprstream_git2db::repo::init_bare;

    use super::*;
    use crate::{limits::GitLimits, metrics::Metrics};

    const DAY: Duration = Duration::from_hours(24);

    #[tokio::test]
    async fn commits_that_nobody_asked_for_in_that_time_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.git");
        init_bare(&path).unwrap();
        fs::create_dir_all(path.join("hyprstream")).unwrap();
        let running = Metrics::new().unwrap().git_processes;
        let git = GitRunner::new(GitLimits::default(), dir.path(), running);
        let tree = git
            .run(&path, &["hash-object", "-w", "-t", "tree", "/dev/null"])
            .await
            .unwrap();
        let tree = String::from_utf8(tree).unwrap().trim().to_owned();
        let mut commits = Vec::new();
        for message in ["old", "young", "used", "unknown"] {
            let author = [
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@example.org",
                "commit-tree",
                "-m",
                message,
                &tree,
            ];
            let made = git.run(&path, &author).await.unwrap();
            let commit: CommitId = String::from_utf8(made).unwrap().trim().parse().unwrap();
            let name = format!("refs/hyprstream/commits/{commit}");
            git.run(&path, &["update-ref", &name, commit.as_str()])
                .await
                .unwrap();
            commits.push(commit);
        }
        for commit in &commits[..3] {
            touch(&path, commit);
        }
        for commit in [&commits[0], &commits[2]] {
            let note = path.join("hyprstream/pins").join(commit.as_str());
            let note = fs::File::options().append(true).open(note).unwrap();
            note.set_modified(SystemTime::now() - 3 * DAY).unwrap();
        }
        // Git's tidying takes the files of refs away.
        git.run(&path, &["pack-refs", "--all"]).await.unwrap();
        let used = commits[2].to_string();
        let gone = let_go_unused(&git, &path, DAY, |commit| commit == used)
            .await
            .unwrap();
        assert_eq!(gone, [commits[0].to_string()]);
        let left = git.run(&path, &["for-each-ref"]).await.unwrap();
        assert_eq!(String::from_utf8(left).unwrap().lines().count(), 3);
        // One without a note has one now.
        let note = path.join("hyprstream/pins").join(commits[3].as_str());
        assert!(note.exists());
        let again = let_go_unused(&git, &path, DAY, |commit| commit == used).await;
        assert!(again.unwrap().is_empty());
    }
}
