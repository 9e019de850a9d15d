//! What `/readyz` answers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyprstream_api::{Adapter, Checked, Model, TrainingJob};
use kube::{Client, api::ListParams};
use tokio::time::sleep;

use crate::{cache::scoped, chain, kind::Kind};

/// How often the CRD is looked for.
const RETRY: Duration = Duration::from_secs(2);

/// What this process waits for before it can do its work. One that has what it needs and waits for
/// the Lease is as ready as it gets.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Default for Readiness {
    fn default() -> Self {
        let begun = "the API server was not asked yet".to_owned();
        Self(Arc::new(Mutex::new(Some(begun))))
    }
}

impl Readiness {
    /// Nothing is missing.
    ///
    /// # Errors
    /// What is waited for.
    pub fn check(&self) -> Result<(), String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(what) => Err(what.clone()),
            None => Ok(()),
        }
    }

    /// Something is missing.
    pub fn waits(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }

    /// Nothing is missing any more.
    pub fn is_there(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Ends once objects of all our kinds can be listed in all of these namespaces, or everywhere if none
/// is given.
pub async fn kinds_are_served(client: &Client, namespaces: &[String], readiness: &Readiness) {
    is_served::<Model>(client, namespaces, readiness).await;
    is_served::<Adapter>(client, namespaces, readiness).await;
    is_served::<TrainingJob>(client, namespaces, readiness).await;
    readiness.is_there();
}

/// Ends once objects of the kind `K` can be listed.
async fn is_served<K: Kind>(client: &Client, namespaces: &[String], readiness: &Readiness) {
    let scopes: Vec<Option<&str>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().map(|n| Some(n.as_str())).collect()
    };
    for scope in scopes {
        let mut said = String::new();
        loop {
            let api = scoped::<Checked<K>>(client, scope);
            let why = match api.list(&ListParams::default().limit(1)).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    let (plural, group) = (K::plural(&()), K::group(&()));
                    format!("the CRD {plural}.{group} is not installed")
                }
                Err(error) => {
                    let (kind, why) = (K::LABELS.kind, chain(&error));
                    format!("{kind}s cannot be listed: {why}")
                }
            };
            if why != said {
                tracing::warn!(namespace = scope, why, "not ready");
                readiness.waits(&why);
                said = why;
            }
            sleep(RETRY).await;
        }
    }
}
