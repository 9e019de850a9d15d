//! Why the pod of a job is not made, as the controller of Jobs says.

use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Event},
    jiff::Timestamp,
};
use kube::{Client, ResourceExt};

use super::{fetch::Existing, status};
use crate::complaints::{Complaints, last_seen};

/// Reason of `Running`: a quota of the namespace has no room for the pod.
pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
/// Reason of `Running`: the API server does not take the pod for another reason.
pub const POD_REFUSED: &str = "PodRefused";

/// The API server does not take a job's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// [`QUOTA_EXCEEDED`] or [`POD_REFUSED`].
    pub reason: &'static str,
    /// What it said.
    pub said: String,
}

/// Asks for the events about pods that are not made, now and then.
pub struct Refusals(Complaints);

impl Refusals {
    /// Has asked nothing yet.
    pub fn new(client: Client) -> Self {
        Self(Complaints::new(client, "FailedCreate"))
    }

    /// Why a job has no pod; `None` if nobody says so since its last pod was made, or if it has one or
    /// is to have none.
    pub async fn newest(&self, uid: &str, namespace: &str, existing: &Existing) -> Option<Refusal> {
        let batch = existing.batch.as_deref();
        let batch = batch.filter(|batch| existing.active().is_none() && is_to_have_a_pod(batch));
        let batch = batch.and_then(ResourceExt::uid);
        let events = self.0.about(uid, namespace, batch.as_deref()).await;
        let made = existing.pods.iter().filter_map(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref();
            created.map(|time| time.0)
        });
        newest(&events, made.max())
    }

    /// Forgets jobs that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.retain(keep);
    }
}

fn is_to_have_a_pod(batch: &Job) -> bool {
    let is_suspended = batch.spec.as_ref().and_then(|spec| spec.suspend);
    !is_suspended.unwrap_or(false) && !status::is_over(batch)
}

/// What the newest event says, if that was after the last pod was made. `events` are oldest first.
fn newest(events: &[Event], made: Option<Timestamp>) -> Option<Refusal> {
    let newest = events.last()?;
    // Times of both are of whole seconds.
    let is_of_before = made.is_some_and(|made| last_seen(newest).is_none_or(|seen| seen < made));
    let said = plain(newest.message.as_deref()?);
    (!is_of_before).then(|| Refusal {
        reason: if said.starts_with("exceeded quota") || said.starts_with("failed quota") {
            QUOTA_EXCEEDED
        } else {
            POD_REFUSED
        },
        said: said.to_owned(),
    })
}

/// What the API server said, without the name of the pod, which is another at each attempt.
fn plain(message: &str) -> &str {
    let said = message.strip_prefix("Error creating: ").unwrap_or(message);
    let of_pod = said.strip_prefix("pods \"");
    let forbidden = of_pod.and_then(|rest| rest.split_once("\" is forbidden: "));
    forbidden.map_or(said, |(_, why)| why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(second: i64, message: &str) -> Event {
        let time = Timestamp::from_second(second).unwrap().to_string();
        serde_json::from_value(json!({"metadata": {}, "involvedObject": {},
            "reason": "FailedCreate", "message": message, "lastTimestamp": time}))
        .unwrap()
    }

    #[track_caller]
    fn check(message: &str, expected: (&str, &str)) {
        let found = newest(&[event(1, message)], None).unwrap();
        assert_eq!((found.reason, found.said.as_str()), expected);
    }

    #[test]
    fn a_quota_is_told_from_other_refusals_and_the_pods_name_is_left_out() {
        let quota = "exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2";
        check(
            &format!("Error creating: pods \"sql-x7k2p\" is forbidden: {quota}"),
            ("QuotaExceeded", quota),
        );
        let unset = "failed quota: q: must specify limits.cpu for: trainer";
        check(
            &format!("Error creating: pods \"sql-aaaaa\" is forbidden: {unset}"),
            ("QuotaExceeded", unset),
        );
        let account = "error looking up service account ns/a: serviceaccount \"a\" not found";
        check(
            &format!("Error creating: pods \"sql-aaaaa\" is forbidden: {account}"),
            ("PodRefused", account),
        );
        let hook = "admission webhook \"w\" denied the request: exceeded quota of mine";
        check(&format!("Error creating: {hook}"), ("PodRefused", hook));
    }

    #[test]
    fn what_was_said_before_the_last_pod_was_made_is_over() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let events = [event(3, "a"), event(5, "b")];
        assert_eq!(newest(&events, at(6)), None);
        assert_eq!(newest(&events, at(5)).unwrap().said, "b");
        assert_eq!(newest(&[], None), None);
    }
}
