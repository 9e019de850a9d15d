//! Whether an upstream gives objects to a caller, without downloading them.

use std::{collections::HashSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_git2db::{
    Credentials, Digest, RemoteUrl,
    lfs::{
        Guard, Pointer,
        batch::{BatchObject, BatchRequest, BatchResponse, CONTENT_TYPE, Operation},
        guarded_agent, tls_config,
    },
};

const BATCH: usize = 100;

/// Those of `pointers` that the upstream offers to the holder of `credentials`.
///
/// Any doubt, be it a network error or a redirect, is a no: the caller then downloads, and that
/// says what is wrong.
pub(super) fn offered(
    url: &RemoteUrl,
    credentials: &Credentials,
    pointers: &[Pointer],
    guard: Guard,
) -> HashSet<Digest> {
    let Some(endpoint) = url.lfs_endpoint() else {
        return HashSet::new();
    };
    let Ok(place) = endpoint.parse() else {
        return HashSet::new();
    };
    let config = ureq::Agent::config_builder()
        .tls_config(tls_config(&place))
        .timeout_global(Some(Duration::from_mins(1)))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .build();
    let agent = guarded_agent(config, Some(guard));
    let mut offered = HashSet::new();
    for batch in pointers.chunks(BATCH) {
        match ask(&agent, &endpoint, credentials, batch) {
            Ok(response) => offered.extend(accepted(batch, &response)),
            Err(error) => {
                tracing::debug!(%error, endpoint, "an upstream could not be asked for access");
                break;
            }
        }
    }
    offered
}

fn ask(
    agent: &ureq::Agent,
    endpoint: &str,
    credentials: &Credentials,
    pointers: &[Pointer],
) -> Result<BatchResponse, ureq::Error> {
    let objects = pointers
        .iter()
        .map(|pointer| BatchObject {
            oid: pointer.oid.to_string(),
            size: pointer.size,
        })
        .collect();
    let request = BatchRequest {
        operation: Operation::Download,
        transfers: vec!["basic".to_owned()],
        reference: None,
        objects,
        hash_algo: Some("sha256".to_owned()),
    };
    let mut call = agent
        .post(format!("{endpoint}/objects/batch"))
        .header("accept", CONTENT_TYPE);
    let basic = match credentials {
        Credentials::Token(token) => Some(format!("x-access-token:{token}")),
        Credentials::Basic { username, password } => Some(format!("{username}:{password}")),
        Credentials::None | Credentials::SshKey { .. } => None,
    };
    if let Some(basic) = basic {
        call = call.header("authorization", format!("Basic {}", STANDARD.encode(basic)));
    }
    let mut response = call
        .content_type(CONTENT_TYPE)
        .send(&serde_json::to_vec(&request).map_err(|error| ureq::Error::Io(error.into()))?)?;
    if response.status() != 200 {
        return Err(ureq::Error::StatusCode(response.status().as_u16()));
    }
    let body = response
        .body_mut()
        .with_config()
        .limit(8 << 20)
        .read_to_vec()?;
    serde_json::from_slice(&body).map_err(|error| ureq::Error::Io(error.into()))
}

fn accepted<'a>(
    asked: &'a [Pointer],
    response: &'a BatchResponse,
) -> impl Iterator<Item = Digest> + 'a {
    asked.iter().filter_map(|pointer| {
        let answer = response
            .objects
            .iter()
            .find(|object| object.oid == pointer.oid.as_str())?;
        let download = answer
            .actions
            .as_ref()
            .and_then(|actions| actions.download.as_ref());
        let yes = answer.error.is_none() && download.is_some() && answer.size == pointer.size;
        yes.then(|| pointer.oid.clone())
    })
}
