//! The task that looks after the source of one object.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyprstream_api::condition;
use hyprstream_contract::{
    CommitId,
    registry::{
        ApiError, Credentials, MirrorRequest, MirrorState, Reference, ResolveRequest, Upstream,
    },
};
use hyprstream_slots::Slot;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    Findings, Mirrored, Problem, Progress, Serving, Shared, SourceKey, own_repository,
    resolve::leeway,
    secret::{self, SecretError},
};
use crate::{
    chain,
    kind::{Subject, Trigger},
    registry::RegistryError,
};

pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) key: SourceKey,
    pub(super) wake: Arc<Notify>,
    pub(super) findings: Arc<Mutex<Findings>>,
    /// What workers are made of.
    pub(super) serving: Arc<Mutex<Vec<Serving>>>,
    /// When the registry was last asked for that.
    pub(super) asked_for_serving: Mutex<Option<Instant>>,
    pub(super) trigger: Trigger,
    pub(super) subject: Subject,
}

/// How an attempt ended well.
enum Outcome {
    /// The commit lies on the registry.
    Mirrored,
    /// The reference moved in the meantime.
    Superseded,
}

/// Why an attempt did not end with a mirrored commit.
struct Failure {
    problem: Problem,
    /// Version of the Secret that was used or refused.
    secret: Option<String>,
    /// Another attempt is due soon, without counting this one.
    fleeting: bool,
}

/// How a pause ended.
enum Waited {
    /// Somebody wants to know what is true now.
    Woken,
    /// It was so long.
    Out(Duration),
}

impl Waited {
    /// From when on a question must have gone out for its answer to count, for whoever was last told
    /// something at `answered`.
    fn since(self, answered: Instant) -> Instant {
        let now = Instant::now();
        match self {
            Self::Woken => now,
            Self::Out(pause) => now
                .checked_sub(leeway(pause))
                .map_or(answered, |since| since.max(answered)),
        }
    }
}

impl Task {
    pub(super) async fn run(self) {
        let pace = self.shared.pace;
        let mut pause = pace.first_pause;
        let mut silent_since: Option<Instant> = None;
        // What was asked before this is no news.
        let mut since = Instant::now();
        loop {
            let attempted = self.attempt(since).await;
            let answered = Instant::now();
            since = match attempted {
                Ok(Outcome::Superseded) => answered,
                Ok(Outcome::Mirrored) => {
                    pause = pace.first_pause;
                    silent_since = None;
                    // A commit cannot move, but what the registry holds of it can be lost.
                    self.wait(self.key.interval).await.since(answered)
                }
                Err(failure) if failure.fleeting => {
                    let begun = *silent_since.get_or_insert_with(Instant::now);
                    if begun.elapsed() >= pace.silence {
                        self.update(|f| f.problem = Some(failure.problem)).await;
                        let waited = self.wait(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(30));
                        waited.since(answered)
                    } else {
                        self.wait(pace.poll).await.since(answered)
                    }
                }
                Err(failure) => {
                    silent_since = None;
                    tracing::info!(
                        reason = failure.problem.reason,
                        message = failure.problem.message,
                        "source cannot be had"
                    );
                    self.update(|f| f.problem = Some(failure.problem)).await;
                    let waited = self
                        .wait_after_failure(pause, failure.secret.as_deref())
                        .await;
                    pause = (pause * 2).min(pace.last_pause);
                    waited.since(answered)
                }
            };
        }
    }

    /// Resolves by an answer to a question that went out at `since` or later, and mirrors.
    async fn attempt(&self, since: Instant) -> Result<Outcome, Failure> {
        let found = match &self.key.secret {
            None => Ok(None),
            Some(name) => secret::read(&self.shared.client, &self.key.namespace, name)
                .await
                .map(Some),
        };
        let (upstream, version) = match found {
            Ok(found) => {
                let (credentials, version) = found.map(|f| (f.credentials, f.version)).unzip();
                (Ok(self.upstream(&self.key.url, credentials)), version)
            }
            Err(error) => (Err(secret_failure(&error)), None),
        };
        // What serves is not to go because what is wanted cannot be had.
        self.keep_serving(upstream.as_ref().ok()).await;
        self.attempt_with(upstream?, since)
            .await
            .map_err(|(problem, fleeting)| Failure {
                problem,
                secret: version,
                fleeting,
            })
    }

    async fn attempt_with(
        &self,
        upstream: Upstream,
        since: Instant,
    ) -> Result<Outcome, (Problem, bool)> {
        let commit = self.resolve(&upstream, since).await?;
        self.mirror(upstream, commit).await
    }

    fn upstream(&self, url: &str, credentials: Option<Credentials>) -> Upstream {
        Upstream {
            url: url.to_owned(),
            namespace: self.key.namespace.clone(),
            credentials,
        }
    }

