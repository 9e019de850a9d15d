//! `POST /api/v1/forks`: a repository that begins with all that another one has.
//!
//! Nothing is sent and nothing is copied: packs, loose objects and LFS objects get a second name
//! (hard links). So neither of the two depends on the other afterwards: what git tidies in one, or
//! a removal of it, takes a name away and no bytes from the other, and a later push of LFS to the
//! fork sends only what is new. The fork is made aside, read through by git, made durable and then
//! put into its place by one rename; what a killed process left is swept at the next start.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{Json, body::Bytes, extract::State as AxumState, http::StatusCode};
use hyprstream_contract::repositories::{ALREADY_EXISTS, Fork, ForkRequest};
use hyprstream_git2db::{CommitId, Digest};

use crate::{
    access::{Access, Who},
    api::parse,
    auth::{Principal, Verb},
    layout::{Layout, make_folder},
    mirrors::readers::{self, Readers},
    names::Repository,
    refusal::Refusal,
    state::{State, blocking},
    top_up,
};

/// `POST /api/v1/forks`
pub(crate) async fn fork(
    AxumState(state): AxumState<Arc<State>>,
    Who(principal): Who,
    body: Bytes,
) -> Result<(StatusCode, Json<Fork>), Refusal> {
    let request: ForkRequest = parse(&body)?;
    let source = Access::named(&request.from, principal.clone())?;
    let target = Access::named(&request.to, principal)?;
    if target.is_mirror() {
        return Err(Refusal::bad_request(
            "a fork is made as NAMESPACE/NAME; only the registry makes mirrors",
        ));
    }
    let from = readable(&state, &source).await?;
    let commit = match &request.commit {
        Some(commit) => {
            let parsed: Result<CommitId, _> = commit.as_str().parse();
            let parsed = parsed.map_err(|_| Refusal::bad_request("`commit` is no commit"))?;
            Some(parsed)
        }
        None => None,
    };
    let is_there = state.layout.exists(&target.repository);
    let may_top_up = target.principal == Principal::Admin;
    if is_there && commit.is_some() && !may_top_up {
        let message = "only the control plane gives commits to a repository that exists: push them";
        return Err(target.refuse(&state, "fork", message));
    }
    if !is_there || commit.is_none() {
        require_create(&state, &target).await?;
    }
    state.require_space(0)?;
    let mut made = None;
    if !is_there {
        if let Some(commit) = &commit {
            top_up::require_whole(&state, &from, commit).await?;
        }
        if state.mirrors.is_busy(&from) {
            return Err(Refusal::busy(
                "this mirror is being fetched; try again later",
            ));
        }
        made = match make(&state, &from, &target, commit.as_ref()).await {
            // Somebody else was faster with the same.
            Err(refusal) if refusal.reason == ALREADY_EXISTS && commit.is_some() && may_top_up => {
                None
            }
            made => Some(made?),
        };
    }
    let mut entry = target.entry("fork");
    entry.from = Some(from.to_string());
    entry.new = commit.as_ref().map(ToString::to_string);
    if made.is_some() {
        state.announce(&target.repository, std::slice::from_ref(&entry));
    }
    let answer = match (made, &commit) {
        (Some(made), _) => made,
        (None, Some(commit)) => top_up::top_up(&state, &from, &target, commit).await?,
        (None, None) => return Err(taken(&target.repository)),
    };
    state.audit.note(&entry);
    tracing::info!(%from, to = %target.repository, objects = answer.objects, "fork");
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn require_create(state: &State, target: &Access) -> Result<(), Refusal> {
    if target.may(state, Verb::Create).await? {
        return Ok(());
    }
    let message = format!(
        "this token does not allow making {}: ask for the right `create`",
        target.repository
    );
    Err(target.refuse(state, "fork", message))
}

/// The source, if whoever asks may read it. A mirror without credentials anyone may read, one with
/// credentials those who read every repository of the namespace whose they are.
async fn readable(state: &Arc<State>, source: &Access) -> Result<Repository, Refusal> {
    let repository = &source.repository;
    if matches!(repository, Repository::Mirror(_)) && state.layout.exists(repository) {
        let who = &source.principal;
        let may = match readers::of(&state.layout, repository) {
            Some(Readers::All) => true,
            Some(Readers::Namespace(owner)) => state.auth.allows_in(who, &owner, Verb::Get).await?,
            None => false,
        };
        if may {
            return Ok(repository.clone());
        }
    }
    source.readable(state).await.cloned()
}

async fn make(
    state: &Arc<State>,
    from: &Repository,
    target: &Access,
    commit: Option<&CommitId>,
) -> Result<Fork, Refusal> {
    let share = target.share();
    let target = &target.repository;
    let path = state.layout.repository(from);
    // Neither a push nor git's tidying changes packs and refs meanwhile.
    let Some(_alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "a push to that repository takes long; try again",
        ));
    };
    let _place = state.git.place(&share).await?;
    let failed = |error: &io::Error| State::io_refusal("making the fork", error);
    let mut arguments = vec!["for-each-ref", "--format=%(objectname) %(refname)"];
    arguments.extend(["refs/heads", "refs/tags"]);
    if matches!(from, Repository::Mirror(_)) {
        // Often nothing else names the commits that Models were given.
        arguments.push("refs/hyprstream/commits");
    }
    let refs = state.git.run(&path, &arguments).await;
    let mut refs = refs.map_err(|error| failed(&error))?;
    if let Some(commit) = commit {
        let line = format!("{commit} refs/hyprstream/commits/{commit}\n");
        if !String::from_utf8_lossy(&refs).contains(&line) {
            refs.extend(line.into_bytes());
        }
    }
    let (making, source, to) = (Arc::clone(state), from.clone(), target.clone());
    let linked = blocking(move || link(&making.layout, &source, &to, &refs)).await?;
    let linked = linked.map_err(|error| failed(&error))?;
    // What is not whole is not put into its place.
    let whole = ["rev-list", "--objects", "--all", "--quiet"];
    state.git.run(&linked.path, &whole).await.map_err(|error| {
        crate::scrub::suspect_repository(state, from);
        failed(&error)
    })?;
    let (placing, to) = (Arc::clone(state), target.clone());
    let (placed, objects, bytes) = blocking(move || {
        let placed = sync_all(&linked.path).and_then(|()| {
            placing
                .layout
                .place(&linked.path, &to)
                .map_err(io::Error::other)
        });
        (placed, linked.objects, linked.bytes)
    })
    .await?;
    if !placed.map_err(|error| failed(&error))? {
        return Err(taken(target));
    }
    Ok(Fork {
        repository: target.to_string(),
        objects,
        shared_bytes: bytes,
    })
}

