//! One request and its answer.

use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::json;

use super::{
    events::{Event, Reader},
    tally::Outcome,
    target::Target,
};

/// Most bytes of an answer that is not a stream.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Sends requests to one server.
pub(super) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    target: Target,
}

/// The body of a streamed chat completion with exactly `gen_tokens` tokens.
pub(super) fn body(model: &str, prompt: &str, gen_tokens: usize) -> Bytes {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": gen_tokens,
        "ignore_eos": true,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    Bytes::from(body.to_string())
}

impl Client {
    pub(super) fn new(target: Target) -> Self {
        let mut connector = HttpConnector::new();
        // Small writes are sent at once, or a request waits for the acknowledgement of another.
        connector.set_nodelay(true);
        Self {
            http: HyperClient::builder(TokioExecutor::new()).build(connector),
            target,
        }
    }

    /// What the server lists, at least one.
    pub(super) async fn models(&self) -> anyhow::Result<Vec<String>> {
        let response = self
            .send("GET", "/v1/models", Bytes::new())
            .await
            .context("the server does not answer")?;
        let status = response.status();
        ensure!(
            status.is_success(),
            "the server's list of models is a {status}"
        );
        let body = text(response).await;
        let list: serde_json::Value =
            serde_json::from_str(&body).context("the server's list of models is no JSON")?;
        let listed = list["data"].as_array().into_iter().flatten();
        let names: Vec<_> = listed
            .filter_map(|model| model["id"].as_str())
            .map(str::to_owned)
            .collect();
        ensure!(!names.is_empty(), "the server has no model");
        Ok(names)
    }

    /// Sends a chat completion and reads its stream to the end.
    pub(super) async fn complete(&self, body: Bytes) -> Outcome {
        let mut outcome = Outcome::begin();
        if let Err(why) = self.stream(body, &mut outcome).await {
            outcome.error = Some(why);
        }
        outcome.ended = Some(Instant::now());
        outcome
    }

    async fn stream(&self, body: Bytes, outcome: &mut Outcome) -> Result<(), String> {
        let response = self
            .send("POST", "/v1/chat/completions", body)
            .await
            .map_err(|error| format!("{error:#}"))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(format!("{status}: {}", text(response).await));
        }
        let (mut reader, mut is_done) = (Reader::default(), false);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| format!("the answer broke off: {error}"))?;
            let Some(piece) = frame.data_ref() else {
                continue;
            };
            let now = Instant::now();
            let mut failed = None;
            reader.push(piece, |event| match event {
                Event::Content => outcome.chunks.push(now),
                Event::Usage(usage) => outcome.usage = usage,
                Event::Error(message) => failed = Some(format!("in the stream: {message}")),
                Event::Done => is_done = true,
            })?;
            if let Some(failed) = failed {
                return Err(failed);
            }
        }
        if is_done {
            Ok(())
        } else {
            Err("the stream ended without [DONE]".to_owned())
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(self.target.url(path))
            .header(header::HOST, &self.target.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        Ok(self.http.request(request).await?)
    }
}

/// The body as far as it is text of some size.
async fn text(response: Response<Incoming>) -> String {
    match Limited::new(response.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
    {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => format!("(no body: {error})"),
    }
}