    /// Asks the registry for what workers are made of, if the interval is over, so that it does not
    /// take it for unused while the source has moved on or fails. What it answers changes nothing:
    /// the workers have what they have. `upstream` is the source's own, if its Secret is there.
    async fn keep_serving(&self, upstream: Option<&Upstream>) {
        let latest = {
            let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            findings.latest.clone()
        };
        let serving: Vec<Serving> = {
            let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
            let is_other =
                |s: &&Serving| s.url != self.key.url || Some(&s.commit) != latest.as_ref();
            serving.iter().filter(is_other).cloned().collect()
        };
        let is_due = {
            let mut asked = self
                .asked_for_serving
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let due = asked.is_none_or(|at| at.elapsed() >= self.key.interval);
            if due && !serving.is_empty() {
                *asked = Some(Instant::now());
            }
            due
        };
        if !is_due {
            return;
        }
        for serving in serving {
            let upstream = if serving.url == self.key.url {
                upstream.cloned()
            } else {
                self.former_upstream(&serving).await
            };
            let Some(upstream) = upstream else { continue };
            let request = MirrorRequest {
                upstream,
                reference: Reference::Commit(serving.commit.clone()),
                commit: serving.commit,
                include: serving.include,
            };
            let _slot = self.slot().await;
            let commit = &request.commit;
            match self.shared.registry.mirror(&request).await {
                Ok(status) => {
                    tracing::debug!(%commit, state = ?status.state, "asked for what serves");
                }
                Err(error) => {
                    tracing::debug!(%commit, error = chain(&error), "cannot ask for what serves");
                }
            }
        }
    }

    /// That of what serves and came from another URL than the source names now. `None` where its
    /// Secret cannot be had.
    async fn former_upstream(&self, serving: &Serving) -> Option<Upstream> {
        // Whether it may have credentials without TLS was said of the source that was admitted last.
        let is_safe = !serving.url.starts_with("http://");
        let Some(name) = serving.secret.as_ref().filter(|_| is_safe) else {
            return Some(self.upstream(&serving.url, None));
        };
        let found = secret::read(&self.shared.client, &self.key.namespace, name).await;
        found
            .inspect_err(|error| {
                let (url, error) = (&serving.url, chain(error));
                tracing::warn!(
                    url,
                    error,
                    "cannot ask for what serves, which the registry may drop"
                );
            })
            .ok()
            .map(|found| self.upstream(&serving.url, Some(found.credentials)))
    }

    /// A place for a question to the registry, of which each namespace has its share.
    async fn slot(&self) -> Slot {
        let owners = hyprstream_slots::owner(&self.key.namespace);
        self.shared.slots.acquire(&owners, false).await
    }

    async fn resolve(
        &self,
        upstream: &Upstream,
        since: Instant,
    ) -> Result<CommitId, (Problem, bool)> {
        if let Reference::Commit(commit) = &self.key.reference {
            return Ok(commit.clone());
        }
        let request = ResolveRequest {
            upstream: upstream.clone(),
            reference: self.key.reference.clone(),
        };
        let answer = self.shared.resolver.resolve(&request, since).await;
        answer.map_err(|error| Self::problem(&error))
    }

    /// Returns once the commit lies on the registry, or another is wanted.
    async fn mirror(
        &self,
        upstream: Upstream,
        commit: CommitId,
    ) -> Result<Outcome, (Problem, bool)> {
        let request = MirrorRequest {
            upstream,
            reference: self.key.reference.clone(),
            commit: commit.clone(),
            include: self.key.include.clone(),
        };
        let mut reported: Option<Instant> = None;
        loop {
            let answer = {
                let _slot = self.slot().await;
                self.shared.registry.mirror(&request).await
            };
            // Invariant: which commit it is is told with what the registry has of it, and not before.
            // After a start, nobody would know that it is there.
            let status = match answer {
                Ok(status) => status,
                Err(error) => {
                    let (problem, fleeting) = Self::problem(&error);
                    if !fleeting {
                        self.update(|f| {
                            names(f, &commit);
                            f.problem = Some(problem.clone());
                        })
                        .await;
                    }
                    return Err((problem, fleeting));
                }
            };
            let progress = Progress {
                done_bytes: status.bytes_done,
                total_bytes: status.bytes_total,
            };
            match status.state {
                MirrorState::Ready => {
                    self.update(|f| {
                        *f = Findings {
                            latest: Some(commit.clone()),
                            mirrored: Some(Mirrored {
                                commit,
                                repository: status.repository,
                                size_bytes: status.bytes_total,
                            }),
                            download: Some(progress),
                            problem: None,
                        };
                    })
                    .await;
                    return Ok(Outcome::Mirrored);
                }
                MirrorState::Fetching => {
                    if reported.is_none_or(|at| at.elapsed() >= self.shared.pace.report) {
                        reported = Some(Instant::now());
                        self.update(|f| {
                            names(f, &commit);
                            f.download = Some(progress);
                            f.problem = None;
                        })
                        .await;
                    }
                    // A push while an older commit is being fetched: look again at once.
                    tokio::select! {
                        () = sleep(self.shared.pace.poll) => {}
                        () = self.wake.notified() => {
                            let now = Instant::now();
                            if self.resolve(&request.upstream, now).await? != commit {
                                return Ok(Outcome::Superseded);
                            }
                        }
                    }
                }
                MirrorState::Failed => {
                    let error = status.error.unwrap_or_else(|| ApiError {
                        reason: hyprstream_contract::registry::reason::INTERNAL.to_owned(),
                        message: "the registry did not say why".to_owned(),
                        retriable: true,
                    });
                    let problem = refused(&error);
                    self.update(|f| {
                        names(f, &commit);
                        f.mirrored = None;
                        f.download = Some(progress);
                        f.problem = Some(problem.clone());
                    })
                    .await;
                    return Err((problem, false));
                }
            }
        }
    }

