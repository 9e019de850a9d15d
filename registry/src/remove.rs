//! `DELETE <repository>.git`.

use std::{sync::Arc, time::Duration};

use axum::{extract::State as AxumState, http::StatusCode};

use crate::{
    access::Access,
    collect,
    names::Repository,
    refusal::Refusal,
    state::{State, blocking},
};

/// Objects of a removed repository may just be on their way into another one that a client is
/// pushing to: they are collected later.
const MIN_AGE: Duration = Duration::from_mins(10);

/// Removes a repository for good, and the objects that no other repository has.
pub(crate) async fn remove(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
) -> Result<StatusCode, Refusal> {
    let repository = access.removable()?.clone();
    if state.mirrors.is_busy(&repository) {
        return Err(Refusal::busy(
            "this mirror is being fetched; try again later",
        ));
    }
    let removing = Arc::clone(&state);
    let there = blocking(move || {
        let there = collect::remove(&removing, &repository);
        if matches!(there, Ok(true)) {
            tracing::info!(%repository, "removed a repository");
            if let Repository::Pushed { namespace, name } = &repository {
                removing.events.push(namespace.as_str(), name.as_str());
            }
        }
        there
    })
    .await?
    .map_err(|error| State::io_refusal("removing the repository", &error))?;
    if !there {
        return Err(Refusal::not_found("there is no such repository"));
    }
    tokio::spawn(async move {
        tokio::time::sleep(MIN_AGE).await;
        let _ = blocking(move || collect::collect_objects(&state, MIN_AGE)).await;
    });
    Ok(StatusCode::NO_CONTENT)
}
