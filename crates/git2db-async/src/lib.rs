//! Operations of `hyprstream-git2db` in async programs.
//!
//! The library blocks. [`run`] does any call of it on a thread for blocking work and ends it when
//! the future is dropped, so that a timeout or a client that hangs up ends the transfer, too.
//!
//! ```
//! use hyprstream_git2db::Git2DB;
//! use hyprstream_git2db_async::run;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let root = dir.path().to_owned();
//! let db = run(move |_| Git2DB::open(&root)).await??;
//! let name = "org/model".parse()?;
//! let made = run({
//!     let db = db.clone();
//!     // Calls that take an `Observer` get `observer`: `.run(observer)`, `.fetch(.., observer)`.
//!     move |_observer| db.create(name)
//! })
//! .await??;
//! assert_eq!(db.list()?, [made]);
//! # Ok(())
//! # }
//! ```

use hyprstream_git2db::{Cancel, Progress, Watch};
use tokio::{sync::watch, task};

/// The work did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ended {
    /// It panicked. What the library keeps on the disk is as after a kill: whole.
    #[error("the work on git panicked")]
    Panicked,
    /// The runtime was shut down before the work began.
    #[error("the runtime ended before the work on git began")]
    ShutDown,
}

/// What the work gets to observe it: it is cancelled once the future is dropped.
pub type Observing = Watch<Box<dyn Fn(Progress) + Send + Sync>>;

/// Does `work` on a thread for blocking work. If the future is dropped, work that passes the
/// observer on ends as [`Observer::is_cancelled`](hyprstream_git2db::Observer::is_cancelled) says,
/// within a second or at the next answer of a server; other work goes on to its end, unheard.
///
/// # Errors
/// It panicked, or the runtime ends.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn run<T: Send + 'static>(
    work: impl FnOnce(&Observing) -> T + Send + 'static,
) -> Result<T, Ended> {
    run_observed(|_| {}, work).await
}

/// As [`run`], and calls `on_progress` from the thread that works.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub async fn run_observed<T: Send + 'static>(
    on_progress: impl Fn(Progress) + Send + Sync + 'static,
    work: impl FnOnce(&Observing) -> T + Send + 'static,
) -> Result<T, Ended> {
    let observing = Watch {
        on_progress: Box::new(on_progress) as Box<dyn Fn(Progress) + Send + Sync>,
        cancel: Cancel::new(),
    };
    let _cancel = CancelOnDrop(observing.cancel.clone());
    task::spawn_blocking(move || work(&observing))
        .await
        .map_err(|error| {
            if error.is_panic() {
                Ended::Panicked
            } else {
                Ended::ShutDown
            }
        })
}

/// A callback for [`run_observed`] and where its last progress can be read and waited for. The
/// receiver sees the newest; what comes in between is not kept.
pub fn progress() -> (
    impl Fn(Progress) + Send + Sync + 'static,
    watch::Receiver<Option<Progress>>,
) {
    let (sender, receiver) = watch::channel(None);
    let on_progress = move |progress| {
        sender.send_replace(Some(progress));
    };
    (on_progress, receiver)
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
