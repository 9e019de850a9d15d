//! The messages of the LFS batch API, for clients and servers.
//!
//! See <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Content type of every message.
pub const CONTENT_TYPE: &str = "application/vnd.git-lfs+json";

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Read objects.
    Download,
    /// Write objects.
    Upload,
}

/// Body of `POST <endpoint>/objects/batch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRequest {
    /// What to do.
    pub operation: Operation,
    /// Ways of transfer that the client knows; none means `basic`.
    #[serde(default)]
    pub transfers: Vec<String>,
    /// The ref that the objects belong to.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<BatchRef>,
    /// The objects.
    pub objects: Vec<BatchObject>,
    /// `sha256`, which is also meant when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_algo: Option<String>,
}

/// A ref in a [`BatchRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRef {
    /// Full name, such as `refs/heads/main`.
    pub name: String,
}

/// An object in a [`BatchRequest`] and body of a verify call. The oid is not yet checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchObject {
    /// SHA-256 in hexadecimal digits.
    pub oid: String,
    /// Size in bytes.
    pub size: u64,
}

/// Answer to a [`BatchRequest`], with status 200 even if objects have errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchResponse {
    /// Way of transfer that the server chose; none means `basic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<String>,
    /// The objects.
    pub objects: Vec<ObjectResponse>,
    /// `sha256`, which is also meant when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_algo: Option<String>,
}

/// One object of a [`BatchResponse`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectResponse {
    /// SHA-256 in hexadecimal digits.
    pub oid: String,
    /// Size in bytes.
    #[serde(default)]
    pub size: u64,
    /// Whether the actions carry their own authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<bool>,
    /// What to do next. None on upload: the server has the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<Actions>,
    /// Why the object cannot be transferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ObjectError>,
}

/// Next steps for one object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actions {
    /// GET here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Action>,
    /// PUT here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Action>,
    /// POST a [`BatchObject`] here after the upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Action>,
}

/// One HTTP call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Absolute URL.
    pub href: String,
    /// Headers to send.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, String>,
    /// Seconds for which the action is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<i64>,
    /// RFC 3339 time until which the action is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// Why one object cannot be transferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectError {
    /// As an HTTP status: 404 not there, 410 removed, 409 other hash, 422 not valid.
    pub code: u16,
    /// For people.
    pub message: String,
}

/// Body of an answer with an error status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// Where to read more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
    /// Name of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
