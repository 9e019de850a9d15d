//! Answers of `/v1/responses`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{ErrorObject, Usage, chat::TokenLogprob};

/// An answer, whole or under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Response {
    /// Names this answer.
    pub id: String,
    /// Always `response`.
    pub object: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: String,
    /// Seconds since 1970, when it has ended.
    pub completed_at: Option<u64>,
    /// Always false.
    pub background: bool,
    /// Why it failed.
    pub error: Option<ErrorObject>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As in the request, or 0.
    pub frequency_penalty: f64,
    /// As in the request.
    pub instructions: Option<String>,
    /// As in the request.
    pub max_output_tokens: Option<u64>,
    /// Always null: tools are called by the client.
    pub max_tool_calls: Option<u64>,
    /// As in the request.
    pub metadata: Value,
    /// The model as the request named it.
    pub model: String,
    /// What was generated, in order.
    pub output: Vec<OutputItem>,
    /// As in the request, or true.
    pub parallel_tool_calls: bool,
    /// As in the request, or 0.
    pub presence_penalty: f64,
    /// Always null: nothing is stored.
    pub previous_response_id: Option<String>,
    /// As in the request.
    pub prompt_cache_key: Option<String>,
    /// As in the request.
    pub reasoning: Value,
    /// As in the request.
    pub safety_identifier: Option<String>,
    /// Always `default`.
    pub service_tier: String,
    /// Always false.
    pub store: bool,
    /// As in the request, or the model's own.
    pub temperature: f64,
    /// As in the request, or plain text.
    pub text: Value,
    /// As in the request, or `auto`.
    pub tool_choice: Value,
    /// As in the request, with what they leave out.
    pub tools: Vec<Value>,
    /// As in the request, or 0.
    pub top_logprobs: u64,
    /// As in the request, or the model's own.
    pub top_p: f64,
    /// As in the request, or `disabled`.
    pub truncation: String,
    /// Token counts, once it is complete.
    pub usage: Option<ResponseUsage>,
    /// As in the request.
    pub user: Option<String>,
}

/// Why an answer is incomplete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: String,
}

/// Token counts in the words of this API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// What they were.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens generated.
    pub output_tokens: u64,
    /// What they were.
    pub output_tokens_details: OutputTokensDetails,
    /// Sum of both.
    pub total_tokens: u64,
}

/// What the prompt's tokens were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputTokensDetails {
    /// Tokens that were not computed again.
    pub cached_tokens: u64,
}

/// What the generated tokens were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputTokensDetails {
    /// Tokens of thoughts.
    pub reasoning_tokens: u64,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        let cached_tokens = usage.prompt_tokens_details.map_or(0, |d| d.cached_tokens);
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails::default(),
            total_tokens: usage.total_tokens,
        }
    }
}

/// Something that was generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// A text.
    Message {
        /// Names this item.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: String,
        /// Always `assistant`.
        role: String,
        /// Its parts.
        content: Vec<OutputContent>,
    },
    /// Thoughts.
    Reasoning {
        /// Names this item.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: String,
        /// Always empty.
        summary: Vec<SummaryPart>,
        /// Its parts.
        content: Vec<OutputContent>,
    },
    /// A call.
    FunctionCall {
        /// Names this item.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: String,
        /// Names the call; its result refers to it.
        call_id: String,
        /// Name of the tool.
        name: String,
        /// JSON, as the model wrote it.
        arguments: String,
    },
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputContent {
    /// Of the answer.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<SummaryPart>,
        /// Of its tokens, if asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// Of thoughts.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// What there is none of here: summaries and annotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SummaryPart {}

impl Response {
    /// An answer that has just begun, to a request whose fields `repeated` it repeats.
    pub fn begun(
        id: String,
        created_at: u64,
        model: String,
        repeated: &Map<String, Value>,
        used: Sampled,
    ) -> Self {
        let field = |name: &str| repeated.get(name).cloned().unwrap_or(Value::Null);
        let or = |name: &str, default: Value| match field(name) {
            Value::Null => default,
            value => value,
        };
        let string = |name: &str| field(name).as_str().map(str::to_owned);
        Self {
            id,
            object: "response".to_owned(),
            created_at,
            status: "in_progress".to_owned(),
            completed_at: None,
            background: false,
            error: None,
            incomplete_details: None,
            frequency_penalty: field("frequency_penalty").as_f64().unwrap_or(0.0),
            instructions: string("instructions"),
            max_output_tokens: field("max_output_tokens").as_f64().map(|n| n as u64),
            max_tool_calls: None,
            metadata: or("metadata", json!({})),
            model,
            output: Vec::new(),
            parallel_tool_calls: field("parallel_tool_calls").as_bool().unwrap_or(true),
            presence_penalty: field("presence_penalty").as_f64().unwrap_or(0.0),
            previous_response_id: None,
            prompt_cache_key: string("prompt_cache_key"),
            reasoning: or("reasoning", json!({"effort": null, "summary": null})),
            safety_identifier: string("safety_identifier"),
            service_tier: "default".to_owned(),
            store: false,
            temperature: used.temperature,
            text: or("text", json!({"format": {"type": "text"}})),
            tool_choice: or("tool_choice", json!("auto")),
            tools: match field("tools") {
                Value::Array(tools) => tools.into_iter().map(whole_tool).collect(),
                _ => Vec::new(),
            },
            top_logprobs: field("top_logprobs").as_f64().map_or(0, |n| n as u64),
            top_p: used.top_p,
            truncation: string("truncation").unwrap_or_else(|| "disabled".to_owned()),
            usage: None,
            user: string("user"),
        }
    }
}

/// How tokens are chosen, whoever said so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// 0 for the likeliest token.
    pub temperature: f64,
    /// Share of the probability that is chosen from.
    pub top_p: f64,
}

/// `tool` with the members that a request may leave out.
fn whole_tool(mut tool: Value) -> Value {
    if let Some(members) = tool.as_object_mut() {
        let defaults = [
            ("description", Value::Null),
            ("parameters", Value::Null),
            ("strict", json!(false)),
        ];
        for (name, default) in defaults {
            members.entry(name).or_insert(default);
        }
    }
    tool
}

/// The event `kind` with the number `sequence` in its stream and the members of `data`.
pub fn event(kind: &str, sequence: u64, data: Value) -> Value {
    let mut event = json!({"type": kind, "sequence_number": sequence});
    if let (Some(event), Value::Object(data)) = (event.as_object_mut(), data) {
        event.extend(data);
    }
    event
}
