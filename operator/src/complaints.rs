//! What others say goes wrong with an object: events of one reason, asked for now and then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyprstream_api::Checked;
use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};
use kube::{Api, Client, api::ListParams};

use crate::chain;

/// How often the events about an object are asked for.
const CHECK: Duration = Duration::from_secs(5);
/// Most events that are looked at.
const MOST: u32 = 20;

/// Events of one reason.
pub struct Complaints {
    client: Client,
    reason: &'static str,
    /// What was last asked for an owner, by its UID. It is not needed to converge.
    asked: Mutex<HashMap<String, Asked>>,
}

#[derive(Clone)]
struct Asked {
    object: String,
    at: Instant,
    answer: Arc<Vec<Event>>,
}

impl Complaints {
    /// Has asked nothing yet.
    pub fn new(client: Client, reason: &'static str) -> Self {
        Self {
            client,
            reason,
            asked: Mutex::default(),
        }
    }

    /// The events about an object, by its UID, oldest first; none without an object. `owner` is the
    /// UID of whom it is asked for. An answer is good for some seconds.
    pub async fn about(
        &self,
        owner: &str,
        namespace: &str,
        object: Option<&str>,
    ) -> Arc<Vec<Event>> {
        let asked = || self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = object else {
            asked().remove(owner);
            return Arc::default();
        };
        let known = asked().get(owner).cloned();
        if let Some(known) = known
            && known.object == object
            && known.at.elapsed() < CHECK
        {
            return known.answer;
        }
        match self.list(namespace, object).await {
            Ok(events) => {
                let answer = Arc::new(events);
                let now = Asked {
                    object: object.to_owned(),
                    at: Instant::now(),
                    answer: answer.clone(),
                };
                asked().insert(owner.to_owned(), now);
                answer
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot list events");
                Arc::default()
            }
        }
    }

    /// Forgets owners that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|uid, _| keep(uid));
    }

    async fn list(&self, namespace: &str, object: &str) -> Result<Vec<Event>, kube::Error> {
        let api: Api<Checked<Event>> = Api::namespaced(self.client.clone(), namespace);
        let fields = format!("involvedObject.uid={object},reason={}", self.reason);
        let params = ListParams::default().fields(&fields).limit(MOST);
        let events = api.list(&params).await?.items.into_iter();
        let mut events: Vec<Event> = events.filter_map(|e| e.into_inner().ok()).collect();
        events.sort_by_key(last_seen);
        Ok(events)
    }
}

/// When it was said last.
pub fn last_seen(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    last.or(event.event_time.as_ref().map(|time| time.0))
}
