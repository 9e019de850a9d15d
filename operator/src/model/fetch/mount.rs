//! Why volumes are not mounted, as the kubelet says.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyprstream_api::Checked;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};

use crate::chain;

/// How often the kubelet's events about a mount are asked for.
const CHECK: Duration = Duration::from_secs(5);

/// Asks for the kubelet's events about mounts, now and then.
pub struct Mounts {
    client: Client,
    /// What was last asked for a Model, by its UID. It is not needed to converge.
    asked: Mutex<HashMap<String, Asked>>,
}

#[derive(Clone)]
struct Asked {
    pod: String,
    at: Instant,
    answer: Option<String>,
}

impl Mounts {
    /// Has asked nothing yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            asked: Mutex::default(),
        }
    }

    /// Why the volume of a pod of the Model with `uid` is not mounted; `None` if nobody says so, or
    /// no `pod`, which is one's UID, waits for its volume. An answer is good for some seconds.
    pub async fn problem(&self, uid: &str, namespace: &str, pod: Option<&str>) -> Option<String> {
        let Some(pod) = pod else {
            self.asked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(uid);
            return None;
        };
        let known = self
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned();
        if let Some(known) = known
            && known.pod == pod
            && known.at.elapsed() < CHECK
        {
            return known.answer;
        }
        match newest(&self.client, namespace, pod).await {
            Ok(answer) => {
                let asked = Asked {
                    pod: pod.to_owned(),
                    at: Instant::now(),
                    answer: answer.clone(),
                };
                self.asked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(uid.to_owned(), asked);
                answer
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot list events");
                None
            }
        }
    }

    /// Forgets Models that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|uid, _| keep(uid));
    }
}

/// Why the kubelet cannot mount the volume of a pod, as of its newest event; `None` if it says
/// nothing.
///
/// # Errors
/// The API server failed.
async fn newest(
    client: &Client,
    namespace: &str,
    pod_uid: &str,
) -> Result<Option<String>, kube::Error> {
    let api: Api<Checked<Event>> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default()
        .fields(&format!("involvedObject.uid={pod_uid},reason=FailedMount"))
        .limit(20);
    let events = api.list(&params).await?.items.into_iter();
    let mut events: Vec<Event> = events.filter_map(|e| e.into_inner().ok()).collect();
    events.sort_by_key(|e| {
        e.last_timestamp
            .clone()
            .map(|t| t.0)
            .or(e.event_time.clone().map(|t| t.0))
    });
    // The kubelet adds now and then that it "timed out waiting", which says nothing.
    let newest = events
        .iter()
        .rev()
        .filter_map(|e| e.message.as_deref())
        .find(|m| m.starts_with("MountVolume."));
    Ok(newest.map(plain))
}

/// A kubelet's message without what only a developer of Kubernetes wants.
fn plain(message: &str) -> String {
    if message.contains("not found in the list of registered CSI drivers") {
        return "the hyprstream node plugin is not running on the pod's node (yet); the mount is \
                tried again"
            .to_owned();
    }
    match message.split_once(" desc = ") {
        Some((_, text)) => text.to_owned(),
        None => message
            .split_once(" : ")
            .map_or(message, |(_, text)| text)
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn mount_messages_lose_their_wrapping() {
        assert_eq!(
            plain(
                "MountVolume.SetUp failed for volume \"pv\" : rpc error: code = Unavailable desc \
                 = the registry does not answer"
            ),
            "the registry does not answer"
        );
        let missing = "MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: \
                       driver name csi.hyprstream.io not found in the list of registered CSI \
                       drivers";
        assert!(plain(missing).contains("node plugin is not running"));
    }
}
