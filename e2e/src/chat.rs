//! Questions to the OpenAI endpoint.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A request for a chat completion.
#[derive(Clone, Debug)]
pub struct Chat {
    /// URL of the server, without `/v1`.
    pub server: String,
    /// Value of `model`.
    pub model: String,
    /// The user's message.
    pub prompt: String,
    /// Tokens to make; exactly as many, since the end of the text is ignored.
    pub tokens: u32,
    /// Whether to stream.
    pub stream: bool,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// Header `x-hyprstream-commit`.
    pub commit: String,
    /// Header `x-hyprstream-adapters`; empty without adapters.
    pub adapters: String,
    /// `finish_reason`.
    pub finish: String,
    /// Tokens of the answer according to `usage`.
    pub completion_tokens: u64,
}

impl Chat {
    /// A streamed question with a length that is always reached.
    pub fn new(server: &str, model: &str, prompt: &str, tokens: u32) -> Self {
        Self {
            server: server.to_owned(),
            model: model.to_owned(),
            prompt: prompt.to_owned(),
            tokens,
            stream: true,
        }
    }

    /// Asks, and checks that the answer is whole: status 200, a finish reason, usage, `[DONE]`.
    pub fn ask(&self) -> Result<Answer> {
        let mut body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": self.tokens, "temperature": 0, "ignore_eos": true, "stream": self.stream,
        });
        if self.stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_mins(5)))
            .proxy(None)
            .build()
            .into();
        let response = agent
            .post(format!("{}/v1/chat/completions", self.server))
            .send_json(&body)
            .context("send the request")?;
        let status = response.status();
        let header = |name| {
            let value = response.headers().get(name);
            let text = value.and_then(|value| value.to_str().ok());
            text.unwrap_or_default().to_owned()
        };
        let commit = header("x-hyprstream-commit");
        let adapters = header("x-hyprstream-adapters");
        let mut body = response.into_body();
        if status != 200 {
            bail!("{status}: {}", body.read_to_string().unwrap_or_default());
        }
        let mut answer = Answer {
            text: String::new(),
            commit,
            adapters,
            finish: String::new(),
            completion_tokens: 0,
        };
        if self.stream {
            read_stream(BufReader::new(body.into_reader()), &mut answer)?;
        } else {
            let whole: Value = serde_json::from_str(&body.read_to_string()?)?;
            answer.absorb(&whole, "message")?;
        }
        if answer.finish.is_empty() {
            bail!("the answer has no finish_reason: {answer:?}");
        }
        Ok(answer)
    }
}

fn read_stream(lines: impl BufRead, answer: &mut Answer) -> Result<()> {
    for line in lines.lines() {
        let line = line.context("the stream broke off")?;
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).with_context(|| data.to_owned())?;
        answer.absorb(&chunk, "delta")?;
    }
    bail!("the stream ended without [DONE] after {:?}", answer.text)
}

impl Answer {
    fn absorb(&mut self, chunk: &Value, part: &str) -> Result<()> {
        if !chunk["error"].is_null() {
            bail!("an error in the answer: {}", chunk["error"]);
        }
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            self.text
                .push_str(choice[part]["content"].as_str().unwrap_or_default());
            if let Some(reason) = choice["finish_reason"].as_str() {
                reason.clone_into(&mut self.finish);
            }
        }
        if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
            self.completion_tokens = tokens;
        }
        Ok(())
    }
}
