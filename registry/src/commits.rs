//! `POST /api/v1/commits`: a commit of files on a branch, without git.
//!
//! It asks for what a push of the branch asks for, and is taken as one: one after the other with
//! pushes, durable before the branch names it, and told to the Models that follow the branch. LFS
//! objects were uploaded before; only those that the repository has can be named.

use std::{collections::HashSet, io, path::Path, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request, State as AxumState},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyprstream_contract::{
    self as contract,
    registry::reason,
    repositories::{
        CommitAuthor, CommitRequest, Committed, FileChange, FileContent, MergeRefusal,
        REFERENCE_MOVED,
    },
};
use hyprstream_git2db::{
    CommitError, CommitId, Reference, RepoError,
    commit::{self, Author, Change, Content},
    lfs::Pointer,
    repo,
};
use hyprstream_slots::{self as slots, Slot};

use crate::{
    access::{Access, Who},
    api::parse,
    audit,
    auth::Principal,
    git,
    layout::Layout,
    let_go, lfs,
    merges::{self, MAX_MESSAGE_BYTES},
    names::Repository,
    refusal::Refusal,
    state::{State, blocking},
};

/// Longest body of a call, in bytes.
pub(crate) const MAX_BODY_BYTES: usize = 8 << 20;
/// Calls whose bodies are in memory at the same time.
pub(crate) const PLACES: usize = 16;
const PLACE_PATIENCE: Duration = Duration::from_secs(30);
const BODY_PATIENCE: Duration = Duration::from_mins(1);
const MAX_CHANGES: usize = 1000;
const MAX_TEXT_BYTES: usize = 1 << 20;
const MAX_PATH_BYTES: usize = 3072;
const MAX_AUTHOR_BYTES: usize = 256;
/// Git refuses a pushed `.gitattributes` with a line of this length.
const MAX_ATTRIBUTES_LINE_BYTES: usize = 2048;
/// Missing objects that are named in an answer.
const MOST_NAMED: usize = 10;

/// `POST /api/v1/commits`
pub(crate) async fn commit(
    AxumState(state): AxumState<Arc<State>>,
    Who(principal): Who,
    request: Request,
) -> Result<Response, Refusal> {
    // Held to the end, as what came is.
    let _place = place(&state, &principal).await?;
    let body = read(request).await?;
    let request: CommitRequest = parse(&body)?;
    validate(&request).map_err(Refusal::bad_request)?;
    let access = Access::named(&request.repository, principal)?;
    if matches!(access.repository, Repository::Mirror(_)) {
        return Err(Refusal::bad_request(
            "mirrors are read-only; fork this one, or push to its upstream",
        ));
    }
    access.writable(&state).await?;
    let reference = format!("refs/heads/{}", request.branch);
    if let Some(why) = git::forbids_forward(&state, &access, &reference).await? {
        return Err(access.refuse(&state, "commit", why));
    }
    state.require_space(body.len() as u64)?;
    drop(body);
    let named = named_objects(&request)?;
    // Looked for before there is a repository, so that a mistake makes none.
    let missing = |error: NotCommitted| answer(&request, error);
    let here = require_members(&state.layout, &access.repository, &named);
    if let Err(error) = here {
        return missing(error);
    }
    let path = state.create(&access.repository).await?;
    let Some(_alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "a push to this repository takes long; try again",
        ));
    };
    let _git = state.git.place(&access.share()).await?;
    let author = match &request.author {
        Some(CommitAuthor { name, email }) => Author {
            name: name.clone(),
            email: email.clone(),
        },
        None => merges::author(&access),
    };
    let (making, repository) = (Arc::clone(&state), access.repository.clone());
    let (asked, bare) = (request.clone(), path.clone());
    let made =
        blocking(move || make(&making.layout, &repository, &bare, &asked, &named, &author)).await?;
    let mut entry = access.entry("commit");
    entry.reference = Some(reference);
    let Made { before, after } = match made {
        Ok(made) => made,
        Err(error) => {
            entry.result = audit::Outcome::Failed;
            entry.reason = Some(error.to_string());
            state.audit.note(&entry);
            return answer(&request, error);
        }
    };
    // One of many in a folder of branches is nobody's default, and could not be deleted as one.
    if !request.branch.contains('/')
        && let Err(error) = git::choose_head(&state.git, &path).await
    {
        tracing::warn!(repository = %access.repository, %error, "HEAD could not be set after a commit");
    }
    entry.old = Some(before.map_or_else(|| "0".repeat(40), |before| before.to_string()));
    entry.new = Some(after.to_string());
    state.audit.note(&entry);
    state.announce(&access.repository, &[entry]);
    tracing::info!(repository = %access.repository, changes = request.changes.len(), "commit");
    let commit = after
        .as_str()
        .parse()
        .map_err(|error| Refusal::internal("reading a commit's name", &error))?;
    Ok((StatusCode::CREATED, Json(Committed { commit })).into_response())
}

