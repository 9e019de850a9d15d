//! All that hyprstream does with git, LFS and checkouts.
//!
//! **State: the types and signatures stand, the functions whose body says "not done yet" are being
//! written.**
//!
//! A synchronous library: calls block, so an async program makes them on a thread of their own
//! (`spawn_blocking`). It knows nothing of Kubernetes.

pub mod checkout;
pub mod commit;
mod credentials;
mod durable;
mod id;
mod include;
pub mod lfs;
mod libgit;
mod lock;
mod observer;
pub mod remote;
mod remote_url;
pub mod repo;
pub mod store;
pub mod tree;

pub use credentials::Credentials;
pub use id::{CommitId, Digest, InvalidId, Reference};
pub use include::{Include, InvalidGlob};
pub use libgit::{Timeouts, set_timeouts};
pub use observer::{Cancel, Observer, Progress, Watch};
pub use remote::RemoteError;
pub use remote_url::{InvalidUrl, RemoteUrl, Scheme};
pub use repo::RepoError;
