//! Why an adapter is not on the node, as its users read it.

use hyprstream_contract::adapters::AdapterState;

use crate::{error::Error, fetch::FetchError};

/// Why an adapter is not on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For machines.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
    /// Whether others of the same commit may be had nevertheless.
    pub(super) is_own: bool,
    /// Whether waiting alone hardly helps.
    pub(super) lasts: bool,
}

impl Failure {
    /// The reason where the disk changed files.
    pub(super) const DAMAGED: &str = "Damaged";

    /// A file that the commit does not have.
    pub(super) fn no_file(path: &str) -> Self {
        Self {
            reason: "NotFound",
            message: format!(
                "the commit has no file {path:?}, or only a link there to a file that the adapter \
                 does not name"
            ),
            is_own: true,
            lasts: true,
        }
    }

    /// What is told of it.
    pub(super) fn state(&self) -> AdapterState {
        AdapterState::Failed {
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            transient: !self.lasts,
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let (reason, is_own, lasts) = match error {
            Error::Fetch(fetch) => match **fetch {
                FetchError::Unreachable { .. } => ("RegistryUnreachable", false, false),
                FetchError::Denied { .. } => ("AccessDenied", false, false),
                FetchError::NotFound { .. } => ("NotFound", true, true),
                FetchError::Refused { .. } => ("Refused", true, true),
                FetchError::DiskFull { .. } => ("DiskFull", true, false),
                FetchError::Damaged { .. } => {
                    return Self {
                        reason: Self::DAMAGED,
                        message: "its files were damaged on the node's disk and are fetched anew"
                            .to_owned(),
                        is_own: false,
                        lasts: false,
                    };
                }
                FetchError::Cancelled => ("Cancelled", false, false),
                FetchError::Internal { .. } => ("NodeFailed", false, false),
            },
            error if error.needs_room() => ("DiskFull", false, false),
            _ => ("NodeFailed", false, false),
        };
        Self {
            reason,
            message: error.to_string(),
            is_own,
            lasts,
        }
    }
}
