//! The registry's API, beside git.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use hyprstream_contract::{
    CommitId,
    registry::ApiError,
    repositories::{
        KEEPS_PATH, KeepRequest, MERGE_CONFLICT, MERGES_PATH, Merge, MergeRefusal, MergeRequest,
    },
};
use serde::Serialize;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{Branch, BranchError, token};

/// A merge may wait for pushes that others make.
const TIMEOUT: Duration = Duration::from_mins(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

impl Branch {
    /// Lets the large files of all but the newest checkpoints go.
    pub(super) fn keep(&self) -> Result<(), BranchError> {
        let request = KeepRequest {
            repository: self.pod.repository.clone(),
            branch: self.name.clone(),
            newest: NonZeroU32::new(self.pod.keep).unwrap_or(NonZeroU32::MIN),
        };
        let what = "let old checkpoints go";
        let (status, text) = self.post(what, KEEPS_PATH, &request)?;
        if status == 200 {
            return Ok(());
        }
        Err(refusal(what, status, &text))
    }

    /// Has `into` take up `commit`. Repeated, it finds that done.
    pub(in super::super) fn merge(
        &self,
        into: &str,
        commit: &CommitId,
    ) -> Result<CommitId, BranchError> {
        let request = MergeRequest {
            repository: self.pod.repository.clone(),
            into: into.to_owned(),
            from: commit.to_string(),
            message: format!(
                "Merge the adapter {} of {}/{}",
                self.pod.adapter, self.pod.namespace, self.pod.name
            ),
            expected: None,
        };
        let what = "merge";
        let (status, text) = self.post(what, MERGES_PATH, &request)?;
        if status == 200 {
            let merge: Merge = serde_json::from_str(&text).map_err(|error| BranchError::Api {
                what,
                why: error.to_string(),
            })?;
            return Ok(merge.commit);
        }
        match serde_json::from_str::<MergeRefusal>(&text) {
            Ok(refused) if refused.reason == MERGE_CONFLICT => Err(BranchError::Conflict {
                into: into.to_owned(),
                branch: self.name.clone(),
                why: format!("both changed {}", refused.paths.join(", ")),
            }),
            _ => Err(refusal(what, status, &text)),
        }
    }

    fn post(
        &self,
        what: &'static str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(u16, String), BranchError> {
        let roots = self.trust.certificates();
        let roots = roots
            .iter()
            .map(|one| Certificate::from_der(one).to_owned());
        let roots = RootCerts::Specific(Arc::new(roots.collect()));
        let agent = ureq::Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .build()
            .new_agent();
        let failed = |error: ureq::Error| BranchError::Api {
            what,
            why: error.to_string(),
        };
        let token = token(&self.token_file)?;
        let mut response = agent
            .post(format!("{}{path}", self.pod.registry))
            .header("Authorization", format!("Bearer {token}"))
            .send_json(body)
            .map_err(failed)?;
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES);
        let text = body.read_to_string().map_err(failed)?;
        Ok((response.status().as_u16(), text))
    }
}

/// What an answer means that is no good one.
fn refusal(what: &'static str, status: u16, text: &str) -> BranchError {
    let said = serde_json::from_str::<ApiError>(text).ok();
    let may_pass = said
        .as_ref()
        .map_or(status >= 500 || status == 429, |said| said.retriable);
    let said = said.map_or_else(String::new, |said| format!(": {}", said.message));
    let why = format!("HTTP {status}{said}");
    if may_pass {
        BranchError::Api { what, why }
    } else {
        BranchError::Forbidden { what, why }
    }
}
