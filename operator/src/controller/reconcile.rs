use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use hyprstream_api::{Checked, condition::reason};
use kube::{Resource, ResourceExt, runtime::controller::Action};

use super::backoff::{Backoff, LAST_PAUSE};
use crate::{
    apply::Help,
    kind::Kind,
    metrics::Metrics,
    reporting::{Statuses, Told},
};

/// How often everything is looked at again though nothing happened.
const RESYNC: Duration = Duration::from_mins(15);

/// Number of the next reconciliation, by which the lines of its log belong together.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Reconciles the objects of a kind that live in a scope.
///
/// Its futures are in boxes, so that what they call is compiled once and not into each of its
/// callers.
pub trait Reconcile: Send + Sync + 'static {
    /// The kind.
    type Kind: Kind;

    /// Ends once what a reconciliation looks at is there.
    fn ready(&self) -> BoxFuture<'_, ()>;

    /// Brings the cluster nearer to what an object asks for and says in its status how far it is.
    /// Never fails: an error is in the status, and in when to look again.
    fn reconcile<'a>(&'a self, object: &'a Self::Kind) -> BoxFuture<'a, Reconciled>;

    /// Writes the statuses of the kind.
    fn statuses(&self) -> &Statuses<Self::Kind>;

    /// Stops what goes on for the object with that UID, which is being deleted or cannot be read.
    fn stop(&self, uid: &str);

    /// Forgets objects that `keep` does not name by their UID.
    fn retain(&self, keep: &dyn Fn(&str) -> bool);
}

/// How a reconciliation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconciled {
    /// Whether it did all that it could.
    pub outcome: Outcome,
    /// When to look again, if nothing happens before.
    pub again: Option<Duration>,
}

/// Whether a reconciliation did all that it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did.
    Done,
    /// Something cannot be made or written, for that reason, and that helps.
    Failed(&'static str, Help),
    /// The object is about to go, as its namespace is; there is nobody to tell.
    Over,
}

/// A reconciler, and what stands around it.
pub(super) struct Frame<R> {
    pub(super) reconciler: R,
    pub(super) backoff: Backoff,
    pub(super) metrics: Metrics,
}

/// Has the reconciler look at an object; says when to look again.
#[tracing::instrument(
    skip_all,
    fields(
        kind = R::Kind::LABELS.kind,
        namespace = object.namespace(),
        // Not `name`: in JSON that is the span's own, which would hide it.
        object = object.name_any(),
        reconcile = NEXT.fetch_add(1, Ordering::Relaxed),
    )
)]
pub(super) async fn reconcile<R: Reconcile>(
    object: Arc<Checked<R::Kind>>,
    frame: Arc<Frame<R>>,
) -> Result<Action, Infallible> {
    let started = Instant::now();
    let Frame {
        reconciler,
        metrics,
        ..
    } = &*frame;
    reconciler.ready().await;
    let uid = object.uid().unwrap_or_default();
    let action = if object.meta().deletion_timestamp.is_some() {
        // The garbage collector takes what the object owns, and the sweep its volumes.
        reconciler.stop(&uid);
        Action::await_change()
    } else {
        match object.get() {
            Ok(object) => {
                let reconciled = reconciler.reconcile(object).await;
                frame.finish(&uid, reconciled)
            }
            Err(error) => {
                reconciler.stop(&uid);
                let results = &metrics.reconciles;
                results.with_label_values(&[reason::MALFORMED]).inc();
                match reconciler.statuses().tell_malformed(&object, error).await {
                    Ok(Told::There) => Action::requeue(RESYNC),
                    Ok(Told::Gone) => Action::await_change(),
                    Err(_) => Action::requeue(LAST_PAUSE),
                }
            }
        }
    };
    metrics
        .reconcile_seconds
        .observe(started.elapsed().as_secs_f64());
    Ok(action)
}

impl<R> Frame<R> {
    /// Counts, and says when to look again.
    fn finish(&self, uid: &str, reconciled: Reconciled) -> Action {
        let Reconciled { outcome, again } = reconciled;
        let result = match outcome {
            Outcome::Done => "ok",
            Outcome::Failed(reason, _) => reason,
            Outcome::Over => return Action::requeue(RESYNC),
        };
        self.metrics.reconciles.with_label_values(&[result]).inc();
        let again = again.map_or(RESYNC, |again| again.min(RESYNC));
        let pause = match outcome {
            Outcome::Failed(_, help) => self.backoff.failed(uid, help),
            Outcome::Done | Outcome::Over => {
                self.backoff.succeeded(uid);
                again
            }
        };
        Action::requeue(pause.min(again))
    }
}
