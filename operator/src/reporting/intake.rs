//! Tells of objects that our types cannot hold.
//!
//! Everything that the operator watches is decoded object by object ([`Checked`]). One that cannot
//! be is as good as absent to the rest of the program; here it is told of, once: in the log, in a
//! metric and in an event on the object.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{Stream, StreamExt};
use hyprstream_api::{Checked, DecodeError};
use kube::{Resource, ResourceExt, runtime::watcher};

use super::events::{Event, Recorder};
use crate::{chain, metrics::Metrics};

/// Tells of objects that our types cannot hold.
pub struct Intake {
    metrics: Metrics,
    recorder: Recorder,
    /// What was told, by UID.
    told: Mutex<HashMap<String, DecodeError>>,
}

impl Intake {
    /// Has told of nothing yet.
    pub fn new(metrics: Metrics, recorder: Recorder) -> Self {
        Self {
            metrics,
            recorder,
            told: Mutex::default(),
        }
    }

    /// The same stream; what comes through it is looked at.
    pub fn watch<K>(
        self: Arc<Self>,
        stream: impl Stream<Item = watcher::Result<watcher::Event<Checked<K>>>>,
    ) -> impl Stream<Item = watcher::Result<watcher::Event<Checked<K>>>>
    where
        K: Resource<DynamicType = ()> + Clone,
    {
        stream.inspect(move |event| match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                self.look(object);
            }
            Ok(watcher::Event::Delete(object)) => self.forget(object),
            Ok(watcher::Event::Init | watcher::Event::InitDone) | Err(_) => {}
        })
    }

    fn look<K: Resource<DynamicType = ()> + Clone>(&self, object: &Checked<K>) {
        let Err(error) = object.get() else {
            return self.forget(object);
        };
        let before = self
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(object.uid().unwrap_or_default(), error.clone());
        if before.as_ref() == Some(error) {
            return;
        }
        let kind = K::kind(&());
        self.metrics.malformed.with_label_values(&[&*kind]).inc();
        tracing::error!(
            kind = %kind,
            namespace = object.namespace(),
            name = object.name_any(),
            error = chain(error),
            "an object cannot be read and is left alone"
        );
        let event = Event::malformed(error);
        let (recorder, regarding) = (self.recorder.clone(), object.object_ref(&()));
        tokio::spawn(async move {
            if let Err(error) = recorder.publish(regarding, &event).await {
                tracing::warn!(error = chain(&error), "cannot write an event");
            }
        });
    }

    fn forget<K: Resource<DynamicType = ()> + Clone>(&self, object: &Checked<K>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.is_empty() {
            told.remove(&object.uid().unwrap_or_default());
        }
    }
}
