use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use hyprstream_api::Checked;
use kube::{
    Client,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher,
    },
};

use crate::{
    cache::{Synced, scoped},
    kind::Kind,
    reporting::intake::Intake,
};

/// The objects of a kind in a scope, all namespaces or one, as their watch knows them.
pub struct Stock<K: Kind> {
    namespace: Option<String>,
    store: Store<Checked<K>>,
    synced: Synced,
}

/// A watch of the objects of a kind, which [`super::Controllers::start`] polls.
pub struct Watching<K: Kind> {
    /// What it knows.
    pub stock: Stock<K>,
    pub(super) objects: BoxStream<'static, watcher::Result<Checked<K>>>,
}

/// Watches the objects of a kind in a namespace, or in all. `seen` is called for each event once
/// the stock shows it.
pub fn watch<K: Kind>(
    client: &Client,
    namespace: Option<String>,
    intake: &Arc<Intake>,
    seen: impl Fn(&watcher::Event<Checked<K>>) + Send + 'static,
) -> Watching<K> {
    let writer = Writer::<Checked<K>>::default();
    let store = writer.as_reader();
    let objects = watcher(
        scoped::<Checked<K>>(client, namespace.as_deref()),
        watcher::Config::default(),
    );
    let objects = intake
        .clone()
        .watch(objects)
        .modify(|object| {
            use kube::ResourceExt;
            object.managed_fields_mut().clear();
            object
                .annotations_mut()
                .remove("kubectl.kubernetes.io/last-applied-configuration");
        })
        .reflect(writer);
    let (synced, objects) = Synced::note(objects);
    let objects = objects.inspect(move |event| {
        if let Ok(event) = event {
            seen(event);
        }
    });
    Watching {
        stock: Stock {
            namespace,
            store,
            synced,
        },
        objects: objects.default_backoff().applied_objects().boxed(),
    }
}

impl<K: Kind> Clone for Stock<K> {
    fn clone(&self) -> Self {
        Self {
            namespace: self.namespace.clone(),
            store: self.store.clone(),
            synced: self.synced.clone(),
        }
    }
}

impl<K: Kind> Stock<K> {
    /// The object of that name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Checked<K>>> {
        self.store.get(&ObjectRef::new(name).within(namespace))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Checked<K>>> {
        self.store.state()
    }

    /// Whether objects of that namespace are among them.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|own| own == namespace)
    }

    /// Ends once the first list is there.
    pub async fn ready(&self) {
        self.synced.wait().await;
    }

    pub(super) fn store(&self) -> Store<Checked<K>> {
        self.store.clone()
    }
}
