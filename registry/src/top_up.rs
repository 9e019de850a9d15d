//! `POST /api/v1/forks` with a commit, for a repository that is there: it is given what it lacks of
//! the commit, and keeps all that it has.
//!
//! LFS objects first, each by a second name, then git's objects by a fetch of git's own from the
//! other repository on the same disk, which also knows what of a shallow history is to be noted,
//! and last the ref `refs/hyprstream/commits/<commit>`, which fetch writes when all of it is here.
//! So after a kill at any point the same call goes on. With that ref the commit stays, and a child
//! of it can be pushed by who has nothing but it.

use std::{fs::File, io, path::Path, sync::Arc};

use axum::http::StatusCode;
use hyprstream_contract::{registry::reason, repositories::Fork};
use hyprstream_git2db::{
    CommitId, Include, RepoError,
    lfs::Pointer,
    repo,
    tree::{self, Limits, TreeError},
};

use crate::{
    access::Access,
    commits::of_repository,
    let_go,
    names::Repository,
    pins,
    refusal::Refusal,
    scrub,
    state::{State, blocking},
};

/// What git is started with to give the commit away. It hears nothing of the settings of the git
/// that asks.
const UPLOAD_PACK: &str = "git -c 'safe.directory=*' -c uploadpack.allowAnySHA1InWant=true \
                           -c core.hooksPath=/dev/null -c pack.threads=1 upload-pack";

/// Refuses if the commit is not in the repository.
async fn require_commit(
    state: &Arc<State>,
    from: &Repository,
    commit: &CommitId,
) -> Result<(), Refusal> {
    let (path, wanted) = (state.layout.repository(from), commit.clone());
    let found = blocking(move || repo::has_commit(&path, &wanted)).await?;
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            reason::REFERENCE_NOT_FOUND,
            format!("commit {commit} is not in {from}"),
            false,
        )),
        Err(error) => Err(of_repository(&error)),
    }
}

/// Refuses if the commit or one of its LFS objects is not in the repository.
pub(crate) async fn require_whole(
    state: &Arc<State>,
    from: &Repository,
    commit: &CommitId,
) -> Result<(), Refusal> {
    require_commit(state, from, commit).await?;
    let (looking, source, wanted) = (Arc::clone(state), from.clone(), commit.clone());
    let whole = blocking(move || give_objects(&looking, &source, &source, &wanted)).await?;
    whole.map(drop).map_err(|error| refusal(error, from))
}

/// Gives the target what it lacks of a commit of `from`. The objects of the commit that it then
/// has, and their bytes.
pub(crate) async fn top_up(
    state: &Arc<State>,
    from: &Repository,
    target: &Access,
    commit: &CommitId,
) -> Result<Fork, Refusal> {
    require_commit(state, from, commit).await?;
    let path = state.layout.repository(&target.repository);
    // A branch that is kept short meanwhile could let go of what was just found.
    let Some(_alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "a push to that repository takes long; try again",
        ));
    };
    let _place = state.git.place(&target.share()).await?;
    let (giving, source, to, wanted) = (
        Arc::clone(state),
        from.clone(),
        target.repository.clone(),
        commit.clone(),
    );
    let given = blocking(move || give_objects(&giving, &source, &to, &wanted)).await?;
    let (objects, shared_bytes) = given.map_err(|error| refusal(error, from))?;
    let failed = |error: &io::Error| {
        scrub::suspect_repository(state, from);
        State::io_refusal("taking up a commit", error)
    };
    let kept = format!("refs/hyprstream/commits/{commit}");
    if *from == target.repository {
        let whole = ["rev-list", "--objects", "--quiet", commit.as_str()];
        let whole = state.git.run(&path, &whole).await;
        whole.map_err(|error| failed(&error))?;
        let keep = ["update-ref", &kept, commit.as_str()];
        let keep = state.git.run(&path, &keep).await;
        keep.map_err(|error| failed(&error))?;
    } else {
        let source = state.layout.repository(from);
        let source = source.to_string_lossy();
        let wanted = format!("+{commit}:{kept}");
        let fetch = [
            "-c",
            "fetch.unpackLimit=1",
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--update-shallow",
            "--upload-pack",
            UPLOAD_PACK,
            &source,
            &wanted,
        ];
        let fetched = state.git.run(&path, &fetch).await;
        fetched.map_err(|error| failed(&error))?;
        sync_shallow(&path).map_err(|error| failed(&error))?;
    }
    pins::touch(&path, commit);
    Ok(Fork {
        repository: target.repository.to_string(),
        objects,
        shared_bytes,
    })
}

/// Why the objects of a commit were not given.
#[derive(Debug, thiserror::Error)]
enum NotGiven {
    #[error("the files of the commit cannot be read")]
    Tree(#[source] TreeError),
    #[error("LFS object {oid} cannot be given")]
    Member { oid: String, source: io::Error },
    #[error("{why}")]
    Missing { why: String },
}

/// Gives the target the commit's LFS objects. How many of them it then has, and their bytes.
/// Blocks.
///
/// A mirror has the objects of those files alone that Models asked for; the others are missing in
/// both, as in any fork of it.
fn give_objects(
    state: &State,
    from: &Repository,
    to: &Repository,
    commit: &CommitId,
) -> Result<(u64, u64), NotGiven> {
    let layout = &state.layout;
    let path = layout.repository(from);
    let entries = tree::walk(&path, commit, &Include::all(), &Limits::default());
    let (mut objects, mut bytes) = (0, 0);
    for Pointer { oid, size } in tree::pointers(&entries.map_err(NotGiven::Tree)?) {
        let failed = |source| NotGiven::Member {
            oid: oid.to_string(),
            source,
        };
        let has = |repository: &Repository| layout.member_size(repository, &oid);
        if has(to).map_err(failed)? != Some(size) {
            if has(from).map_err(failed)? == Some(size) {
                layout.add_member(to, &oid).map_err(failed)?;
            } else if matches!(from, Repository::Mirror(_)) {
                continue;
            } else {
                let why = let_go::why(layout, from, &oid).unwrap_or_else(|| {
                    format!("LFS object {oid} of commit {commit} is not in {from}: push it")
                });
                return Err(NotGiven::Missing { why });
            }
        }
        objects += 1;
        bytes += size;
    }
    Ok((objects, bytes))
}

fn refusal(error: NotGiven, from: &Repository) -> Refusal {
    let refused =
        |reason, message| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason, message, false);
    match error {
        NotGiven::Missing { why } => refused(reason::MISSING_OBJECT, why),
        NotGiven::Member { source, .. } => State::io_refusal("giving LFS objects", &source),
        NotGiven::Tree(TreeError::Repo(RepoError::DiskFull { .. })) => {
            Refusal::disk_full("no space is left on the registry")
        }
        NotGiven::Tree(error) if error.reason() == reason::REFUSED_CONTENT => {
            refused(reason::REFUSED_CONTENT, format!("{from}: {error}"))
        }
        NotGiven::Tree(error) => Refusal::internal("reading a commit", &error),
    }
}

/// Git does not sync its note of where a history ends, without which the commit is half of one.
fn sync_shallow(repository: &Path) -> io::Result<()> {
    match File::open(repository.join("shallow")) {
        Ok(file) => file.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    File::open(repository)?.sync_all()
}
