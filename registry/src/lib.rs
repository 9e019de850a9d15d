//! The git and LFS origin of a cluster.
//!
//! Serves smart HTTP for pushed repositories (`/git/<namespace>/<name>.git`) and for copies of
//! upstreams (`/mirror/<id>.git`), the LFS API beside both, and the API by which the control plane
//! resolves references and asks for mirrors. Git's own `upload-pack` and `receive-pack` speak the
//! git protocol; LFS objects lie once in a store by their SHA-256, shared by all repositories.
//!
//! Invariants:
//! - A repository gives away only the LFS objects that were pushed to it or that its upstream
//!   gave to the same credentials.
//! - No object is visible before size and SHA-256 are found right.
//! - All state lies on the disk and is read from there: after a kill at any point a start and the
//!   next request bring everything to where it should be.
//! - One process at a time uses a root.

mod access;
mod adapters;
mod api;
mod audit;
mod auth;
mod branches;
mod collect;
mod commits;
mod events;
mod fork;
mod git;
mod keep;
mod layout;
mod let_go;
mod lfs;
mod limits;
mod linger;
mod merges;
mod metrics;
mod mirrors;
mod names;
mod pins;
mod protection;
mod refusal;
mod registry;
mod remove;
mod scrub;
mod server;
mod state;
mod top_up;
mod upstreams;
mod volumes;

pub use auth::{
    CacheTimes, InvalidToken, KubernetesTokens, SecretsError, SigningKey, TokenFiles, WeakKey,
    read_signing_key,
};
pub use layout::LayoutError;
pub use limits::{FetchLimits, GitLimits, Limits};
pub use names::{InvalidName, Namespace};
pub use registry::{OpenError, Registry, Settings, Tls};
pub use upstreams::{AllowedUpstream, InvalidUpstream};
