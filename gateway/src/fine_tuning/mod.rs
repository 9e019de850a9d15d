//! OpenAI's fine-tuning API: files in the registry, and jobs that are TrainingJobs.
//!
//! ```text
//! client ──key──▶ files ──LFS, commits──▶ registry: NAMESPACE/openai-files
//!            └──▶ jobs ──TrainingJob────▶ API server
//! ```
//!
//! A key opens one namespace. Nothing is kept here: a file is the branch `files/ID` of its
//! namespace's repository, whose commit says all of it; a job is a TrainingJob, whose data is a
//! commit of the branch `jobs/ID` with the same LFS objects, so that a file that is deleted takes
//! nothing from a job. The branch goes some time after its TrainingJob ([`sweep`]).

mod client;
mod error;
mod files;
mod ids;
mod jobs;
pub mod keys;
mod paging;
mod registry;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State as Extracted},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use hyprstream_contract::header::REQUEST_ID;
use parking_lot::RwLock;

pub(crate) use client::Shared;
pub use error::FineTuningError;
pub use jobs::{JobTemplate, sweep};
pub use keys::ClientKeys;
pub use registry::{Registry, RegistryError};

use crate::{budget::Budget, headers};

/// Name of the repository of a namespace's files.
pub const REPOSITORY: &str = "openai-files";

/// Limits of the fine-tuning API.
#[derive(Clone, Debug)]
pub struct FineTuningConfig {
    /// Largest file in bytes; larger ones get 413.
    pub max_file_bytes: u64,
    /// Most bytes of all files that are on their way to the registry at the same time.
    pub max_spooled_bytes: usize,
    /// Folder in which they lie meanwhile.
    pub spool: PathBuf,
    /// Time for a file to arrive.
    pub upload_timeout: Duration,
    /// What is the same of all jobs.
    pub jobs: JobTemplate,
}

impl Default for FineTuningConfig {
    fn default() -> Self {
        Self {
            max_file_bytes: 512 << 20,
            max_spooled_bytes: 2 << 30,
            spool: std::env::temp_dir(),
            upload_timeout: Duration::from_mins(15),
            jobs: JobTemplate::default(),
        }
    }
}

/// What answers the fine-tuning API.
pub struct FineTuning {
    config: FineTuningConfig,
    registry: Registry,
    cluster: kube::Client,
    keys: RwLock<Arc<ClientKeys>>,
    spooled: Budget,
}

impl std::fmt::Debug for FineTuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FineTuning").finish_non_exhaustive()
    }
}

impl FineTuning {
    /// An API over that registry and cluster, open to those who have one of the keys.
    pub fn new(
        config: FineTuningConfig,
        registry: Registry,
        cluster: kube::Client,
        keys: ClientKeys,
    ) -> Self {
        Self {
            spooled: Budget::new(config.max_spooled_bytes),
            config,
            registry,
            cluster,
            keys: RwLock::new(Arc::new(keys)),
        }
    }

    /// From now on these keys open it, and no others.
    pub fn set_keys(&self, keys: ClientKeys) {
        *self.keys.write() = Arc::new(keys);
    }

    fn keys(&self) -> Arc<ClientKeys> {
        Arc::clone(&self.keys.read())
    }
}

/// Its paths. Where it is off, each answers what to set.
pub(crate) fn router(shared: Shared) -> Router {
    let jobs = "/v1/fine_tuning/jobs";
    Router::new()
        .route("/v1/files", post(files::create).get(files::list))
        .route("/v1/files/{id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route(jobs, post(jobs::create).get(jobs::list))
        .route(&format!("{jobs}/{{id}}"), get(jobs::retrieve))
        .route(&format!("{jobs}/{{id}}/cancel"), post(jobs::cancel))
        .route(&format!("{jobs}/{{id}}/pause"), post(jobs::pause))
        .route(&format!("{jobs}/{{id}}/resume"), post(jobs::resume))
        .route(&format!("{jobs}/{{id}}/events"), get(jobs::events))
        .route(
            &format!("{jobs}/{{id}}/checkpoints"),
            get(jobs::checkpoints),
        )
        // Handlers have limits of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(shared.clone(), observe))
        .with_state(shared)
}

/// Counts requests as those that name no Model, and tells each its id.
async fn observe(Extracted(shared): Extracted<Shared>, request: Request, next: Next) -> Response {
    let id = headers::request_id(request.headers());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    let requests = &shared.state.metrics.requests;
    requests
        .with_label_values(&["", response.status().as_str()])
        .inc();
    response
}