    fn problem(error: &RegistryError) -> (Problem, bool) {
        match error {
            RegistryError::Refused(error) => (refused(error), false),
            other => {
                tracing::warn!(error = chain(other), "the registry does not answer");
                let problem = Problem {
                    reason: condition::reason::REGISTRY_UNREACHABLE.to_owned(),
                    message: "the registry of this cluster does not answer as it should; it is \
                              asked again until it does. Is the hyprstream-registry pod running?"
                        .to_owned(),
                    retriable: true,
                };
                (problem, true)
            }
        }
    }

    /// Changes the findings and, if that made a difference, triggers a reconciliation.
    async fn update(&self, change: impl FnOnce(&mut Findings) + Send) {
        let changed = {
            let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            let before = findings.clone();
            change(&mut findings);
            *findings != before
        };
        if changed {
            // The receiver is gone only when the controller ends.
            let _ = self.trigger.send(self.subject.clone()).await;
        }
    }

    async fn wait(&self, pause: Duration) -> Waited {
        tokio::select! {
            () = sleep(pause) => Waited::Out(pause),
            () = self.wake.notified() => Waited::Woken,
        }
    }

    /// Waits, but no longer than until the Secret changes.
    async fn wait_after_failure(&self, pause: Duration, version: Option<&str>) -> Waited {
        // A push is the usual cure for what an own repository lacks, and it wakes.
        let pause = if own_repository(&self.key.url).is_some() {
            pause.min(Duration::from_mins(1))
        } else {
            pause
        };
        let deadline = Instant::now() + pause;
        let Some(name) = &self.key.secret else {
            return self.wait(pause).await;
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let notified = tokio::select! {
                () = sleep(left.min(self.shared.pace.secret)) => false,
                () = self.wake.notified() => true,
            };
            if notified {
                return Waited::Woken;
            }
            if Instant::now() >= deadline {
                return Waited::Out(pause);
            }
            let now = secret::read(&self.shared.client, &self.key.namespace, name).await;
            let now = match now {
                Ok(found) => Some(found.version),
                Err(
                    SecretError::Invalid { version, .. } | SecretError::Unmarked { version, .. },
                ) => Some(version),
                Err(SecretError::NotFound(_)) => None,
                Err(_) => continue,
            };
            if now.as_deref() != version {
                return Waited::Woken;
            }
        }
    }
}

/// The reference names that commit. A failed mirror stays reported until it is ready or fails in
/// another way.
fn names(findings: &mut Findings, commit: &CommitId) {
    if findings.latest.as_ref() != Some(commit) {
        findings.mirrored = None;
        findings.download = None;
    }
    findings.latest = Some(commit.clone());
}

fn refused(error: &ApiError) -> Problem {
    Problem {
        reason: error.reason.clone(),
        message: error.message.clone(),
        retriable: error.retriable,
    }
}

fn secret_failure(error: &SecretError) -> Failure {
    use condition::reason::{API_ERROR, INVALID_SECRET, SECRET_NOT_FOUND};
    let (reason, secret, retriable) = match error {
        SecretError::Get(..) | SecretError::Forbidden(_) => (API_ERROR, None, true),
        SecretError::NotFound(_) => (SECRET_NOT_FOUND, None, false),
        SecretError::Invalid { version, .. } | SecretError::Unmarked { version, .. } => {
            (INVALID_SECRET, Some(version.clone()), false)
        }
    };
    Failure {
        problem: Problem {
            reason: reason.to_owned(),
            message: error.to_string(),
            retriable,
        },
        secret,
        fleeting: false,
    }
}
