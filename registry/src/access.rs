//! What a request asks for, and whether it may.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};

use hyprstream_contract::grants::Opens;
use hyprstream_slots::{self as slots, Owners};

use crate::{
    audit::Entry,
    auth::{Principal, Verb},
    names::{InvalidName, Repository},
    refusal::Refusal,
    state::State,
};

/// The repository of the path and who asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) repository: Repository,
    pub(crate) principal: Principal,
}

impl Access {
    /// To the repository that the body of a request names.
    pub(crate) fn named(repository: &str, principal: Principal) -> Result<Self, Refusal> {
        let repository = repository
            .parse()
            .map_err(|error: InvalidName| Refusal::bad_request(error.to_string()))?;
        Ok(Self {
            repository,
            principal,
        })
    }

    /// Whether it is a copy of an upstream.
    pub(crate) fn is_mirror(&self) -> bool {
        matches!(self.repository, Repository::Mirror(_))
    }

    /// Whose share of the places for work the request takes.
    pub(crate) fn share(&self) -> Owners {
        slots::owner(match (&self.principal, &self.repository) {
            (Principal::Admin, _) => "admin token",
            (Principal::Node { .. } | Principal::Volume(_), _) => "node token",
            (Principal::Namespace { namespace, .. }, _)
            | (Principal::Kubernetes(_), Repository::Pushed { namespace, .. }) => {
                namespace.as_str()
            }
            (Principal::Kubernetes(user), Repository::Mirror(_)) => &user.username,
        })
    }

    /// The repository, if it may be read and is there.
    pub(crate) async fn readable(&self, state: &State) -> Result<&Repository, Refusal> {
        // Whether it exists is for those to know who may read it.
        if !self.may(state, Verb::Get).await? {
            return Err(self.refuse(state, "read", self.why_unreadable()));
        }
        if state.layout.exists(&self.repository) {
            Ok(&self.repository)
        } else {
            Err(Refusal::not_found(format!(
                "there is no repository {}",
                self.repository
            )))
        }
    }

    fn why_unreadable(&self) -> String {
        match &self.principal {
            Principal::Volume(granted) => match granted.what() {
                Opens::Repository(own) => format!("this volume's word opens {own} alone"),
                Opens::Adapters(model) => format!(
                    "this volume's word opens what the list of adapters of {model} names, or has \
                     named in the last ten minutes"
                ),
            },
            Principal::Node { .. } => "the token of the nodes opens no repository: a volume is read \
                                       by its own word. For volumes of an earlier release start the \
                                       registry with --node-token-reads-all"
                .to_owned(),
            _ => "this token does not allow reading this repository".to_owned(),
        }
    }

    /// The repository, if something may be pushed to it, whether or not it is there. Which refs is
    /// judged when they are known.
    pub(crate) async fn writable(&self, state: &State) -> Result<&Repository, Refusal> {
        if self.is_mirror() {
            let message = "mirrors are read-only; push to their upstream";
            return Err(self.refuse(state, "push", message));
        }
        let trains = || {
            state
                .auth
                .allows_training(&self.principal, &self.repository)
        };
        if !self.may(state, Verb::Push).await? && !trains().await? {
            let message = "this token does not allow pushing to this repository";
            return Err(self.refuse(state, "push", message));
        }
        if !state.layout.exists(&self.repository) && !self.may(state, Verb::Create).await? {
            let message = "there is no such repository, and this token does not allow making it: \
                           ask for the right `create`";
            return Err(self.refuse(state, "create", message));
        }
        Ok(&self.repository)
    }

    /// The repository, if it may be removed, whether or not it is there. Mirrors may be by the
    /// control plane: they come back when they are asked for.
    pub(crate) async fn removable(&self, state: &State) -> Result<&Repository, Refusal> {
        if self.may(state, Verb::Delete).await? {
            return Ok(&self.repository);
        }
        let message = match self.repository {
            Repository::Mirror(_) => "mirrors are read-only; push to their upstream",
            Repository::Pushed { .. } => {
                "this token does not allow removing this repository: ask for the right `delete`"
            }
        };
        Err(self.refuse(state, "delete", message))
    }

    /// Whether whoever asks has `verb` on the repository.
    pub(crate) async fn may(&self, state: &State, verb: Verb) -> Result<bool, Refusal> {
        let (who, repository) = (&self.principal, &self.repository);
        if let Principal::Volume(granted) = who {
            return Ok(verb == Verb::Get && granted.opens(repository, &state.adapters));
        }
        state.auth.allows(who, repository, verb).await
    }

    /// An entry of the audit log for what is done here.
    pub(crate) fn entry(&self, action: &'static str) -> Entry {
        Entry::new(action, &self.principal, &self.repository)
    }

    /// The refusal of a right, which the audit log hears of.
    pub(crate) fn refuse(
        &self,
        state: &State,
        action: &'static str,
        message: impl Into<String>,
    ) -> Refusal {
        let message = message.into();
        state
            .audit
            .note(&self.entry(action).refused(message.clone()));
        Refusal::forbidden(message)
    }
}

/// Who asks, where the repository stands in the body.
pub(crate) struct Who(pub(crate) Principal);

impl FromRequestParts<Arc<State>> for Who {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        state.auth.principal(&parts.headers).await.map(Self)
    }
}

impl FromRequestParts<Arc<State>> for Access {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let principal = state.auth.principal(&parts.headers).await?;
        let Path(names) = Path::<HashMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|_| Refusal::bad_request("the path cannot be read"))?;
        let name = |key: &str| names.get(key).map(String::as_str);
        let repository = parse(name("namespace"), name("repository").unwrap_or_default())
            .map_err(|error| Refusal::bad_request(error.to_string()))?;
        Ok(Self {
            repository,
            principal,
        })
    }
}

fn parse(namespace: Option<&str>, repository: &str) -> Result<Repository, InvalidName> {
    let name = repository.strip_suffix(".git").unwrap_or(repository);
    Ok(match namespace {
        Some(namespace) => Repository::Pushed {
            namespace: namespace.parse()?,
            name: name.parse()?,
        },
        None => Repository::Mirror(name.parse()?),
    })
}
