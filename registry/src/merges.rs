//! `POST /api/v1/merges`: a branch takes up another on the bare repository.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State as AxumState,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hyprstream_contract::{
    registry::reason,
    repositories::{MERGE_CONFLICT, Merge, MergeKind, MergeRefusal, MergeRequest, REFERENCE_MOVED},
};
use hyprstream_git2db::{
    CommitId, Reference, RepoError,
    commit::Author,
    repo::{self, MergeError, Merged},
};

use crate::{
    access::{Access, Who},
    api::parse,
    audit, git,
    names::Repository,
    refusal::Refusal,
    state::{State, blocking},
};

/// Longest message of a commit.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Nobody gets mail for a merge.
const EMAIL: &str = "noreply@hyprstream.io";

/// `POST /api/v1/merges`
pub(crate) async fn merge(
    AxumState(state): AxumState<Arc<State>>,
    Who(principal): Who,
    body: Bytes,
) -> Result<Response, Refusal> {
    let request: MergeRequest = parse(&body)?;
    if request.message.trim().is_empty()
        || request.message.len() > MAX_MESSAGE_BYTES
        || request.message.contains('\0')
    {
        return Err(Refusal::bad_request(
            "a merge needs a message of at most 64 KiB without null characters",
        ));
    }
    let access = Access::named(&request.repository, principal)?;
    if matches!(access.repository, Repository::Mirror(_)) {
        return Err(Refusal::bad_request(
            "mirrors are read-only; fork this one, or push to its upstream",
        ));
    }
    access.readable(&state).await?;
    let into = format!("refs/heads/{}", request.into);
    if let Some(why) = git::forbids_forward(&state, &access, &into).await? {
        return Err(access.refuse(&state, "merge", why));
    }
    state.require_space(0)?;
    let path = state.layout.repository(&access.repository);
    let Some(_alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "a push to this repository takes long; try again",
        ));
    };
    let _place = state.git.place(&access.share()).await?;
    let author = author(&access);
    let merging = request.clone();
    let merged = blocking(move || {
        let from = match merging.from.parse() {
            Ok(commit) => Reference::Commit(commit),
            Err(_) => Reference::Branch(merging.from.clone()),
        };
        let expected: Option<CommitId> = match &merging.expected {
            Some(commit) => Some(
                commit
                    .as_str()
                    .parse()
                    .map_err(|_| Refusal::bad_request("`expected` is no commit"))?,
            ),
            None => None,
        };
        let merge = repo::Merge {
            into: &merging.into,
            from: &from,
            expected: expected.as_ref(),
            message: &merging.message,
            author: &author,
        };
        Ok(repo::merge(&path, &merge))
    })
    .await??;
    let mut entry = access.entry("merge");
    entry.reference = Some(into);
    entry.from = Some(request.from.clone());
    let merged = match merged {
        Ok(merged) => merged,
        Err(error) => {
            entry.result = audit::Outcome::Failed;
            entry.reason = Some(error.to_string());
            state.audit.note(&entry);
            return answer(error);
        }
    };
    let Merged {
        before,
        after,
        is_commit,
    } = merged;
    if before != after {
        entry.old = Some(before.to_string());
        entry.new = Some(after.to_string());
        state.audit.note(&entry);
        state.announce(&access.repository, &[entry]);
        tracing::info!(repository = %access.repository, "merge");
    }
    let kind = match (is_commit, before == after) {
        (true, _) => MergeKind::Merged,
        (false, true) => MergeKind::UpToDate,
        (false, false) => MergeKind::FastForward,
    };
    let commit = after
        .as_str()
        .parse()
        .map_err(|error| Refusal::internal("reading a commit's name", &error))?;
    Ok(Json(Merge { commit, kind }).into_response())
}

/// Who stands in a commit if nobody else is named. Git takes no angle brackets in names.
pub(crate) fn author(access: &Access) -> Author {
    let subject = access.principal.subject();
    let name = subject.replace(['<', '>', '\n', '\0'], "");
    Author {
        name,
        email: EMAIL.to_owned(),
    }
}

/// Why nothing was merged, as an answer.
fn answer(error: MergeError) -> Result<Response, Refusal> {
    let message = error.to_string();
    let (reason, message, retriable, paths) = match error {
        MergeError::Conflicts { paths } => {
            let message = "both sides changed the same: merge in a working copy, resolve it \
                           there and push"
                .to_owned();
            (MERGE_CONFLICT, message, false, paths)
        }
        MergeError::BranchMoved { .. } => {
            let message = format!("{message}: look at it again");
            (REFERENCE_MOVED, message, true, Vec::new())
        }
        MergeError::Missing { .. } => {
            let (status, reason) = (StatusCode::NOT_FOUND, reason::REFERENCE_NOT_FOUND);
            return Err(Refusal::new(status, reason, message, false));
        }
        MergeError::Unrelated { .. } => {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                reason::REFUSED_CONTENT,
                message,
                false,
            ));
        }
        MergeError::Repo(RepoError::DiskFull { .. }) => {
            return Err(Refusal::disk_full("no space is left on the registry"));
        }
        MergeError::Repo(error @ RepoError::InvalidReference { .. }) => {
            return Err(Refusal::bad_request(error.to_string()));
        }
        MergeError::Repo(error @ (RepoError::Content { .. } | RepoError::NotACommit { .. })) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let reason = reason::REFUSED_CONTENT;
            return Err(Refusal::new(status, reason, error.to_string(), false));
        }
        other => return Err(Refusal::internal("a merge", &other)),
    };
    let refusal = MergeRefusal {
        reason: reason.to_owned(),
        message,
        retriable,
        paths,
    };
    Ok((StatusCode::CONFLICT, Json(refusal)).into_response())
}
