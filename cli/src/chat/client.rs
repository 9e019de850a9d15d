//! One question and its answer, as it comes.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::{Value, json};

use super::events::Events;
use crate::failure::{Failure, Kind, chain};

/// Where the questions go.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    endpoint: String,
    key: Option<String>,
    /// The model, with its adapters.
    pub(crate) model: String,
}

/// How answers are chosen. What is not said is the model's own default.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Sampling {
    /// 0 takes the likeliest token each time.
    #[arg(long)]
    pub(crate) temperature: Option<f32>,
    /// Share of probability that is sampled from.
    #[arg(long)]
    pub(crate) top_p: Option<f32>,
    /// Leaves out tokens that are less likely than this share of the likeliest; 0.05 unless
    /// --endpoint is given.
    #[arg(long)]
    pub(crate) min_p: Option<f32>,
    /// Longest answer in tokens.
    #[arg(long)]
    pub(crate) max_tokens: Option<u32>,
    /// The same seed gives the same answer.
    #[arg(long)]
    pub(crate) seed: Option<i64>,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Why it ended; `None` where the stream broke off.
    pub(crate) finish_reason: Option<String>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// Until the first token.
    pub(crate) first: Option<Duration>,
    pub(crate) elapsed: Duration,
}

impl Client {
    pub(crate) fn new(endpoint: &str, key: Option<String>, model: String) -> Result<Self, Failure> {
        let tls = hyprstream_tls::system_client_config()
            .map_err(|error| Failure::failed(chain(&error)))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| Failure::failed(chain(&error)))?;
        Ok(Self {
            http,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            key,
            model,
        })
    }

    /// Asks, and hands every piece of the answer to `piece`. What has come is in `answer` also if
    /// this is dropped or fails.
    pub(crate) async fn ask(
        &self,
        messages: &[Value],
        sampling: &Sampling,
        answer: &mut Answer,
        mut piece: impl FnMut(&str),
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let chosen = [
            ("temperature", sampling.temperature.map(Value::from)),
            ("top_p", sampling.top_p.map(Value::from)),
            (
                "max_completion_tokens",
                sampling.max_tokens.map(Value::from),
            ),
            ("seed", sampling.seed.map(Value::from)),
        ];
        for (name, value) in chosen {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        let url = format!("{}/chat/completions", self.endpoint);
        let mut request = self.http.post(&url).json(&body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let broken = |error: reqwest::Error| {
            Failure::new(
                Kind::Remote,
                format!("{url}: {}", chain(&error.without_url())),
            )
        };
        let response = request.send().await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() {
            let body = response.bytes().await.map_err(broken)?;
            return Err(refusal(status, &body));
        }
        let mut events = Events::default();
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.next().await {
            for data in events.take(&bytes.map_err(broken)?) {
                if data == "[DONE]" {
                    continue;
                }
                let chunk: Value = serde_json::from_str(&data).map_err(|error| {
                    Failure::new(
                        Kind::Remote,
                        format!("{url} answered with no JSON: {error}"),
                    )
                })?;
                if let Some(error) = chunk.get("error") {
                    return Err(Failure::new(Kind::Remote, message(error)));
                }
                answer.add(&chunk, started, &mut piece);
            }
            answer.elapsed = started.elapsed();
        }
        match answer.finish_reason {
            Some(_) => Ok(()),
            None => Err(Failure::new(
                Kind::Remote,
                format!("{url}: the answer broke off"),
            )),
        }
    }
}

impl Answer {
    fn add(&mut self, chunk: &Value, started: Instant, piece: &mut impl FnMut(&str)) {
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["delta"]["content"].as_str()
            && !text.is_empty()
        {
            self.first.get_or_insert_with(|| started.elapsed());
            self.text.push_str(text);
            piece(text);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            let tokens = |name: &str| usage[name].as_u64().unwrap_or_default();
            self.prompt_tokens = tokens("prompt_tokens");
            self.completion_tokens = tokens("completion_tokens");
        }
    }

    /// Tokens a second behind the first one.
    pub(crate) fn tokens_per_second(&self) -> Option<f64> {
        let decoding = self.elapsed.checked_sub(self.first?)?.as_secs_f64();
        (self.completion_tokens > 1 && decoding > 0.0)
            .then(|| (self.completion_tokens - 1) as f64 / decoding)
    }
}

fn refusal(status: reqwest::StatusCode, body: &[u8]) -> Failure {
    let kind = match status.as_u16() {
        400 | 422 => Kind::Usage,
        404 => Kind::NotFound,
        _ => Kind::Remote,
    };
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(json) if json.get("error").is_some() => message(&json["error"]),
        _ => String::from_utf8_lossy(body).trim().to_owned(),
    };
    Failure::new(kind, format!("{text} ({status})"))
}

fn message(error: &Value) -> String {
    match error["message"].as_str() {
        Some(message) => message.to_owned(),
        None => error.to_string(),
    }
}
