//! Makes objects what they should be, and deletes them.
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
use hyprstream_tls::MakeError;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};

use crate::{
    cache::{Watched, digest, fingerprint},
    metrics::Metrics,
    owner::Owner,
};

/// Something cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another object has the name.
    #[error("{kind} {name} exists and was made for something else")]
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
    /// There is no authority yet that is trusted everywhere.
    #[error("nobody may sign certificates for workers yet")]
    NobodySigns,
    /// A certificate cannot be made.
    #[error("make the certificate of Secret {name}")]
    Certificate {
        /// Name of the Secret.
        name: String,
        /// Why.
        #[source]
        source: MakeError,
    },
    /// The namespace is being deleted, and with it soon the owner.
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
            Self::Leaving { .. } | Self::NamespaceEnds | Self::NobodySigns => reason::PENDING,
            Self::Refused { .. } => reason::INVALID_SPEC,
            Self::Request { .. } | Self::Certificate { .. } => reason::API_ERROR,
        }
    }

    /// What helps.
    pub fn action(&self) -> Help {
        match self {
            Self::NameConflict { .. } | Self::Refused { .. } => Help::Edit,
            Self::Leaving { .. }
            | Self::NamespaceEnds
            | Self::NobodySigns
            | Self::Certificate { .. }
            | Self::Request { .. } => Help::Retry,
        }
    }

    /// An earlier object of the name is still being deleted.
    pub fn leaving(kind: &str, name: &str) -> Self {
        Self::Leaving {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }

    /// For the user of the owner, which is of the kind `owner`.
    pub fn message(&self, owner: &str) -> String {
        match self {
            Self::NameConflict { kind, name } => format!(
                "{kind} {name} exists and was not made for this {owner}; it is left alone. Rename \
                 the {owner}, or delete the {kind}"
            ),
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

    /// Forgets what was written for owners that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|(uid, _), _| keep(uid));
    }

    /// Makes a namespaced object that `owner` owns what it should be. `cached` is what the cache
    /// has under its name.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn ensure<K>(
        &self,
        owner: &Owner<'_>,
        desired: &K,
        cached: Option<&K>,
    ) -> Result<(), ApplyError>
    where
        K: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let kind = K::kind(&()).into_owned();
        let name = desired.name_any();
        let api: Api<K> = Api::namespaced(self.client.clone(), owner.namespace);
        let failed = |verb, source| request_error(verb, &kind, &name, source);
        // The cache holds only what has our label, and may lag behind.
        let live = match cached {
            Some(_) => None,
            None => api.get_opt(&name).await.map_err(|e| failed("get", e))?,
        };
        let existing = cached.or(live.as_ref());
        if let Some(existing) = existing {
            check_owner(owner, existing)?;
        }
        let desired_digest = digest(desired);
        let key = (owner.uid.to_owned(), format!("{kind}/{name}"));
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

    /// Makes an object that never changes. One of the name that is there already is as good if it
    /// is ours.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn create<K: Watched>(
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
                        Err(ApplyError::leaving(&kind, &name))
                    }
                    Some(existing) if is_ours(&existing) => Ok(()),
                    Some(_) => Err(ApplyError::NameConflict { kind, name }),
                    None => Err(ApplyError::leaving(&kind, &name)),
                }
            }
            Err(source) => Err(request_error("create", &kind, &name, source)),
        }
    }
}

/// Whether that object is the owner's to write.
///
/// # Errors
/// It is being deleted, or somebody else's.
pub fn check_owner<K: Resource<DynamicType = ()>>(
    owner: &Owner<'_>,
    existing: &K,
) -> Result<(), ApplyError> {
    let kind = K::kind(&());
    let name = existing.name_any();
    if existing.meta().deletion_timestamp.is_some() {
        return Err(ApplyError::leaving(&kind, &name));
    }
    if owner.owns(existing) {
        return Ok(());
    }
    // Of an owner of the same name that was deleted: the garbage collector is about to take it.
    if owner.is_namesake(existing) {
        Err(ApplyError::leaving(&kind, &name))
    } else {
        Err(ApplyError::NameConflict {
            kind: kind.into_owned(),
            name,
        })
    }
}

/// What a failed request is, by what the API server said.
pub fn request_error(
    verb: &'static str,
    kind: &str,
    name: &str,
    source: kube::Error,
) -> ApplyError {
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
