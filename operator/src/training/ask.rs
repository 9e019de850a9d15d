//! Asks the pods of jobs how far they are.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyprstream_contract::training::{PORT, PROGRESS_PATH, Progress};
use tokio_util::task::AbortOnDropHandle;

use crate::kind::{Subject, Trigger};

/// Between two questions, and so between two statuses of progress.
pub const EVERY: Duration = Duration::from_secs(5);
/// Longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer that is read; 32 points and some notices are a tenth of it.
const MAX_BYTES: usize = 256 << 10;

/// A pod that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainerPod {
    /// UID of the pod.
    pub uid: String,
    /// Where it is.
    pub address: SocketAddr,
    /// What it asks for.
    pub key: String,
}

impl TrainerPod {
    /// The pod of that UID at an address that the kubelet says.
    pub fn new(uid: String, ip: &str, key: String) -> Option<Self> {
        let ip: IpAddr = ip.parse().ok()?;
        Some(Self {
            uid,
            address: SocketAddr::new(ip, PORT),
            key,
        })
    }
}

/// Asks the pods of jobs that run, one task for each. What it knows is not needed to converge.
pub struct Asker {
    http: reqwest::Client,
    trigger: Trigger,
    every: Duration,
    jobs: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    pod: TrainerPod,
    progress: Arc<Mutex<Option<Progress>>>,
    _task: AbortOnDropHandle<()>,
}

impl Asker {
    /// Asks every so often; [`EVERY`] but in tests.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(trigger: Trigger, every: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .no_proxy()
            .tls_backend_preconfigured(hyprstream_tls::Trust::nobody().client_config())
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self {
            http,
            trigger,
            every,
            jobs: Mutex::default(),
        })
    }

    /// How far the pod said that it is, last time; `None` before its first answer. Starts to ask a
    /// pod that nobody asks.
    pub fn progress(&self, uid: &str, subject: &Subject, pod: &TrainerPod) -> Option<Progress> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = jobs.get(uid).filter(|entry| entry.pod == *pod) {
            let progress = entry.progress.lock();
            return progress.unwrap_or_else(PoisonError::into_inner).clone();
        }
        let progress = Arc::new(Mutex::new(None));
        let task = follow(
            self.http.clone(),
            pod.clone(),
            self.every,
            progress.clone(),
            self.trigger.clone(),
            subject.clone(),
        );
        let entry = Entry {
            pod: pod.clone(),
            progress,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        };
        jobs.insert(uid.to_owned(), entry);
        None
    }

    /// Asks no more for a job.
    pub fn forget(&self, uid: &str) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.remove(uid);
    }

    /// Forgets all jobs that `keep` does not name.
    pub fn retain(&self, keep: &dyn Fn(&str) -> bool) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|uid, _| keep(uid));
    }
}

async fn follow(
    http: reqwest::Client,
    pod: TrainerPod,
    every: Duration,
    progress: Arc<Mutex<Option<Progress>>>,
    trigger: Trigger,
    subject: Subject,
) {
    loop {
        if let Some(new) = ask(&http, &pod).await {
            let is_other = {
                let mut known = progress.lock().unwrap_or_else(PoisonError::into_inner);
                known.replace(new.clone()) != Some(new)
            };
            // The receiver is gone only when the controllers end.
            if is_other && trigger.send(subject.clone()).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// `None` if it does not answer as it should: it may be about to begin, or to end.
async fn ask(http: &reqwest::Client, pod: &TrainerPod) -> Option<Progress> {
    let url = format!("http://{}{PROGRESS_PATH}", pod.address);
    let request = http.get(url).bearer_auth(&pod.key).send().await;
    let mut answer = request.ok()?.error_for_status().ok()?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.ok()? {
        if body.len() + part.len() > MAX_BYTES {
            return None;
        }
        body.extend_from_slice(&part);
    }
    serde_json::from_slice(&body).ok()
}
