//! What a request asks for, and whether it may.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};

use hyprstream_slots::{self as slots, Owners};

use crate::{
    auth::Principal,
    names::{InvalidName, Repository},
    refusal::Refusal,
    state::State,
};

/// The repository of the path and who asks for it.
#[derive(Debug)]
pub(crate) struct Access {
    repository: Repository,
    principal: Principal,
}

impl Access {
    /// Whether it is a copy of an upstream.
    pub(crate) fn is_mirror(&self) -> bool {
        matches!(self.repository, Repository::Mirror(_))
    }

    /// Whose share of the places for work the request takes.
    pub(crate) fn share(&self) -> Owners {
        slots::owner(match &self.principal {
            Principal::Admin => "admin token",
            Principal::Node => "node token",
            Principal::Namespace { namespace, .. } => namespace.as_str(),
        })
    }

    /// The repository, if it may be read and is there.
    pub(crate) fn readable(&self, state: &State) -> Result<&Repository, Refusal> {
        // Whether it exists is for those to know who may read it.
        if !self.principal.may_read(&self.repository) {
            return Err(Refusal::forbidden(
                "this token does not allow reading this repository",
            ));
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

    /// The repository, if it may be pushed to, whether or not it is there.
    pub(crate) fn writable(&self) -> Result<&Repository, Refusal> {
        if self.principal.may_write(&self.repository) {
            return Ok(&self.repository);
        }
        Err(Refusal::forbidden(match self.repository {
            Repository::Mirror(_) => "mirrors are read-only; push to their upstream",
            Repository::Pushed { .. } => "this token does not allow pushing to this repository",
        }))
    }

    /// The repository, if it may be removed, whether or not it is there. Mirrors may be by the
    /// control plane: they come back when they are asked for.
    pub(crate) fn removable(&self) -> Result<&Repository, Refusal> {
        match (&self.repository, &self.principal) {
            (Repository::Mirror(_), Principal::Admin) => Ok(&self.repository),
            _ => self.writable(),
        }
    }
}

impl FromRequestParts<Arc<State>> for Access {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let principal = state
            .auth
            .principal(&parts.headers)
            .ok_or_else(Refusal::unauthorized)?;
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
