//! Asking a remote.

mod error;

pub use error::RemoteError;

use crate::{CommitId, Credentials, Reference, RemoteUrl};

/// The commit that `reference` names now, asked from the remote as `git ls-remote` does.
///
/// An annotated tag is peeled. A [`Reference::Commit`] is returned as it is, without asking.
pub fn resolve(
    url: &RemoteUrl,
    reference: &Reference,
    credentials: &Credentials,
) -> Result<CommitId, RemoteError> {
    let _ = (url, reference, credentials);
    unimplemented!("not done yet")
}