fn taken(repository: &Repository) -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        ALREADY_EXISTS,
        format!("{repository} is there already: choose another name"),
        false,
    )
}

/// A repository that has no place yet.
struct Linked {
    path: PathBuf,
    objects: u64,
    bytes: u64,
    /// Removes it, unless it got its place.
    _aside: tempfile::TempDir,
}

/// Makes a repository with second names of all that `from` has. Blocks.
fn link(layout: &Layout, from: &Repository, to: &Repository, refs: &[u8]) -> io::Result<Linked> {
    let (aside, path) = layout.aside(to).map_err(io::Error::other)?;
    let source = layout.repository(from);
    let mut bytes = 0;
    let names = |folder: &Path| -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
        entries
            .filter_map(|entry| name(entry).transpose())
            .collect()
    };
    let mut second_name = |below: &str| -> io::Result<()> {
        bytes += layout.second_name(&source.join(below), &path.join(below))?;
        Ok(())
    };
    // A pack without its index is one that is just coming in.
    for index in names(&source.join("objects/pack"))? {
        let Some(pack) = index.strip_suffix(".idx") else {
            continue;
        };
        second_name(&format!("objects/pack/{pack}.pack"))?;
        second_name(&format!("objects/pack/{pack}.idx"))?;
    }
    for folder in names(&source.join("objects"))? {
        if !is_hex(&folder, 2) {
            continue;
        }
        make_folder(&path.join("objects").join(&folder))?;
        for object in names(&source.join("objects").join(&folder))? {
            if is_hex(&object, 38) {
                second_name(&format!("objects/{folder}/{object}"))?;
            }
        }
    }
    let mut objects = 0;
    for first in names(&source.join("hyprstream/lfs"))? {
        make_folder(&path.join("hyprstream/lfs").join(&first))?;
        for second in names(&source.join("hyprstream/lfs").join(&first))? {
            let folder = format!("hyprstream/lfs/{first}/{second}");
            make_folder(&path.join(&folder))?;
            for oid in names(&source.join(&folder))? {
                if oid.parse::<Digest>().is_ok() {
                    second_name(&format!("{folder}/{oid}"))?;
                    objects += 1;
                }
            }
        }
    }
    // What was let go there is missing here too, and the same is said of it.
    let let_go = source.join("hyprstream/let-go");
    for oid in names(&let_go)? {
        make_folder(&path.join("hyprstream/let-go"))?;
        fs::copy(let_go.join(&oid), path.join("hyprstream/let-go").join(oid))?;
    }
    fs::write(path.join("packed-refs"), refs)?;
    fs::copy(source.join("HEAD"), path.join("HEAD"))?;
    if source.join("shallow").exists() {
        fs::copy(source.join("shallow"), path.join("shallow"))?;
    }
    Ok(Linked {
        path,
        objects,
        bytes,
        _aside: aside,
    })
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Makes all folders and the small files of a new repository durable. What got a second name is.
fn sync_all(repository: &Path) -> io::Result<()> {
    let mut folders = vec![repository.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        File::open(&folder)?.sync_all()?;
    }
    for name in ["HEAD", "config", "packed-refs", "shallow"] {
        match File::open(repository.join(name)) {
            Ok(mut file) => file.flush().and_then(|()| file.sync_all())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
