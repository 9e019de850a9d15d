//! The fields that all ways of generating share.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    adapters::{self, AdapterRequest},
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
/// Most entries of `logit_bias` and of lists of token ids.
const MAX_TOKEN_LIST: usize = 1024;
/// Most entries of `bad_words`, and the longest in bytes.
const MAX_BAD_WORDS: usize = 256;
const MAX_BAD_WORD_BYTES: usize = 256;
/// Longest `cache_salt` in bytes.
const MAX_SALT_BYTES: usize = 256;
/// Highest token id that is looked at; the engine checks against the vocabulary.
const MAX_TOKEN_ID: i64 = u32::MAX as i64;
/// Bound of token counts, far above any context.
const MAX_TOKENS: i64 = 1 << 24;

/// How to choose tokens and when to stop. `None` leaves the choice to the model's
/// `generation_config.json` and then to the default of the API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Adapters to answer with, in this order.
    pub adapters: Vec<AdapterRequest>,
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f64>,
    /// Above 0, to 1.
    pub top_p: Option<f64>,
    /// From 1; 0 and -1 switch it off.
    pub top_k: Option<i64>,
    /// 0 to 1, relative to the likeliest token.
    pub min_p: Option<f64>,
    /// Above 0, to 1: locally typical sampling; 1 is off.
    pub typical_p: Option<f64>,
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
    /// Only these tokens may be chosen.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Texts that are not generated.
    pub bad_words: Vec<String>,
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
    /// Log-probabilities of the prompt's tokens, with so many alternatives each.
    pub prompt_logprobs: Option<usize>,
    /// Lower runs earlier; 0 is usual.
    pub priority: i32,
    /// Prefixes are shared only among requests with the same salt.
    pub cache_salt: Option<String>,
    /// How many answers, 1 to [`MAX_CHOICES`].
    pub n: usize,
    /// Send the answer in pieces.
    pub stream: bool,
    /// How to stream.
    pub stream_options: StreamOptions,
    /// Tell in `usage` how long the request waited and ran.
    pub include_timings: bool,
}

/// Options of a streamed answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Send a last chunk without choices and with the token counts.
    pub include_usage: bool,
    /// Send the counts so far in every chunk.
    pub continuous_usage: bool,
}

impl Sampling {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let read = Self {
            stream_options: stream_options(fields, stream)?,
            n: fields.integer("n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize,
            stop: stop(fields)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            logit_bias: logit_bias(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            stream,
            ..Self::read_common(fields)?
        };
        if stream && read.prompt_logprobs.is_some() {
            return Err(fields.error("prompt_logprobs", "are not told in a stream"));
        }
        Ok(read)
    }

    /// The fields that the responses API has as well.
    pub(crate) fn read_common(fields: &mut Fields) -> Result<Self, ApiError> {
        fields.string("user")?;
        Ok(Self {
            adapters: adapters::read(fields)?,
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.above_zero("top_p", 1.0)?,
            top_k: fields.integer("top_k", -1..=MAX_TOKENS)?,
            min_p: fields.number("min_p", 0.0..=1.0)?,
            typical_p: fields.above_zero("typical_p", 1.0)?,
            repetition_penalty: fields.above_zero("repetition_penalty", 10.0)?,
            allowed_token_ids: allowed(fields)?,
            bad_words: fields.strings("bad_words", MAX_BAD_WORDS, MAX_BAD_WORD_BYTES)?,
            stop_token_ids: token_ids(fields, "stop_token_ids")?.unwrap_or_default(),
            include_stop_str_in_output: fields
                .boolean("include_stop_str_in_output")?
                .unwrap_or(false),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            min_tokens: tokens(fields, "min_tokens", 0)?.unwrap_or(0),
            prompt_logprobs: fields
                .integer("prompt_logprobs", 0..=MAX_LOGPROBS as i64)?
                .map(|count| count as usize),
            priority: fields
                .integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?
                .unwrap_or(0) as i32,
            cache_salt: salt(fields)?,
            include_timings: fields.boolean("include_timings")?.unwrap_or(false),
            n: 1,
            ..Self::default()
        })
    }
}

/// The token count `name` of at least `least`.
pub(crate) fn tokens(fields: &mut Fields, name: &str, least: i64) -> Result<Option<u32>, ApiError> {
    Ok(fields
        .integer(name, least..=MAX_TOKENS)?
        .map(|count| count as u32))
}

/// A schema of one token id.
pub(crate) fn token_id_schema() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID})
}

/// The token id that `value` is.
pub(crate) fn token_id(value: &Value, param: &str) -> Result<u32, ApiError> {
    integer(value)
        .filter(|id| (0..=MAX_TOKEN_ID).contains(id))
        .map(|id| id as u32)
        .ok_or_else(|| wrong(param.to_owned(), "token ids", value))
}

fn salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.short_string("cache_salt", MAX_SALT_BYTES)?;
    match salt {
        Some(salt) if salt.is_empty() => Err(fields.error("cache_salt", "is empty")),
        salt => Ok(salt),
    }
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<StreamOptions, ApiError> {
    let there = fields.has("stream_options");
    let options = fields.nested("stream_options", |options| {
        let read = StreamOptions {
            include_usage: options.boolean("include_usage")?.unwrap_or(false),
            continuous_usage: options.boolean("continuous_usage_stats")?.unwrap_or(false),
        };
        options.only(
            "include_obfuscation",
            &[false.into()],
            "is not supported by this server; only false is accepted",
        )?;
        Ok(read)
    })?;
    if there && !stream {
        return Err(fields.error("stream_options", "is allowed only when stream is true"));
    }
    Ok(options.unwrap_or_default())
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let schema = || {
        let text = json!({"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES});
        json!({"anyOf": [text, {"type": "array", "items": text, "maxItems": MAX_STOP_STRINGS}]})
    };
    let stops = match fields.take("stop", schema) {
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

fn allowed(fields: &mut Fields) -> Result<Option<Vec<u32>>, ApiError> {
    match token_ids(fields, "allowed_token_ids")? {
        Some(ids) if ids.is_empty() => {
            Err(fields.error("allowed_token_ids", "is empty: nothing could be generated"))
        }
        ids => Ok(ids),
    }
}

fn token_ids(fields: &mut Fields, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
    let Some(ids) = fields.array(name, MAX_TOKEN_LIST, token_id_schema)? else {
        return Ok(None);
    };
    ids.iter()
        .map(|id| token_id(id, name))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, ApiError> {
    let schema = || {
        json!({
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_TOKEN_LIST,
        })
    };
    let map = match fields.take("logit_bias", schema) {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(fields.wrong("logit_bias", "an object", &other)),
    };
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
