//! Which worker a request is sent to next, and when to give up.

use std::{io::ErrorKind, sync::Arc, time::Instant};

use http::StatusCode;
use tracing::{debug, warn};

use super::answer::Flight;
use crate::{
    GatewayError,
    endpoint::{Endpoint, Lease, SendError},
    table::{AdapterFacts, ModelEntry},
};

/// How often a request is sent again because kept connections turn out to be closed, or because
/// a worker closes new ones before it reads.
const MAX_STALE: u32 = 2;
/// How many workers may turn a request down before it is: each reads the whole body.
const MAX_TURNED_DOWN: u32 = 3;

/// What a request carries from attempt to attempt.
#[derive(Default)]
pub(super) struct Attempts {
    /// Workers that are known to serve another commit than the one asked for, or that turned the
    /// request down.
    pub(super) excluded: Vec<Arc<Endpoint>>,
    /// What the client is told if no other worker takes the request.
    pub(super) last: Option<Last>,
    /// Adapters that workers said they lack.
    pub(super) missing: Vec<String>,
    stale: u32,
    turned_down: u32,
}

/// How a worker turned a request down.
pub(super) enum Last {
    /// With an answer that says why: it has no room.
    Busy(Box<Flight>),
    /// It does not take this gateway for one that may ask.
    KeyRefused,
}

impl Last {
    pub(super) fn into_result(self, model: String) -> Result<Flight, GatewayError> {
        match self {
            Self::Busy(flight) => Ok(*flight),
            Self::KeyRefused => Err(GatewayError::WorkerRefuses { model }),
        }
    }
}

/// What the status of an answer says of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It works.
    Good,
    /// It has no room for the request, and has not begun it.
    Busy,
    /// It failed.
    Bad,
    /// It refuses our key. No client's key ever reaches a worker.
    KeyRefused,
}

impl Verdict {
    pub(super) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::KeyRefused,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Self::Busy,
            StatusCode::NOT_IMPLEMENTED => Self::Good,
            status if status.is_server_error() => Self::Bad,
            _ => Self::Good,
        }
    }
}

impl Attempts {
    /// Whether nothing was tried yet.
    pub(super) fn is_first(&self) -> bool {
        self.stale == 0 && self.turned_down == 0 && self.missing.is_empty()
    }

    /// The next worker, if there is one and the request was not turned down too often.
    pub(super) fn next(
        &self,
        entry: &ModelEntry,
        adapters: &[&Arc<AdapterFacts>],
    ) -> Option<Lease> {
        if self.turned_down >= MAX_TURNED_DOWN {
            return None;
        }
        entry.pick(&self.excluded, adapters, Instant::now())
    }

    /// A worker lacks these adapters, which others may have.
    pub(super) fn lack(&mut self, adapters: &[&Arc<AdapterFacts>]) {
        for facts in adapters {
            if !self.missing.iter().any(|name| **name == *facts.served) {
                self.missing.push(facts.served.to_string());
            }
        }
    }

    /// A worker turned the request down.
    pub(super) fn turned_down(&mut self, endpoint: Arc<Endpoint>, how: Last) {
        self.turned_down += 1;
        self.excluded.push(endpoint);
        self.last = Some(how);
    }

    /// Why the request may be sent once more after an attempt that failed.
    ///
    /// # Errors
    /// It may not: the worker may have begun it, or it was sent often enough.
    pub(super) fn again_after(
        &mut self,
        error: SendError,
        endpoint: &Endpoint,
        sent_at: Instant,
    ) -> Result<&'static str, SendError> {
        match error {
            SendError::Connect(error) if error.kind() == ErrorKind::InvalidData => {
                warn!(%error, worker = %endpoint.address(), "a worker is not who it should be");
                endpoint.failed(sent_at, Instant::now());
                Ok("tls")
            }
            SendError::Connect(error) => {
                debug!(%error, worker = %endpoint.address(), "connect failed");
                endpoint.failed(sent_at, Instant::now());
                Ok("connect")
            }
            SendError::Stale(_) if self.stale < MAX_STALE => {
                self.stale += 1;
                Ok("stale")
            }
            SendError::Unreachable(error) if self.stale < MAX_STALE => {
                debug!(%error, worker = %endpoint.address(), "unreachable");
                self.stale += 1;
                endpoint.failed(sent_at, Instant::now());
                Ok("unreachable")
            }
            error => Err(error),
        }
    }
}
