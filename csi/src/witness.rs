//! Who knows which PersistentVolumes there are: this program, which has no token of the API server,
//! asks the registry, which asks that (`docs/adr/0009-how-a-node-hears-of-volumes-that-are-gone.md`).

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use hyprstream_contract::persistent_volumes::{KnownVolumes, VOLUMES_PATH, VolumesRequest};
use hyprstream_tls::Trust;
use tonic::async_trait;

use crate::registry_api::RegistryApi;

/// Longest that a call may take: the registry asks the API server for each volume.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Who knows which PersistentVolumes there are. [`RegistryWitness`] is the real one.
#[async_trait]
pub trait Witness: Send + Sync + 'static {
    /// Which of these there are, at most `MAX_VOLUMES`. Of a name that the answer lacks nothing is
    /// known.
    ///
    /// # Errors
    /// Why it cannot be told, for people.
    async fn known(&self, names: BTreeSet<String>) -> Result<KnownVolumes, String>;
}

/// The registry of the cluster.
pub struct RegistryWitness(RegistryApi);

impl RegistryWitness {
    /// The registry at `url`, which is one without a path. The token is read from its file for
    /// every call.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(
        url: &str,
        token_file: Option<PathBuf>,
        trust: &Trust,
    ) -> Result<Self, reqwest::Error> {
        RegistryApi::new(url, token_file, trust, TIMEOUT).map(Self)
    }
}

#[async_trait]
impl Witness for RegistryWitness {
    async fn known(&self, names: BTreeSet<String>) -> Result<KnownVolumes, String> {
        let body = self.0.post(VOLUMES_PATH, &VolumesRequest { names }).await?;
        serde_json::from_slice(&body).map_err(|e| format!("its answer cannot be read: {e}"))
    }
}
