//! `GET` and `DELETE /api/v1/branches/NAMESPACE/NAME`: what branches there are, and one less.
//!
//! A branch that is deleted takes the LFS objects along that nothing else needs, as old
//! checkpoints go (see [`keep`]). They go first: a registry that is killed in between leaves a
//! branch to delete again, and no objects that nothing would ever take away.

use std::{fs, io, sync::Arc};

use axum::{
    Json,
    extract::{Query, State as AxumState, rejection::QueryRejection},
    http::StatusCode,
};
use hyprstream_contract::{
    CommitId,
    registry::reason,
    repositories::{Branch, BranchPage, REFERENCE_MOVED},
};
use hyprstream_git2db::repo::{self, BranchQuery, BranchTip};
use serde::Deserialize;

use crate::{
    access::Access,
    commits::of_repository,
    git,
    keep::{self, Refs},
    refusal::Refusal,
    state::{State, blocking},
};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// Query of both calls.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    branch: Option<String>,
    /// Of a deletion.
    commit: Option<CommitId>,
    prefix: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

type AskedQuery = Result<Query<Asked>, QueryRejection>;

/// `GET /api/v1/branches/NAMESPACE/NAME`
pub(crate) async fn list(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    query: AskedQuery,
) -> Result<Json<BranchPage>, Refusal> {
    let asked = read(query)?;
    if asked.commit.is_some() {
        return Err(Refusal::bad_request("`commit` is for deleting a branch"));
    }
    let path = state.layout.repository(access.readable(&state).await?);
    let found = blocking(move || {
        if let Some(name) = &asked.branch {
            return repo::branch(&path, name).map(|tip| (tip.into_iter().collect(), false));
        }
        let query = BranchQuery {
            prefix: asked.prefix.as_deref().unwrap_or_default(),
            after: asked.after.as_deref(),
            limit: asked.limit.unwrap_or(DEFAULT_LIMIT),
        };
        repo::branches(&path, &query)
    })
    .await?;
    let (tips, has_more) = found.map_err(|error| of_repository(&error))?;
    let branches = tips.into_iter().map(branch).collect::<Result<_, _>>()?;
    Ok(Json(BranchPage { branches, has_more }))
}

fn branch(tip: BranchTip) -> Result<Branch, Refusal> {
    let commit = tip
        .commit
        .as_str()
        .parse()
        .map_err(|error| Refusal::internal("reading a commit's name", &error))?;
    Ok(Branch {
        name: tip.name,
        commit,
        message: tip.message,
        committed_at: tip.committed_at,
    })
}

/// `DELETE /api/v1/branches/NAMESPACE/NAME?branch=B`, with `&commit=C` only while it names that one.
pub(crate) async fn delete(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    query: AskedQuery,
) -> Result<StatusCode, Refusal> {
    let asked = read(query)?;
    let Some(branch) = asked.branch else {
        return Err(Refusal::bad_request("name the branch: `?branch=NAME`"));
    };
    let repository = access.writable(&state).await?.clone();
    let name = format!("refs/heads/{branch}");
    if let Some(why) = git::forbids_deleting(&state, &access, &name).await? {
        return Err(access.refuse(&state, "delete", why));
    }
    if !state.layout.exists(&repository) {
        let message = format!("there is no repository {repository}");
        return Err(Refusal::not_found(message));
    }
    let path = state.layout.repository(&repository);
    // Nothing comes to need an object while it is looked for what does.
    let Some(_alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "a push to this repository takes long; try again",
        ));
    };
    let _place = state.git.place(&access.share()).await?;
    let failed = |error: &io::Error| State::io_refusal("deleting a branch", error);
    let refs = state.git.run(&path, &["for-each-ref", keep::FORMAT]).await;
    let refs = Refs::read(&refs.map_err(|error| failed(&error))?, &name);
    let Some(tip) = refs.tip.clone() else {
        let message = format!("there is no branch {branch:?}");
        let (status, reason) = (StatusCode::NOT_FOUND, reason::REFERENCE_NOT_FOUND);
        return Err(Refusal::new(status, reason, message, false));
    };
    if let Some(expected) = asked.commit.filter(|expected| expected.as_str() != tip) {
        let message = format!("{branch:?} does not name {expected} any more: look at it again");
        let status = StatusCode::CONFLICT;
        return Err(Refusal::new(status, REFERENCE_MOVED, message, true));
    }
    let head = fs::read_to_string(path.join("HEAD")).map_err(|error| failed(&error))?;
    if head.trim().strip_prefix("ref: ") == Some(&name) {
        let message = format!("{branch:?} is the default branch, which cannot be deleted");
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(Refusal::new(status, "BadRequest", message, false));
    }
    let why = format!("branch {branch} was deleted");
    let (letting, owner, bare, from) = (
        Arc::clone(&state),
        repository.clone(),
        path.clone(),
        tip.clone(),
    );
    let (objects, bytes) = blocking(move || {
        let (_, oids) = keep::unneeded(&bare, &from, &refs, 0)?;
        keep::let_go_of(&letting, &owner, oids, &why)
    })
    .await?
    .map_err(|error| failed(&error))?;
    let delete = ["update-ref", "-d", &name, &tip];
    let deleted = state.git.run(&path, &delete).await;
    deleted.map_err(|error| failed(&error))?;
    let mut entry = access.entry("delete");
    (entry.reference, entry.old) = (Some(name), Some(tip));
    entry.objects = (objects > 0).then_some(objects);
    state.audit.note(&entry);
    state.announce(&repository, &[entry]);
    tracing::info!(%repository, branch, objects, bytes, "deleted a branch");
    Ok(StatusCode::NO_CONTENT)
}

fn read(query: AskedQuery) -> Result<Asked, Refusal> {
    let Query(asked) = query.map_err(|error| Refusal::bad_request(error.body_text()))?;
    let pages = asked.prefix.is_some() || asked.after.is_some() || asked.limit.is_some();
    if asked.branch.is_some() && pages {
        return Err(Refusal::bad_request(
            "ask for one branch by `branch`, or for pages by `prefix`, `after` and `limit`",
        ));
    }
    if asked
        .limit
        .is_some_and(|limit| !(1..=MAX_LIMIT).contains(&limit))
    {
        let message = format!("`limit` is 1 to {MAX_LIMIT}");
        return Err(Refusal::bad_request(message));
    }
    Ok(asked)
}
