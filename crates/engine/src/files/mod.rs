//! What a Hugging Face folder holds beside weights: tokenizer, chat template, defaults.

mod json;
mod tokens;

use std::{collections::HashSet, fs, io, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    template::{ChatTemplate, TemplateError},
    text::{Tokenizer, TokenizerError},
};

/// Names of special tokens as templates know them.
const SPECIAL_TOKENS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Everything about a model that is not a number in its layers.
#[derive(Debug)]
pub struct ModelFiles {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// How conversations become prompts; absent for models that were not made for them.
    pub template: Option<ChatTemplate>,
    /// What the model's makers advise.
    pub defaults: GenerationDefaults,
}

/// `generation_config.json`, as far as it says something about sampling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens by which the model ends an answer.
    pub eos: Vec<u32>,
    /// For requests that do not name a temperature.
    pub temperature: Option<f32>,
    /// For requests that do not name it.
    pub top_p: Option<f32>,
    /// For requests that do not name it.
    pub top_k: Option<usize>,
    /// For requests that do not name it.
    pub min_p: Option<f32>,
    /// For requests that do not name it.
    pub repetition_penalty: Option<f32>,
}

/// A folder is not a model that can be talked to.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A file cannot be read from disk.
    #[error("{file} cannot be read")]
    Read {
        /// Its name.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{file} is invalid: {why}")]
    Invalid {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl FilesError {
    /// A word for conditions: one of those of the worker's last words.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Tokenizer(error) => error.reason(),
            Self::Template(_) => "InvalidTokenizer",
            Self::Read { .. } => "InternalError",
            Self::Invalid { file, .. } if file.starts_with("tokenizer") => "InvalidTokenizer",
            Self::Invalid { .. } => "InvalidConfig",
        }
    }

    /// Whether another attempt on the same files fails in the same way.
    pub fn is_final(&self) -> bool {
        self.reason() != "InternalError"
    }
}

impl ModelFiles {
    /// Reads `dir`. Weights are not looked at.
    ///
    /// # Errors
    /// A file is missing, unreadable or not what it should be.
    pub fn load(dir: &Path) -> Result<Self, FilesError> {
        let config = json(dir, TOKENIZER_CONFIG)?.unwrap_or_default();
        let added = tokens::added(&config).map_err(|why| FilesError::Invalid {
            file: TOKENIZER_CONFIG,
            why,
        })?;
        let tokenizer = Tokenizer::load_with(dir, &added)?;
        let template = template(dir, &config)?;
        let defaults = defaults(dir, &config, &tokenizer)?;
        Ok(Self {
            tokenizer,
            template,
            defaults,
        })
    }
}

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";
/// Name of the template for conversations with tools.
const TOOL_USE: &str = "tool_use";
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

fn read(dir: &Path, file: &'static str) -> Result<Option<String>, FilesError> {
    match fs::read_to_string(dir.join(file)) {
        Ok(text) if text.starts_with("version https://git-lfs") => {
            let why = "it is a git-lfs pointer: the file itself was not fetched".to_owned();
            Err(FilesError::Invalid { file, why })
        }
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(FilesError::Invalid {
            file,
            why: "it is not UTF-8".to_owned(),
        }),
        Err(source) => Err(FilesError::Read { file, source }),
    }
}

fn json(dir: &Path, file: &'static str) -> Result<Option<Map<String, Value>>, FilesError> {
    let Some(text) = read(dir, file)? else {
        return Ok(None);
    };
    parse(file, &text).map(Some)
}

fn parse<T: for<'de> Deserialize<'de>>(file: &'static str, text: &str) -> Result<T, FilesError> {
    serde_json::from_str(&json::of_python(text)).map_err(|error| FilesError::Invalid {
        file,
        why: error.to_string(),
    })
}

