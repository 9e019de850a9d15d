//! `DELETE <repository>.git`.

use std::sync::Arc;

use axum::{extract::State as AxumState, http::StatusCode};

use crate::{
    access::Access,
    collect,
    refusal::Refusal,
    state::{State, blocking},
};

/// Removes a repository for good, and the objects that no other repository has.
pub(crate) async fn remove(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
) -> Result<StatusCode, Refusal> {
    let repository = access.removable(&state).await?.clone();
    if state.mirrors.is_busy(&repository) {
        return Err(Refusal::busy(
            "this mirror is being fetched; try again later",
        ));
    }
    let removing = Arc::clone(&state);
    let entry = access.entry("delete");
    let announced = entry.clone();
    let there = blocking(move || {
        let there = collect::remove(&removing, &repository);
        if matches!(there, Ok(true)) {
            if let Err(error) = collect::plan(&removing.layout) {
                tracing::warn!(%error, "objects without a repository are not collected");
            }
            tracing::info!(%repository, "removed a repository");
            removing.announce(&repository, &[announced]);
        }
        there
    })
    .await?
    .map_err(|error| State::io_refusal("removing the repository", &error))?;
    if !there {
        return Err(Refusal::not_found("there is no such repository"));
    }
    state.audit.note(&entry);
    Ok(StatusCode::NO_CONTENT)
}
