//! Whether PersistentVolumes are there, for nodes, which have no token of the API server.

use std::sync::Arc;

use axum::{Json, body::Bytes, extract::State as AxumState, http::StatusCode};
use hyprstream_contract::persistent_volumes::{
    KnownVolumes, MAX_VOLUMES, VolumesRequest, is_volume_name,
};

use crate::{
    api::{Reader, parse},
    auth::VolumeError,
    refusal::Refusal,
    state::State,
};

/// `POST /api/v1/persistentvolumes`
pub(crate) async fn known(
    AxumState(state): AxumState<Arc<State>>,
    _: Reader,
    body: Bytes,
) -> Result<Json<KnownVolumes>, Refusal> {
    let request: VolumesRequest = parse(&body)?;
    if request.names.len() > MAX_VOLUMES {
        let message = format!("at most {MAX_VOLUMES} volumes can be asked for in one call");
        return Err(Refusal::bad_request(message));
    }
    if !request.names.iter().all(|name| is_volume_name(name)) {
        let message = "a name is none that a PersistentVolume can have";
        return Err(Refusal::bad_request(message));
    }
    let mut known = KnownVolumes::default();
    // One after the other: a node that asks for many waits, and takes no places from tokens.
    for name in request.names {
        let found = state.auth.volume(&name).await.map_err(cannot_tell)?;
        known.volumes.insert(name, found);
    }
    Ok(Json(known))
}

fn cannot_tell(error: VolumeError) -> Refusal {
    match error {
        VolumeError::Unavailable => Refusal::busy("the API server does not answer; try again"),
        VolumeError::Forbidden => Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "VolumesNotKnown",
            "the registry may not get PersistentVolumes of the API server: its chart gives that \
             right together with registry.kubernetesTokens",
            false,
        ),
    }
}
