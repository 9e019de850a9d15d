//! The fields that chat and plain completions share.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    error::{ApiError, excerpt},
    fields::{Fields, integer, wrong},
};

/// Most choices of one request.
pub const MAX_CHOICES: usize = 8;
/// Most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 4;
/// Most alternatives that log-probabilities are told for.
pub const MAX_LOGPROBS: usize = 20;
/// Longest stop string in bytes.
const MAX_STOP_BYTES: usize = 256;
/// Most entries of `logit_bias` and of `stop_token_ids`.
const MAX_TOKEN_LIST: usize = 1024;
/// Highest token id that is looked at; the engine checks against the vocabulary.
const MAX_TOKEN_ID: i64 = u32::MAX as i64;
/// Bound of token counts, far above any context.
const MAX_TOKENS: i64 = 1 << 24;

/// How to choose tokens and when to stop. `None` leaves the choice to the model's
/// `generation_config.json` and then to the default of the API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f64>,
    /// Above 0, to 1.
    pub top_p: Option<f64>,
    /// From 1; 0 and -1 switch it off.
    pub top_k: Option<i64>,
    /// 0 to 1, relative to the likeliest token.
    pub min_p: Option<f64>,
    /// Reproduces the answer of the same request.
    pub seed: Option<i64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Above 0, to 10; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// Added to the logits of tokens, -100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// End the answer before any of these.
    pub stop: Vec<String>,
    /// End the answer at any of these tokens.
    pub stop_token_ids: Vec<u32>,
    /// Keep the stop string that ended the answer in its text.
    pub include_stop_str_in_output: bool,
    /// Go on after the model's own ending.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Do not end before this many tokens.
    pub min_tokens: u32,
    /// How many answers, 1 to [`MAX_CHOICES`].
    pub n: usize,
    /// Send the answer in pieces.
    pub stream: bool,
    /// How to stream.
    pub stream_options: StreamOptions,
}

/// Options of a streamed answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Send a last chunk without choices and with the token counts.
    pub include_usage: bool,
}

impl Sampling {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let temperature = fields.number("temperature", 0.0..=2.0)?;
        Ok(Self {
            temperature,
            top_p: above_zero(fields, "top_p", 1.0)?,
            top_k: fields.integer("top_k", -1..=MAX_TOKENS)?,
            min_p: fields.number("min_p", 0.0..=1.0)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            repetition_penalty: above_zero(fields, "repetition_penalty", 10.0)?,
            logit_bias: logit_bias(fields)?,
            stop: stop(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            include_stop_str_in_output: fields
                .boolean("include_stop_str_in_output")?
                .unwrap_or(false),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            min_tokens: tokens(fields, "min_tokens", 0)?.unwrap_or(0),
            n: fields.integer("n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize,
            stream,
            stream_options: stream_options(fields, stream)?,
        })
    }
}

/// The token count `name` of at least `least`.
pub(crate) fn tokens(fields: &mut Fields, name: &str, least: i64) -> Result<Option<u32>, ApiError> {
    Ok(fields
        .integer(name, least..=MAX_TOKENS)?
        .map(|count| count as u32))
}

/// Fields that change nothing about an answer here, and fields of features that are not there.
pub(crate) fn common_extras(fields: &mut Fields) -> Result<(), ApiError> {
    fields.string("user")?;
    for absent in [
        "adapters",
        "allowed_token_ids",
        "bad_words",
        "structured_outputs",
    ] {
        fields.refuse(absent, "is not supported by this server")?;
    }
    for absent in ["prompt_logprobs", "cache_salt"] {
        fields.refuse(absent, "is not supported by this server")?;
    }
    fields.only(
        "priority",
        &[0.into()],
        "is not supported by this server; only 0 is accepted",
    )
}

fn above_zero(fields: &mut Fields, name: &str, most: f64) -> Result<Option<f64>, ApiError> {
    let value = fields.number(name, 0.0..=most)?;
    if value == Some(0.0) {
        return Err(fields.error(name, format!("must be above 0 and at most {most}")));
    }
    Ok(value)
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<StreamOptions, ApiError> {
    let Some(options) = fields.take("stream_options") else {
        return Ok(StreamOptions::default());
    };
    if !stream {
        return Err(fields.error("stream_options", "is allowed only when stream is true"));
    }
    let mut options = Fields::new(options, "stream_options".to_owned())?;
    let read = StreamOptions {
        include_usage: options.boolean("include_usage")?.unwrap_or(false),
    };
    options.only(
        "include_obfuscation",
        &[false.into()],
        "is not supported by this server; only false is accepted",
    )?;
    options.finish()?;
    Ok(read)
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(items)) => items,
        Some(other) => return Err(fields.wrong("stop", "a string or an array of strings", &other)),
    };
    if stops.len() > MAX_STOP_STRINGS {
        return Err(fields.error("stop", format!("has more than {MAX_STOP_STRINGS} strings")));
    }
    stops
        .into_iter()
        .map(|item| match item {
            Value::String(text) if text.is_empty() => {
                Err(fields.error("stop", "an empty string would stop at once"))
            }
            Value::String(text) if text.len() > MAX_STOP_BYTES => Err(fields.error(
                "stop",
                format!("a string is longer than {MAX_STOP_BYTES} bytes"),
            )),
            Value::String(text) => Ok(text),
            other => Err(fields.wrong("stop", "a string or an array of strings", &other)),
        })
        .collect()
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let ids = fields.array("stop_token_ids")?.unwrap_or_default();
    if ids.len() > MAX_TOKEN_LIST {
        return Err(fields.error(
            "stop_token_ids",
            format!("has more than {MAX_TOKEN_LIST} ids"),
        ));
    }
    ids.iter()
        .map(|id| token_id(id, "stop_token_ids"))
        .collect()
}

/// The token id that `value` is.
pub(crate) fn token_id(value: &Value, param: &str) -> Result<u32, ApiError> {
    integer(value)
        .filter(|id| (0..=MAX_TOKEN_ID).contains(id))
        .map(|id| id as u32)
        .ok_or_else(|| wrong(param.to_owned(), "token ids", value))
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, ApiError> {
    let map = fields.object("logit_bias")?.unwrap_or_default();
    if map.len() > MAX_TOKEN_LIST {
        return Err(fields.error(
            "logit_bias",
            format!("has more than {MAX_TOKEN_LIST} entries"),
        ));
    }
    map.iter()
        .map(|(id, bias)| {
            let id = id.parse::<u32>().map_err(|_| {
                fields.error("logit_bias", format!("{:?} is not a token id", excerpt(id)))
            })?;
            let bias = bias
                .as_f64()
                .filter(|b| (-100.0..=100.0).contains(b))
                .ok_or_else(|| {
                    fields.wrong(
                        "logit_bias",
                        "a map of token ids to numbers from -100 to 100",
                        bias,
                    )
                })?;
            Ok((id, bias as f32))
        })
        .collect()
}