/// A place for the body of a call, of which whoever asks has at most half.
async fn place(state: &State, who: &Principal) -> Result<Slot, Refusal> {
    let owner = slots::owner(&who.subject());
    let place = state.commits.acquire(&owner, false);
    let place = tokio::time::timeout(PLACE_PATIENCE, place).await;
    place.map_err(|_| Refusal::busy("too many commits at once; try again"))
}

async fn read(request: Request) -> Result<Bytes, Refusal> {
    let body = tokio::time::timeout(BODY_PATIENCE, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| Refusal::busy("the commit came too slowly; try again"))?;
    body.map_err(|error| {
        let message = match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                "a commit has at most 8 MiB: make several, or upload files by LFS".to_owned()
            }
            _ => error.body_text(),
        };
        Refusal::new(error.status(), "BadRequest", message, false)
    })
}

/// What the branch named and names.
struct Made {
    before: Option<CommitId>,
    after: CommitId,
}

/// Why no commit was made.
#[derive(Debug, thiserror::Error)]
enum NotCommitted {
    #[error("branch {branch} names another commit than was expected: look at it again")]
    Moved { branch: String },
    #[error("{0}")]
    MissingObjects(String),
    #[error("LFS object {oid} cannot be given to the repository")]
    Member { oid: String, source: io::Error },
    #[error("the branch cannot be read")]
    Branch(#[source] RepoError),
    #[error(transparent)]
    Commit(CommitError),
}

/// Makes the commit. Blocks; nobody else changes the repository meanwhile.
fn make(
    layout: &Layout,
    repository: &Repository,
    bare: &Path,
    request: &CommitRequest,
    named: &[Named],
    author: &Author,
) -> Result<Made, NotCommitted> {
    // Again: others may have let them go meanwhile.
    require_members(layout, repository, named)?;
    let branch = Reference::Branch(request.branch.clone());
    let before = repo::resolve_local(bare, &branch).map_err(NotCommitted::Branch)?;
    if let Some(expected) = &request.expected {
        let expected = expected.as_ref().map(contract::CommitId::as_str);
        if expected != before.as_ref().map(CommitId::as_str) {
            return Err(moved(request));
        }
    }
    let changes: Vec<Change> = request.changes.iter().map(|c| change(c, named)).collect();
    let staged = commit::stage(bare, before.as_ref(), &changes, layout.store())
        .map_err(NotCommitted::Commit)?;
    // What attributes give to LFS is new here.
    for pointer in &staged.objects {
        layout
            .add_member(repository, &pointer.oid)
            .map_err(|source| NotCommitted::Member {
                oid: pointer.oid.to_string(),
                source,
            })?;
    }
    let (branch, message) = (&request.branch, &request.message);
    let after = commit::commit_durably(bare, branch, &staged, author, message)
        .map_err(NotCommitted::Commit)?;
    Ok(Made { before, after })
}

fn moved(request: &CommitRequest) -> NotCommitted {
    NotCommitted::Moved {
        branch: request.branch.clone(),
    }
}

fn change(change: &FileChange, named: &[Named]) -> Change {
    let path = change.path.clone();
    let content = match &change.content {
        FileContent::Removed => return Change::Remove { path },
        FileContent::Text(text) => Content::Bytes(text.clone().into_bytes()),
        FileContent::Lfs { .. } => {
            let found = named.iter().find(|named| named.path == path);
            let found = found.expect("every LFS object of the request was read from it");
            Content::Lfs(found.pointer.clone())
        }
    };
    Change::Put {
        path,
        content,
        executable: false,
    }
}

/// A file that is a pointer to an LFS object.
struct Named {
    path: String,
    pointer: Pointer,
}

/// The LFS objects that a request names, also by the text of a pointer.
fn named_objects(request: &CommitRequest) -> Result<Vec<Named>, Refusal> {
    let mut named = Vec::new();
    for FileChange { path, content } in &request.changes {
        let pointer = match content {
            FileContent::Lfs { oid, size } => Pointer {
                oid: lfs::parse_oid(oid)?,
                size: *size,
            },
            FileContent::Text(text) => match Pointer::parse(text.as_bytes()) {
                Ok(pointer) => pointer,
                Err(_) => continue,
            },
            FileContent::Removed => continue,
        };
        named.push(Named {
            path: path.clone(),
            pointer,
        });
    }
    Ok(named)
}

/// Refuses if the repository lacks one of the objects, and names those.
fn require_members(
    layout: &Layout,
    repository: &Repository,
    named: &[Named],
) -> Result<(), NotCommitted> {
    let mut missing = Vec::new();
    for Named { path, pointer } in named {
        let Pointer { oid, size } = pointer;
        let here = layout
            .member_size(repository, oid)
            .map_err(|source| NotCommitted::Member {
                oid: oid.to_string(),
                source,
            })?;
        match here {
            Some(here) if here == *size => {}
            Some(here) => missing.push(format!("object {oid} of {path:?} has {here} bytes")),
            None => missing.push(match let_go::why(layout, repository, oid) {
                Some(why) => format!("{why} (file {path:?})"),
                None => format!("LFS object {oid} of {path:?} is not in {repository}"),
            }),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let more = missing.len().saturating_sub(MOST_NAMED);
    missing.truncate(MOST_NAMED);
    let missing = missing.join("; ");
    let more = match more {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let message = format!("{missing}{more}: upload by the LFS protocol first");
    Err(NotCommitted::MissingObjects(message))
}

/// What is wrong with a request, whatever the repository holds. Paths are looked at again, name by
/// name, when they are put into a tree.
fn validate(request: &CommitRequest) -> Result<(), String> {
    let message = &request.message;
    if message.trim().is_empty() || message.len() > MAX_MESSAGE_BYTES || message.contains('\0') {
        return Err(
            "a commit needs a message of at most 64 KiB without null characters".to_owned(),
        );
    }
    if let Some(CommitAuthor { name, email }) = &request.author {
        for text in [name, email] {
            if text.trim().is_empty()
                || text.len() > MAX_AUTHOR_BYTES
                || text.contains(['<', '>'])
                || text.contains(char::is_control)
            {
                return Err(format!(
                    "an author needs a name and an address of at most {MAX_AUTHOR_BYTES} bytes \
                     each, without angle brackets and control characters"
                ));
            }
        }
    }
    let changes = &request.changes;
    if changes.is_empty() || changes.len() > MAX_CHANGES {
        let count = changes.len();
        return Err(format!(
            "a commit has 1 to {MAX_CHANGES} changes, this one {count}: make several"
        ));
    }
    let mut paths = HashSet::new();
    for FileChange { path, content } in changes {
        if path.len() > MAX_PATH_BYTES {
            return Err(format!("a path has at most {MAX_PATH_BYTES} bytes"));
        }
        if !paths.insert(path) {
            return Err(format!("{path:?} stands in the changes twice"));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if !matches!(content, FileContent::Removed) && is_of_submodules(name) {
            return Err(format!(
                "{path:?} cannot be committed: submodules are not served"
            ));
        }
        let is_attributes = name == ".gitattributes";
        match content {
            FileContent::Text(text) if text.len() > MAX_TEXT_BYTES => {
                return Err(format!(
                    "{path:?} has more than 1 MiB of text: upload it by LFS and name its object"
                ));
            }
            FileContent::Text(text)
                if is_attributes
                    && text
                        .split('\n')
                        .any(|line| line.len() >= MAX_ATTRIBUTES_LINE_BYTES) =>
            {
                return Err(format!("a line of {path:?} has 2048 bytes or more"));
            }
            FileContent::Lfs { .. } if is_attributes => {
                return Err(format!(
                    "git does not read {path:?} from LFS: give its text"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `.gitmodules`, also by the names under which other file systems find it. Git looks into pushed
/// ones for what harms those who clone them.
fn is_of_submodules(name: &str) -> bool {
    let name = name.to_lowercase();
    [".gitmodules", "gitmod~", "gi7eba~"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// Why no commit was made, as an answer.
fn answer(request: &CommitRequest, error: NotCommitted) -> Result<Response, Refusal> {
    let message = error.to_string();
    let refused = |reason: &'static str, message: String| {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason, message, false)
    };
    match error {
        NotCommitted::Moved { .. } => {}
        NotCommitted::Commit(CommitError::BranchMoved { .. }) if request.expected.is_some() => {}
        NotCommitted::Commit(CommitError::BranchMoved { .. }) => {
            return Err(Refusal::busy("the branch moves just now; try again"));
        }
        NotCommitted::MissingObjects(_) => return Err(refused(reason::MISSING_OBJECT, message)),
        NotCommitted::Member { source, .. } => {
            return Err(State::io_refusal("looking for an LFS object", &source));
        }
        NotCommitted::Branch(error) | NotCommitted::Commit(CommitError::Repo(error)) => {
            return Err(of_repository(&error));
        }
        NotCommitted::Commit(error) => {
            return Err(match error {
                CommitError::InvalidAuthor(_) | CommitError::InvalidMessage { .. } => {
                    Refusal::bad_request(message)
                }
                CommitError::BranchInTheWay { .. } => refused(reason::REFUSED_CONTENT, message),
                other => match other.reason() {
                    "RefusedContent" => refused(reason::REFUSED_CONTENT, message),
                    "DiskFull" => Refusal::disk_full("no space is left on the registry"),
                    _ => Refusal::internal("a commit", &other),
                },
            });
        }
    }
    let refusal = MergeRefusal {
        reason: REFERENCE_MOVED.to_owned(),
        message,
        retriable: true,
        paths: Vec::new(),
    };
    Ok((StatusCode::CONFLICT, Json(refusal)).into_response())
}

/// What is wrong with a repository or a branch, as an answer.
pub(crate) fn of_repository(error: &RepoError) -> Refusal {
    match error {
        RepoError::DiskFull { .. } => Refusal::disk_full("no space is left on the registry"),
        RepoError::InvalidReference { .. } => Refusal::bad_request(error.to_string()),
        RepoError::Content { .. } | RepoError::NotACommit { .. } => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Refusal::new(status, reason::REFUSED_CONTENT, error.to_string(), false)
        }
        other => Refusal::internal("reading a branch", other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refuses(changed: &serde_json::Value, why: &str) {
        let mut body = json!({"repository": "a/m", "branch": "b", "message": "m",
            "changes": [{"path": "a", "content": {"text": "t"}}]});
        for (key, value) in changed.as_object().unwrap() {
            body[key] = value.clone();
        }
        let refused = validate(&serde_json::from_value(body).unwrap());
        assert!(
            refused.as_ref().is_err_and(|said| said.contains(why)),
            "{refused:?}"
        );
    }

    #[test]
    fn what_no_repository_would_take_is_refused_by_name() {
        let text = |path: &str, text: &str| json!({"path": path, "content": {"text": text}});
        refuses(&json!({"message": " "}), "message");
        refuses(&json!({"message": "a\u{0}"}), "message");
        refuses(&json!({"author": {"name": "a<b", "email": "c"}}), "author");
        refuses(&json!({"author": {"name": "a", "email": ""}}), "author");
        refuses(&json!({"changes": []}), "1 to 1000 changes");
        refuses(
            &json!({"changes": vec![text("a", ""); 1001]}),
            "1 to 1000 changes",
        );
        refuses(
            &json!({"changes": [text("a", ""), text("a", "b")]}),
            "twice",
        );
        refuses(
            &json!({"changes": [text("a", &"t".repeat((1 << 20) + 1))]}),
            "1 MiB",
        );
        refuses(
            &json!({"changes": [text(&"p".repeat(4000), "")]}),
            "3072 bytes",
        );
        refuses(
            &json!({"changes": [text("a/.GitModules", "")]}),
            "submodules",
        );
        refuses(
            &json!({"changes": [text("a/.gitattributes", &"t".repeat(2048))]}),
            "line",
        );
        let lfs = json!({"path": ".gitattributes", "content": {"lfs": {"oid": "0", "size": 1}}});
        refuses(&json!({"changes": [lfs]}), "give its text");
    }
}