/// The template files come first, then `chat_template` of the configuration: a text, or a list of
/// named ones. The one named `tool_use` is for conversations with tools, `default` for all others,
/// or what stands first where none is called that.
fn template(dir: &Path, config: &Map<String, Value>) -> Result<Option<ChatTemplate>, FilesError> {
    let mut named = match config.get("chat_template") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![("default", text.clone())],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|entry| {
                let text = entry["template"].as_str()?.to_owned();
                Some((entry["name"].as_str()?, text))
            })
            .collect(),
        Some(_) => {
            let why = "chat_template is neither a text nor a list".to_owned();
            return Err(FilesError::Invalid {
                file: TOKENIZER_CONFIG,
                why,
            });
        }
    };
    // Where there is a file, the configuration says nothing.
    if let Some(text) = read(dir, TEMPLATE)? {
        named = vec![("default", text)];
    }
    if let Some(text) = read(dir, TOOL_TEMPLATE)? {
        named.retain(|(name, _)| *name != TOOL_USE);
        named.push((TOOL_USE, text));
    }
    let older = json(dir, "special_tokens_map.json")?.unwrap_or_default();
    let special_tokens: Vec<_> = SPECIAL_TOKENS
        .iter()
        .filter_map(|name| {
            let token = token_text(config.get(*name)).or_else(|| token_text(older.get(*name)))?;
            Some(((*name).to_owned(), token))
        })
        .collect();
    let find = |wanted| named.iter().find(|(name, _)| *name == wanted);
    let tool_use = find(TOOL_USE);
    let others = named.iter().find(|(name, _)| *name != TOOL_USE);
    let Some((_, usual)) = find("default").or(others).or(tool_use) else {
        return Ok(None);
    };
    let template = ChatTemplate::new(usual, special_tokens.clone())?;
    let template = match tool_use {
        None => template,
        Some((_, text)) => template.with_tool_use(ChatTemplate::new(text, special_tokens)?),
    };
    template.probe()?;
    Ok(Some(template))
}

/// The text of a special token, which is written as such or as an object.
fn token_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value
        .as_str()
        .or_else(|| value.get("content")?.as_str())
        .map(str::to_owned)
}

/// The members that matter here; others steer things that do not exist here, such as beams.
#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// The only member of `config.json` that matters here.
#[derive(Default, Deserialize)]
struct EndsConfig {
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Several(Vec<u32>),
}

impl From<TokenIds> for Vec<u32> {
    fn from(ids: TokenIds) -> Self {
        match ids {
            TokenIds::One(id) => vec![id],
            TokenIds::Several(ids) => ids,
        }
    }
}

/// Endings are those of all three: `generation_config.json`, `config.json` and the tokenizer's. Many
/// models name the end of a turn in one of them and the end of a text in another, and run on when
/// only one counts.
fn defaults(
    dir: &Path,
    tokenizer_config: &Map<String, Value>,
    tokenizer: &Tokenizer,
) -> Result<GenerationDefaults, FilesError> {
    let generation: GenerationConfig = typed(dir, GENERATION_CONFIG)?;
    let config: EndsConfig = typed(dir, CONFIG)?;
    let named = [generation.eos_token_id, config.eos_token_id];
    let mut eos: Vec<u32> = named.into_iter().flatten().flat_map(Vec::from).collect();
    eos.extend(
        token_text(tokenizer_config.get("eos_token")).and_then(|token| tokenizer.token_id(&token)),
    );
    let mut seen = HashSet::new();
    eos.retain(|token| seen.insert(*token));
    let in_range = |value: Option<f32>, least: f32, most: f32| {
        value.filter(|value| *value > least && *value <= most)
    };
    Ok(GenerationDefaults {
        eos,
        temperature: generation.temperature.filter(|t| (0.0..=100.0).contains(t)),
        top_p: in_range(generation.top_p, 0.0, 1.0),
        top_k: generation.top_k.and_then(|k| usize::try_from(k).ok()),
        min_p: in_range(generation.min_p, 0.0, 1.0),
        repetition_penalty: in_range(generation.repetition_penalty, 0.0, 100.0),
    })
}

fn typed<T: Default + for<'de> Deserialize<'de>>(
    dir: &Path,
    file: &'static str,
) -> Result<T, FilesError> {
    let Some(text) = read(dir, file)? else {
        return Ok(T::default());
    };
    parse(file, &text)
}

#[cfg(test)]
mod tests;
