//! Objects of which something could not be read.

use std::collections::BTreeSet;

use kube::api::DynamicObject;
use prometheus::IntGauge;
use tracing::warn;

use crate::Metrics;

/// The objects of one watch that hold a value of another form than the gateway knows.
pub(super) struct Unread {
    kind: String,
    names: BTreeSet<String>,
    count: IntGauge,
}

impl Unread {
    pub(super) fn new(kind: &str, metrics: &Metrics) -> Self {
        Self {
            kind: kind.to_owned(),
            names: BTreeSet::new(),
            count: metrics.unread.with_label_values(&[kind]),
        }
    }

    /// Reports the fields of an object that could not be read, if there are any.
    pub(super) fn note(&mut self, object: &DynamicObject, fields: &[String]) {
        if fields.is_empty() {
            return self.forget(object);
        }
        let name = name(object);
        warn!(
            kind = self.kind,
            object = name,
            ?fields,
            "fields of an object cannot be read and count as absent"
        );
        if self.names.insert(name) {
            self.count.inc();
        }
    }

    /// The object is gone, or can be read now.
    pub(super) fn forget(&mut self, object: &DynamicObject) {
        if !self.names.is_empty() && self.names.remove(&name(object)) {
            self.count.dec();
        }
    }

    /// All objects are about to be listed anew.
    pub(super) fn clear(&mut self) {
        self.count.sub(self.names.len() as i64);
        self.names.clear();
    }
}

fn name(object: &DynamicObject) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let metadata = &object.metadata;
    format!("{}/{}", part(&metadata.namespace), part(&metadata.name))
}
