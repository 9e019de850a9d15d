//! Waiting for something, unless the user ends it first.

use tokio::runtime::Runtime;

use crate::failure::{Context as _, Failure};

/// Runs a future until it ends, or until SIGINT: `None`.
pub(crate) fn until_interrupted<T>(
    runtime: &Runtime,
    work: impl Future<Output = T>,
) -> Result<Option<T>, Failure> {
    runtime.block_on(async {
        tokio::select! {
            done = work => Ok(Some(done)),
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("signals cannot be waited for")?;
                Ok(None)
            }
        }
    })
}
