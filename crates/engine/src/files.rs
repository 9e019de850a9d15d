//! What a Hugging Face folder holds beside weights: tokenizer, chat template, defaults.

use std::{fs, io, path::Path};

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
        let tokenizer = Tokenizer::load(dir)?;
        let config = json(dir, TOKENIZER_CONFIG)?.unwrap_or_default();
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
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| FilesError::Invalid {
            file,
            why: error.to_string(),
        })
}

/// The template file comes first, then `chat_template` of the configuration: a text, or a list of
/// named ones of which `default` is taken.
fn template(dir: &Path, config: &Map<String, Value>) -> Result<Option<ChatTemplate>, FilesError> {
    let source = match read(dir, TEMPLATE)? {
        Some(text) => Some(text),
        None => match config.get("chat_template") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(list)) => list
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str())
                .map(str::to_owned),
            Some(_) => {
                let why = "chat_template is neither a text nor a list".to_owned();
                return Err(FilesError::Invalid {
                    file: TOKENIZER_CONFIG,
                    why,
                });
            }
        },
    };
    let Some(source) = source else {
        return Ok(None);
    };
    let older = json(dir, "special_tokens_map.json")?.unwrap_or_default();
    let special_tokens = SPECIAL_TOKENS
        .iter()
        .filter_map(|name| {
            let token = token_text(config.get(*name)).or_else(|| token_text(older.get(*name)))?;
            Some(((*name).to_owned(), token))
        })
        .collect();
    Ok(Some(ChatTemplate::new(&source, special_tokens)?))
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

/// Endings are those of `generation_config.json`, else of `config.json`, else the tokenizer's.
fn defaults(
    dir: &Path,
    tokenizer_config: &Map<String, Value>,
    tokenizer: &Tokenizer,
) -> Result<GenerationDefaults, FilesError> {
    let generation: GenerationConfig = typed(dir, GENERATION_CONFIG)?;
    let eos = match generation.eos_token_id {
        Some(ids) => ids.into(),
        None => match typed::<GenerationConfig>(dir, CONFIG)?.eos_token_id {
            Some(ids) => ids.into(),
            None => token_text(tokenizer_config.get("eos_token"))
                .and_then(|token| tokenizer.token_id(&token))
                .into_iter()
                .collect(),
        },
    };
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
    serde_json::from_str(&text).map_err(|error| FilesError::Invalid {
        file,
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake, template::TemplateMessage};

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("tokenizer.json"),
            fake::tokenizer_json().to_string(),
        )
        .unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[track_caller]
    fn render(files: &[(&str, &str)]) -> String {
        let files = ModelFiles::load(folder(files).path()).unwrap();
        let message = TemplateMessage {
            role: "user".into(),
            content: "hi".into(),
            name: None,
        };
        files.template.unwrap().render(&[message], true).unwrap()
    }

    #[test]
    fn a_template_is_found_wherever_models_keep_it() {
        let text = r#"{"chat_template": "A{{ eos_token }}", "eos_token": {"content": "</s>"}}"#;
        assert_eq!(render(&[("tokenizer_config.json", text)]), "A</s>");
        let list = r#"{"chat_template": [{"name": "tool_use", "template": "T"},
            {"name": "default", "template": "D"}]}"#;
        assert_eq!(render(&[("tokenizer_config.json", list)]), "D");
        assert_eq!(
            render(&[
                ("tokenizer_config.json", text),
                ("chat_template.jinja", "F")
            ]),
            "F"
        );
        let map = ("special_tokens_map.json", r#"{"bos_token": "<s>"}"#);
        assert_eq!(
            render(&[map, ("chat_template.jinja", "{{ bos_token }}")]),
            "<s>"
        );
        assert!(
            ModelFiles::load(folder(&[]).path())
                .unwrap()
                .template
                .is_none()
        );
    }

    #[test]
    fn endings_come_from_the_first_file_that_names_them() {
        let eos =
            |files: &[(&str, &str)]| ModelFiles::load(folder(files).path()).unwrap().defaults.eos;
        let tokenizer = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
        let config = ("config.json", r#"{"eos_token_id": 2, "x": 1}"#);
        let generation = ("generation_config.json", r#"{"eos_token_id": [1, 2]}"#);
        assert_eq!(eos(&[tokenizer]), [1]);
        assert_eq!(eos(&[tokenizer, config]), [2]);
        assert_eq!(eos(&[tokenizer, config, generation]), [1, 2]);
        assert_eq!(eos(&[("generation_config.json", "{}"), config]), [2]);
        assert_eq!(eos(&[]), [0_u32; 0]);
    }

    #[test]
    fn sampling_defaults_are_read_and_nonsense_is_left_out() {
        let config =
            r#"{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "num_beams": 1}"#;
        let files = ModelFiles::load(folder(&[("generation_config.json", config)]).path());
        let defaults = files.unwrap().defaults;
        assert_eq!(
            (defaults.temperature, defaults.top_p),
            (Some(0.6), Some(0.95))
        );
        assert_eq!((defaults.top_k, defaults.min_p), (Some(20), None));
    }

    #[test]
    fn a_broken_file_is_named_with_a_reason() {
        for (name, content, reason) in [
            ("tokenizer.json", "{", "InvalidTokenizer"),
            (
                "tokenizer.json",
                "version https://git-lfs.github.com/spec/v1",
                "InvalidTokenizer",
            ),
            ("tokenizer_config.json", "[]", "InvalidTokenizer"),
            (
                "tokenizer_config.json",
                r#"{"chat_template": 1}"#,
                "InvalidTokenizer",
            ),
            ("chat_template.jinja", "{% if %}", "InvalidTokenizer"),
            (
                "generation_config.json",
                r#"{"eos_token_id": "x"}"#,
                "InvalidConfig",
            ),
        ] {
            let error = ModelFiles::load(folder(&[(name, content)]).path()).unwrap_err();
            assert_eq!(error.reason(), reason, "{name}: {error}");
            assert!(error.is_final());
        }
        let empty = tempfile::tempdir().unwrap();
        let error = ModelFiles::load(empty.path()).unwrap_err();
        assert_eq!((error.reason(), error.is_final()), ("MissingFile", true));
    }
}
