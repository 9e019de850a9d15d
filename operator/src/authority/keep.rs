//! Looks, has it decided, writes.

use std::{fmt::Debug, time::SystemTime};

use hyprstream_tls::{Authority, MakeError, Trust};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, ObjectReference, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    AUTHORITY_LIFE, LIFE, Settings,
    decide::{Seen, Step, decide},
    objects::{self, AUTHORITY, OPAQUE, REGISTRY, TLS, TRUST},
};
use crate::{
    chain,
    metrics::Metrics,
    reporting::events::{Event, Recorder},
};

/// Most steps in a row: there is no way that needs more.
const STEPS: usize = 16;
/// Reason of events about certificates that somebody broke.
const REPLACED: &str = "CertificateReplaced";
/// Reason of events about certificates that are made in their time.
const ISSUED: &str = "CertificateIssued";

/// The bundle (PEM), as soon as there is one.
pub type Published = watch::Receiver<Option<String>>;

/// A step failed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("{verb} {name}")]
    Request {
        verb: &'static str,
        name: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("make a certificate")]
    Make(#[source] MakeError),
}

/// Keeps the certificates.
pub struct Keeper {
    settings: Settings,
    client: Client,
    recorder: Recorder,
    metrics: Metrics,
    trust: Trust,
    published: watch::Sender<Option<String>>,
}

/// The objects as they were found.
struct Found {
    keys: Option<Secret>,
    bundle: Option<ConfigMap>,
    leaf: Option<Secret>,
}

impl Keeper {
    /// One that tells `trust` whom to trust.
    pub fn new(
        settings: Settings,
        client: Client,
        recorder: Recorder,
        metrics: Metrics,
        trust: Trust,
    ) -> Self {
        let published = watch::Sender::new(None);
        Self {
            settings,
            client,
            recorder,
            metrics,
            trust,
            published,
        }
    }

    /// Hears of the bundle.
    pub fn published(&self) -> Published {
        self.published.subscribe()
    }

    /// Looks again and again; never ends by itself.
    pub async fn run(self) {
        let mut complaint = None;
        loop {
            match self.settle().await {
                Ok(()) => complaint = None,
                Err(error) => {
                    let error = chain(&error);
                    if complaint.as_ref() != Some(&error) {
                        tracing::warn!(error, "the certificates cannot be kept; trying again");
                        complaint = Some(error);
                    }
                }
            }
            tokio::time::sleep(self.settings.pause).await;
        }
    }

    /// Step after step, until there is none.
    async fn settle(&self) -> Result<(), KeepError> {
        for _ in 0..STEPS {
            let found = self.look().await?;
            let seen = objects::seen(
                found.keys.as_ref(),
                found.bundle.as_ref(),
                found.leaf.as_ref(),
            );
            let now = objects::whole(SystemTime::now());
            let step = decide(&seen, &self.settings.names, self.settings.overlap, now);
            // A bundle that is about to be written may have somebody in it who should not be.
            let is_sound = !seen.bundle.is_empty() && !matches!(step, Step::Publish { .. });
            if is_sound {
                self.tell(&seen);
            }
            if let Step::Rest { until } = step {
                tracing::trace!(?until, "nothing to do for the certificates");
                return Ok(());
            }
            self.take(step, &seen, found, now).await?;
        }
        Ok(())
    }

    async fn look(&self) -> Result<Found, KeepError> {
        Ok(Found {
            keys: self.get(AUTHORITY).await?,
            bundle: self.get(TRUST).await?,
            leaf: self.get(REGISTRY).await?,
        })
    }

