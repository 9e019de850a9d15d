//! Leadership by a Lease: at most one process works at a time.
//!
//! # Guarantees
//! - Whoever holds the Lease gives up [`DEADLINE`] after its last renewal, before anybody else
//!   takes it, [`DURATION`] after that renewal, by clocks that only need to run equally fast.
//! - After a kill -9 another process leads within [`DURATION`] plus two [`RETRY`]s.
//! - A process that comes back under the same identity leads at once: a container that was
//!   restarted in its pod, whose earlier run is certainly over.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout};

use crate::chain;

/// Name of the Lease.
pub const NAME: &str = "hyprstream-operator";
/// How long a Lease counts after its last renewal.
pub const DURATION: Duration = Duration::from_secs(10);
/// How long its holder trusts it.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// How often its holder renews it.
pub const RENEW: Duration = Duration::from_secs(3);
/// How often others look at it.
pub const RETRY: Duration = Duration::from_secs(2);

/// A request about the Lease failed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// It could not be read.
    #[error("get Lease {NAME}")]
    Get(#[source] kube::Error),
    /// It could not be written.
    #[error("write Lease {NAME}")]
    Write(#[source] kube::Error),
}

/// Takes part in the election.
#[derive(Clone)]
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
}

/// The Lease, as this process last wrote it.
pub struct Held {
    candidate: Candidate,
    lease: Lease,
    renewed: Instant,
}

impl Candidate {
    /// Takes part in `namespace` under a name that no other running process has.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity,
        }
    }

    /// Ends once this process holds the Lease.
    pub async fn acquire(&self) -> Held {
        let mut seen: Option<(LeaseSpec, Instant)> = None;
        loop {
            match timeout(RENEW, self.try_acquire(&mut seen)).await {
                Ok(Ok(Some(held))) => return held,
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = chain(&error), "cannot lead yet");
                }
                Err(_) => tracing::warn!("cannot lead yet: the API server does not answer"),
            }
            sleep(RETRY).await;
        }
    }

    /// Takes the Lease from whoever holds it, for `duration`; the holder notices at its next
    /// renewal and ends.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub async fn seize(&self, duration: Duration) -> Result<(), LeaseError> {
        let mut attempts = 5;
        loop {
            let current = self.api.get_opt(NAME).await.map_err(LeaseError::Get)?;
            match self.write(current, duration).await {
                Ok(_) => return Ok(()),
                // Renewed in between.
                Err(error) if is_conflict(&error) && attempts > 0 => attempts -= 1,
                Err(error) => return Err(LeaseError::Write(error)),
            }
        }
    }

    async fn try_acquire(
        &self,
        seen: &mut Option<(LeaseSpec, Instant)>,
    ) -> Result<Option<Held>, LeaseError> {
        let begun = Instant::now();
        let current = self.api.get_opt(NAME).await.map_err(LeaseError::Get)?;
        if let Some(spec) = current.as_ref().and_then(|l| l.spec.as_ref()) {
            let holder = spec.holder_identity.as_deref().unwrap_or_default();
            let since = match seen {
                Some((known, since)) if known == spec => *since,
                _ => {
                    *seen = Some((spec.clone(), begun));
                    begun
                }
            };
            let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
            let is_free = holder.is_empty() || holder == self.identity;
            if !is_free && since.elapsed() < Duration::from_secs(seconds) {
                return Ok(None);
            }
        }
        match self.write(current, DURATION).await {
            Ok(lease) => Ok(Some(Held {
                candidate: self.clone(),
                lease,
                renewed: begun,
            })),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(LeaseError::Write(error)),
        }
    }

    /// Writes the Lease for this process over the version that was read.
    async fn write(
        &self,
        current: Option<Lease>,
        duration: Duration,
    ) -> Result<Lease, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = current else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None, now, duration)),
            };
            return self.api.create(&PostParams::default(), &lease).await;
        };
        lease.spec = Some(self.spec(lease.spec.take(), now, duration));
        self.api.replace(NAME, &PostParams::default(), &lease).await
    }

    fn spec(&self, old: Option<LeaseSpec>, now: MicroTime, duration: Duration) -> LeaseSpec {
        let old = old.unwrap_or_default();
        let is_ours = old.holder_identity.as_ref() == Some(&self.identity);
        let transitions = old.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
            acquire_time: if is_ours {
                old.acquire_time
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(!is_ours)),
            ..LeaseSpec::default()
        }
    }
}

impl Held {
    /// Renews the Lease until it is lost; then work must end at once.
    pub async fn keep(&mut self) {
        loop {
            sleep(RENEW).await;
            loop {
                let left = DEADLINE.saturating_sub(self.renewed.elapsed());
                if left.is_zero() {
                    tracing::error!("leadership is lost: the Lease could not be renewed in time");
                    return;
                }
                let begun = Instant::now();
                let lease = Some(self.lease.clone());
                match timeout(left.min(RENEW), self.candidate.write(lease, DURATION)).await {
                    Ok(Ok(lease)) => {
                        self.lease = lease;
                        self.renewed = begun;
                        break;
                    }
                    Ok(Err(error)) if is_conflict(&error) => {
                        // Ours all the same if the answer to an earlier try was lost.
                        if !self.is_still_ours().await {
                            tracing::error!("leadership is lost: another process took the Lease");
                            return;
                        }
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(error = chain(&error), "cannot renew the Lease");
                        sleep(Duration::from_secs(1)).await;
                    }
                    Err(_) => tracing::warn!("cannot renew the Lease: no answer"),
                }
            }
        }
    }

    /// Gives the Lease back, so that another process may lead at once.
    pub async fn release(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let Self {
            candidate, lease, ..
        } = self;
        let params = PostParams::default();
        let written = candidate.api.replace(NAME, &params, &lease);
        match timeout(Duration::from_secs(2), written).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "cannot give up the Lease");
            }
            Err(_) => tracing::warn!("cannot give up the Lease: no answer"),
        }
    }

    async fn is_still_ours(&mut self) -> bool {
        match timeout(RENEW, self.candidate.api.get_opt(NAME)).await {
            Ok(Ok(Some(lease))) => {
                let holder = lease
                    .spec
                    .as_ref()
                    .and_then(|s| s.holder_identity.as_deref());
                let is_ours = holder == Some(self.candidate.identity.as_str());
                self.lease = lease;
                is_ours
            }
            Ok(Ok(None)) => false,
            // Unknown; the deadline decides.
            Ok(Err(_)) | Err(_) => true,
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
