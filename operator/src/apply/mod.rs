//! Makes the cluster what `build` says.
//!
//! # Guarantees
//! - An object that somebody else made under a name that we need is never touched.
//! - An object is written only if what it should be changed since it was last written, or if
//!   somebody else changed it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use hyprstream_api::condition::reason;
use hyprstream_contract::label;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};

use crate::{
    cache::{Caches, Watched, digest, fingerprint},
    metrics::Metrics,
    model::{
        build::{NewVolume, persistent_volume, persistent_volume_claim},
        validate::Plan,
    },
};

/// Something cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another object has the name.
    #[error(
        "{kind} {name} exists and was not made for this Model; it is left alone. Rename the \
         Model, or delete the {kind}"
    )]
    NameConflict {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An earlier object of the name is still being deleted.
    #[error("{kind} {name} is still being deleted")]
    Leaving {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The namespace is being deleted, and with it soon the Model.
    #[error("the namespace is being deleted")]
    NamespaceEnds,
    /// The API server finds what the spec asks for impossible.
    #[error("the API server refuses {kind} {name}: {message}")]
    Refused {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// What it said.
        message: String,
    },
    /// A request failed.
    #[error("{verb} {kind} {name}")]
    Request {
        /// What was done.
        verb: &'static str,
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What helps against an [`ApplyError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// An edit by the user. It is tried again now and then all the same.
    Edit,
    /// Another try.
    Retry,
}

impl ApplyError {
    /// Reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameConflict { .. } => reason::NAME_CONFLICT,
            Self::Leaving { .. } | Self::NamespaceEnds => reason::PENDING,
            Self::Refused { .. } => reason::INVALID_SPEC,
            Self::Request { .. } => reason::API_ERROR,
        }
    }

    /// What helps.
    pub fn action(&self) -> Help {
        match self {
            Self::NameConflict { .. } | Self::Refused { .. } => Help::Edit,
            Self::Leaving { .. } | Self::NamespaceEnds | Self::Request { .. } => Help::Retry,
        }
    }

    /// For the user of the Model.
    pub fn message(&self) -> String {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => format!("{self}: {}", status.message),
                _ => format!("{self}: the API server does not answer as it should"),
            },
            _ => self.to_string(),
        }
    }
}

/// Writes objects and remembers what it wrote.
pub struct Applier {
    client: Client,
    metrics: Metrics,
    written: Mutex<HashMap<(String, String), Written>>,
}

struct Written {
    desired: String,
    live: String,
}

impl Applier {
    /// Has written nothing yet.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self {
            client,
            metrics,
            written: Mutex::default(),
        }
    }

    /// Forgets what was written for Models that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|(uid, _), _| keep(uid));
    }

    /// Makes a namespaced object that the Model owns what it should be. `cached` is what the cache
    /// has under its name.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn ensure<K>(
        &self,
        plan: &Plan,
        desired: &K,
        cached: Option<&K>,
    ) -> Result<(), ApplyError>
    where
        K: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let kind = K::kind(&()).into_owned();
        let name = desired.name_any();
        let api: Api<K> = Api::namespaced(self.client.clone(), &plan.namespace);
        let failed = |verb, source| request_error(verb, &kind, &name, source);
        // The cache holds only what has our label, and may lag behind.
        let live = match cached {
            Some(_) => None,
            None => api.get_opt(&name).await.map_err(|e| failed("get", e))?,
        };
        let existing = cached.or(live.as_ref());
        if let Some(existing) = existing {
            check_owner(plan, existing, &kind)?;
        }
        let desired_digest = digest(desired);
        let key = (plan.uid.clone(), format!("{kind}/{name}"));
        if let Some(existing) = existing {
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            if written
                .get(&key)
                .is_some_and(|w| w.desired == desired_digest && w.live == fingerprint(existing))
            {
                return Ok(());
            }
        }
        self.metrics.writes.with_label_values(&[&kind]).inc();
        tracing::debug!(kind, name, "apply");
        let applied = api
            .patch(
                &name,
                &PatchParams::apply(label::MANAGER).force(),
                &Patch::Apply(desired),
            )
            .await
            .map_err(|e| failed("apply", e))?;
        let live = fingerprint(&applied);
        self.written
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(
                key,
                Written {
                    desired: desired_digest,
                    live,
                },
            );
        Ok(())
    }

    /// Makes the volume and the claim of a commit, if they are not there. Both never change.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn ensure_volume(
        &self,
        plan: &Plan,
        new: &NewVolume,
        caches: &Caches,
    ) -> Result<(), ApplyError> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        match caches.volumes.get(None, &new.volume) {
            None => {
                let desired = persistent_volume(plan, new);
                let is_ours = |existing: &PersistentVolume| {
                    existing.labels().get(label::MODEL_UID) == Some(&plan.uid)
                };
                self.create(&volumes, &desired, is_ours).await?;
            }
            Some(existing) => {
                let phase = existing.status.as_ref().and_then(|s| s.phase.as_deref());
                if existing.metadata.deletion_timestamp.is_some()
                    || matches!(phase, Some("Released" | "Failed"))
                {
                    self.delete(&volumes, existing.as_ref()).await?;
                    return Err(leaving("PersistentVolume", &new.volume));
                }
            }
        }
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &plan.namespace);
        let name = &new.revision.claim;
        match caches.claims.get(Some(&plan.namespace), name) {
            None => {
                let desired = persistent_volume_claim(plan, new);
                let is_ours = |existing: &PersistentVolumeClaim| is_owned(plan, existing);
                self.create(&claims, &desired, is_ours).await
            }
            Some(existing) => {
                check_owner(plan, existing.as_ref(), "PersistentVolumeClaim")?;
                let phase = existing.status.as_ref().and_then(|s| s.phase.as_deref());
                // Lost since it was chosen. The next look chooses another name, and this claim goes
                // when no pod mounts it any more.
                if phase == Some("Lost") {
                    return Err(leaving("PersistentVolumeClaim", name));
                }
                Ok(())
            }
        }
    }

    /// Deletes exactly this object; one of the same name that is another stays.
    ///
    /// # Errors
    /// See [`ApplyError`]. That it is gone is none.
    pub async fn delete<K: Watched>(&self, api: &Api<K>, object: &K) -> Result<(), ApplyError> {
        let kind = K::kind(&()).into_owned();
        let name = object.name_any();
        if object.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        self.metrics.writes.with_label_values(&[&kind]).inc();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.uid(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match api.delete(&name, &params).await {
            Ok(_) => Ok(()),
            // 404: gone; 409: another object has the name by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(source) => Err(request_error("delete", &kind, &name, source)),
        }
    }

    async fn create<K: Watched>(
        &self,
        api: &Api<K>,
        desired: &K,
        is_ours: impl Fn(&K) -> bool,
    ) -> Result<(), ApplyError> {
        let kind = K::kind(&()).into_owned();
        let name = desired.name_any();
        self.metrics.writes.with_label_values(&[&kind]).inc();
        let params = PostParams {
            field_manager: Some(label::MANAGER.to_owned()),
            ..PostParams::default()
        };
        match api.create(&params, desired).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status))
                if status.code == 409 && status.reason == "AlreadyExists" =>
            {
                let existing = api
                    .get_opt(&name)
                    .await
                    .map_err(|e| request_error("get", &kind, &name, e))?;
                match existing {
                    Some(existing) if existing.meta().deletion_timestamp.is_some() => {
                        Err(leaving(&kind, &name))
                    }
                    Some(existing) if is_ours(&existing) => Ok(()),
                    Some(_) => Err(ApplyError::NameConflict { kind, name }),
                    None => Err(leaving(&kind, &name)),
                }
            }
            Err(source) => Err(request_error("create", &kind, &name, source)),
        }
    }
}

fn check_owner<K: Resource>(plan: &Plan, existing: &K, kind: &str) -> Result<(), ApplyError> {
    let name = existing.name_any();
    if existing.meta().deletion_timestamp.is_some() {
        return Err(leaving(kind, &name));
    }
    if is_owned(plan, existing) {
        return Ok(());
    }
    // Of a Model of the same name that was deleted: the garbage collector is about to take it.
    let is_orphan = existing
        .owner_references()
        .iter()
        .any(|o| o.kind == plan.owner.kind && o.name == plan.owner.name);
    if is_orphan {
        Err(leaving(kind, &name))
    } else {
        Err(ApplyError::NameConflict {
            kind: kind.to_owned(),
            name,
        })
    }
}

fn is_owned<K: Resource>(plan: &Plan, existing: &K) -> bool {
    existing
        .owner_references()
        .iter()
        .any(|o| o.uid == plan.uid)
}

fn leaving(kind: &str, name: &str) -> ApplyError {
    ApplyError::Leaving {
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

fn request_error(verb: &'static str, kind: &str, name: &str, source: kube::Error) -> ApplyError {
    let (kind, name) = (kind.to_owned(), name.to_owned());
    match source {
        kube::Error::Api(status) if is_namespace_ending(&status) => ApplyError::NamespaceEnds,
        kube::Error::Api(status) if matches!(status.code, 400 | 422) => ApplyError::Refused {
            kind,
            name,
            message: status.message,
        },
        source => ApplyError::Request {
            verb,
            kind,
            name,
            source: Box::new(source),
        },
    }
}

fn is_namespace_ending(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 403
        && causes
            .into_iter()
            .any(|c| c.reason == "NamespaceTerminating")
}
