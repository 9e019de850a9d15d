//! Events on objects of any kind.

use hyprstream_api::{DecodeError, condition::reason};
use hyprstream_contract::label;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as EventObject},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use super::malformed;

/// Something that happened to an object of ours or to one made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    is_warning: bool,
    /// CamelCase reason.
    pub reason: String,
    action: &'static str,
    /// For the user of the object.
    pub note: String,
}

/// Who writes events.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    instance: String,
}

impl Recorder {
    /// Writes events as the process `instance`.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Writes an event. Each is an object of its own: events of the same reason tell of different
    /// commits, so they are not counted as one.
    ///
    /// # Errors
    /// The API server refused or failed.
    pub async fn publish(
        &self,
        regarding: ObjectReference,
        event: &Event,
    ) -> Result<(), kube::Error> {
        // What has no namespace has its events in this one.
        let namespace = regarding.namespace.clone().unwrap_or("default".to_owned());
        let name = regarding.name.clone().unwrap_or_default();
        let now = Timestamp::now();
        let object = EventObject {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(event.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(event.note.clone()),
            reason: Some(event.reason.clone()),
            regarding: Some(regarding),
            reporting_controller: Some(label::MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(
                if event.is_warning {
                    "Warning"
                } else {
                    "Normal"
                }
                .to_owned(),
            ),
            ..EventObject::default()
        };
        let api: Api<EventObject> = Api::namespaced(self.client.clone(), &namespace);
        api.create(&PostParams::default(), &object)
            .await
            .map(|_| ())
    }
}

impl Event {
    /// An object cannot be read.
    pub fn malformed(error: &DecodeError) -> Self {
        Self::warning(reason::MALFORMED, "Read", &malformed::message(error))
    }

    /// All is well.
    pub fn normal(reason: &str, action: &'static str, note: &str) -> Self {
        Self::new(false, reason, action, note)
    }

    /// Somebody should look.
    pub fn warning(reason: &str, action: &'static str, note: &str) -> Self {
        Self::new(true, reason, action, note)
    }

    fn new(is_warning: bool, reason: &str, action: &'static str, note: &str) -> Self {
        // The API server takes 1 kB, and a character up to 4 bytes.
        let note = note.chars().take(250).collect();
        Self {
            is_warning,
            reason: reason.to_owned(),
            action,
            note,
        }
    }
}
