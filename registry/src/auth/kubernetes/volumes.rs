//! Whether there is a PersistentVolume.

use hyprstream_contract::{persistent_volumes::KnownVolume, volume::DRIVER_NAME};
use serde::Deserialize;

use super::{CallError, Kubernetes, Unavailable};
use crate::refusal::chain;

/// It cannot be told whether a PersistentVolume is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeError {
    /// The API server does not answer.
    Unavailable,
    /// The registry's service account may not get PersistentVolumes.
    Forbidden,
}

impl From<Unavailable> for VolumeError {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

impl Kubernetes {
    /// The PersistentVolume `name`, which is a valid one; `None` if there is none, or if it is
    /// another driver's, of which nothing is told.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<KnownVolume>, VolumeError> {
        let path = format!("/api/v1/persistentvolumes/{name}");
        let found: Option<Volume> = match self.call(move |api| api.get(&path)).await? {
            Ok(found) => found,
            // Whoever installed the chart gave no such right: tokens are checked all the same.
            Err(
                error @ CallError::Status {
                    status: 401 | 403, ..
                },
            ) => {
                tracing::debug!(error = chain(&error), "volumes cannot be looked for");
                return Err(VolumeError::Forbidden);
            }
            Err(error) => return Err(self.failed(&error).into()),
        };
        Ok(found.and_then(Volume::known))
    }
}

#[derive(Deserialize)]
struct Volume {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
}

#[derive(Deserialize)]
struct Spec {
    csi: Option<Csi>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Csi {
    driver: String,
    volume_handle: String,
}

impl Volume {
    fn known(self) -> Option<KnownVolume> {
        let csi = self.spec.csi.filter(|csi| csi.driver == DRIVER_NAME)?;
        Some(KnownVolume {
            uid: self.metadata.uid,
            handle: csi.volume_handle,
        })
    }
}