    /// Takes one step.
    async fn take(
        &self,
        step: Step,
        seen: &Seen,
        found: Found,
        now: SystemTime,
    ) -> Result<(), KeepError> {
        let namespace = &self.settings.namespace;
        let generate =
            || Authority::generate("hyprstream", now, AUTHORITY_LIFE).map_err(KeepError::Make);
        match step {
            Step::Rest { .. } => Ok(()),
            Step::Begin { wrong } => {
                let new = objects::keys(namespace, &generate()?, None);
                self.write_secret(AUTHORITY, found.keys, new).await?;
                self.say(AUTHORITY, "a new authority", wrong).await;
                Ok(())
            }
            Step::Prepare => {
                let Some(current) = &seen.current else {
                    return Ok(());
                };
                let new = objects::keys(namespace, current, Some(&generate()?));
                self.write_secret(AUTHORITY, found.keys, new).await?;
                self.say(AUTHORITY, "the authority that will sign next", None)
                    .await;
                Ok(())
            }
            Step::Promote => {
                let Some(next) = &seen.next else {
                    return Ok(());
                };
                let new = objects::keys(namespace, next, None);
                self.write_secret(AUTHORITY, found.keys, new).await?;
                self.say(AUTHORITY, "the next authority signs now", None)
                    .await;
                Ok(())
            }
            Step::Publish { bundle, wrong } => {
                let new = objects::config_map(namespace, &bundle);
                let is_frozen = found
                    .bundle
                    .as_ref()
                    .is_some_and(|m| m.immutable == Some(true));
                self.write(TRUST, found.bundle, new, is_frozen).await?;
                let what = format!("a bundle of {} authorities", bundle.len());
                self.say(TRUST, &what, wrong).await;
                Ok(())
            }
            Step::Issue { why, wrong } => {
                let Some(current) = &seen.current else {
                    return Ok(());
                };
                let issued = current
                    .issue(&self.settings.names, now, LIFE)
                    .map_err(KeepError::Make)?;
                let new = objects::leaf(namespace, &issued, current);
                self.write_secret(REGISTRY, found.leaf, new).await?;
                let hosts = super::listed(&self.settings.names.hosts);
                let what = format!("a certificate for {hosts}: {why}");
                self.say(REGISTRY, &what, wrong).await;
                Ok(())
            }
        }
    }

    /// Tells who waits for it what there is now.
    fn tell(&self, seen: &Seen) {
        let text = objects::text(&seen.bundle);
        if self.published.borrow().as_ref() != Some(&text) {
            match self.trust.set(&text) {
                Ok(()) => drop(self.published.send_replace(Some(text))),
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "the bundle of authorities is of no use"
                    );
                }
            }
        }
        let ends = &self.metrics.certificate_ends;
        let set = |name: &str, at: Option<SystemTime>| match at {
            Some(at) => ends
                .with_label_values(&[name])
                .set(i64::try_from(objects::seconds(at)).unwrap_or(i64::MAX)),
            // It is not there, which is no failure.
            None => drop(ends.remove_label_values(&[name])),
        };
        let authority = |a: &Authority| a.facts().not_after;
        set("authority", seen.current.as_ref().map(authority));
        set("next-authority", seen.next.as_ref().map(authority));
        set(
            "registry",
            seen.leaf.as_ref().map(|leaf| leaf.facts.not_after),
        );
    }

    /// A line in the log and an event. `wrong` is what was the matter with what was there before.
    async fn say(&self, name: &'static str, what: &str, wrong: Option<String>) {
        let event = if let Some(wrong) = &wrong {
            tracing::warn!(
                name,
                what,
                wrong,
                "made certificates anew: those that were there could not be used"
            );
            Event::warning(REPLACED, "Replace", &format!("{what}; before, {wrong}"))
        } else {
            tracing::info!(name, what, "made certificates");
            Event::normal(ISSUED, "Issue", what)
        };
        let kind = if name == TRUST { "ConfigMap" } else { "Secret" };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            namespace: Some(self.settings.namespace.clone()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(about, &event).await {
            tracing::debug!(error = chain(&error), "an event is lost");
        }
    }

    async fn write_secret(
        &self,
        name: &'static str,
        old: Option<Secret>,
        new: Secret,
    ) -> Result<(), KeepError> {
        let kind = if name == REGISTRY { TLS } else { OPAQUE };
        let is_frozen = old.as_ref().is_some_and(|old| {
            old.immutable == Some(true) || old.type_.as_deref().unwrap_or(OPAQUE) != kind
        });
        self.write(name, old, new, is_frozen).await
    }

    /// Puts `new` in place of `old`, unless somebody else did something meanwhile. One that cannot
    /// be changed (`is_frozen`) is deleted first.
    async fn write<K>(
        &self,
        name: &'static str,
        old: Option<K>,
        mut new: K,
        is_frozen: bool,
    ) -> Result<(), KeepError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let params = PostParams::default();
        let failed = |verb| {
            move |source| KeepError::Request {
                verb,
                name,
                source: Box::new(source),
            }
        };
        if let Some(old) = &old
            && !is_frozen
        {
            new.meta_mut().resource_version = old.resource_version();
            let replaced = api.replace(name, &params, &new).await;
            return replaced.map(drop).map_err(failed("replace"));
        }
        if let Some(old) = &old {
            let only = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: old.uid(),
                    ..Preconditions::default()
                }),
                ..DeleteParams::default()
            };
            api.delete(name, &only).await.map_err(failed("delete"))?;
        }
        let created = api.create(&params, &new).await;
        created.map(drop).map_err(failed("create"))
    }

    async fn get<K>(&self, name: &'static str) -> Result<Option<K>, KeepError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        api.get_opt(name)
            .await
            .map_err(|source| KeepError::Request {
                verb: "get",
                name,
                source: Box::new(source),
            })
    }
}
