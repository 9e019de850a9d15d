//! From records to tokens, and which of them count.
//!
//! Conversations are rendered by the template that serving uses, and what users wrote is kept from
//! becoming control tokens as there. Which tokens the assistant says is found by position, never by
//! what they are: a token that pads elsewhere may end a turn here.

mod chat;
#[cfg(test)]
mod mask_goldens;
mod spans;
#[cfg(test)]
pub(crate) mod tests;

use hyprstream_engine::{ChatTemplate, ModelFiles, TokenizerError};
use serde_json::{Map, Value};

use crate::{job::Loss, samples::Sample};

/// What a record says, whatever its columns are called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// A conversation. Messages before `from` are never learnt.
    Chat {
        messages: Vec<Value>,
        tools: Vec<Value>,
        from: usize,
    },
    /// A text, and how it goes on.
    Completion { prompt: String, completion: String },
    /// A task, with or without something to do it on.
    Instruction {
        instruction: String,
        input: String,
        output: String,
    },
    /// A text.
    Text(String),
    /// Two answers.
    Pair(Answers),
    /// Tokens.
    Tokens {
        ids: Vec<i64>,
        labels: Option<Vec<i64>>,
        attention: Option<Vec<i64>>,
    },
}

/// Two answers to one prompt, the better first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answers {
    /// Conversations that are the same up to `from`.
    Chats {
        chosen: Vec<Value>,
        rejected: Vec<Value>,
        tools: Vec<Value>,
        from: usize,
    },
    /// Texts.
    Texts {
        prompt: String,
        chosen: String,
        rejected: String,
    },
}

/// What came of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rendered {
    /// Each one sample, or two of a pair.
    pub(crate) units: Vec<Vec<Sample>>,
    /// Samples that were cut.
    pub(crate) truncated: u64,
    /// Units that nothing that counts was left of.
    pub(crate) cut_away: u64,
    /// Answers that nothing ends.
    pub(crate) endless: u64,
    /// Whether prompt and answer are texts that were joined without the template that there is.
    pub(crate) is_joined: bool,
}

/// Nothing comes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unrendered {
    /// For what it says.
    Bad(String),
    /// For what the model is: nor will come of others.
    Never(String),
}

impl From<String> for Unrendered {
    fn from(why: String) -> Self {
        Self::Bad(why)
    }
}

/// Renders records for one model.
#[derive(Debug)]
pub struct Renderer<'a> {
    files: &'a ModelFiles,
    /// Ids from here on are no tokens.
    vocab_size: usize,
    loss: Loss,
    max_length: usize,
    variables: Map<String, Value>,
}

/// Which tokens of a text count, before any is cut away.
#[derive(Clone, Debug, PartialEq)]
struct Masked {
    sample: Sample,
    /// Whether an answer has no token that ends it.
    endless: bool,
}

/// A model that cannot be trained as the job says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RendererError {
    /// The chat template does not look at a variable.
    #[error(
        "data.templateVariables.{0}: the chat template of this model does not know it: remove it"
    )]
    UnknownVariable(String),
    /// The chat template writes the date, which would differ when the job is resumed.
    #[error(
        "data.date: the chat template of this model writes the date, which must stay the same when \
         the job is resumed: set it, as in 2026-11-29"
    )]
    NoDate,
}

impl<'a> Renderer<'a> {
    /// A renderer for the model of these files, whose embedding has `vocab_size` rows.
    ///
    /// # Errors
    /// [`RendererError`].
    pub fn new(
        files: &'a ModelFiles,
        vocab_size: usize,
        loss: Loss,
        max_length: usize,
        template_variables: &Map<String, Value>,
        date: Option<&str>,
    ) -> Result<Self, RendererError> {
        let mut variables = template_variables.clone();
        if let Some(template) = &files.template {
            if let Some(name) = variables.keys().find(|name| !template.mentions(name)) {
                return Err(RendererError::UnknownVariable(name.clone()));
            }
            let is_dated = date.is_some() || variables.contains_key("date_string");
            if template.mentions("strftime_now") && !is_dated {
                return Err(RendererError::NoDate);
            }
        }
        if let Some(date) = date {
            variables.insert(ChatTemplate::DATE.to_owned(), date.into());
        }
        Ok(Self {
            files,
            vocab_size,
            loss,
            max_length,
            variables,
        })
    }

    /// The samples of a record.
    pub(crate) fn units(&self, record: Record) -> Result<Rendered, Unrendered> {
        let is_text = matches!(
            record,
            Record::Completion { .. } | Record::Pair(Answers::Texts { .. })
        );
        let mut rendered = Rendered {
            is_joined: is_text && self.files.template.is_some(),
            ..Rendered::default()
        };
        match record {
            Record::Pair(answers) => {
                let pair = self.pair(answers)?;
                self.add(pair.to_vec(), &mut rendered)?;
            }
            single => {
                for masked in self.singles(single)? {
                    self.add(vec![masked], &mut rendered)?;
                }
            }
        }
        Ok(rendered)
    }

    fn singles(&self, record: Record) -> Result<Vec<Masked>, Unrendered> {
        match record {
            Record::Chat {
                messages,
                tools,
                from,
            } => self.chat(messages, tools, from),
            Record::Instruction {
                instruction,
                input,
                output,
            } => self.instruction(&instruction, &input, &output),
            Record::Completion { prompt, completion } => {
                Ok(vec![self.completion(&prompt, &completion)?])
            }
            Record::Text(text) => Ok(vec![self.text(&text)?]),
            Record::Tokens {
                ids,
                labels,
                attention,
            } => Ok(vec![self.tokens(
                &ids,
                labels.as_deref(),
                attention.as_deref(),
            )?]),
            Record::Pair(_) => Err(Unrendered::Bad("two answers are no sample".to_owned())),
        }
    }

    fn pair(&self, answers: Answers) -> Result<[Masked; 2], Unrendered> {
        match answers {
            Answers::Texts {
                prompt,
                chosen,
                rejected,
            } => Ok([
                self.completion(&prompt, &chosen)?,
                self.completion(&prompt, &rejected)?,
            ]),
            Answers::Chats {
                chosen,
                rejected,
                tools,
                from,
            } => {
                let one = |messages| {
                    let mut all = self.chat(messages, tools.clone(), from)?;
                    match (all.pop(), all.is_empty()) {
                        (Some(masked), true) => Ok(masked),
                        _ => Err(Unrendered::Bad(
                            "an answer of several turns, of which the template of this model \
                             shows earlier ones otherwise than the last, is no one sample"
                                .to_owned(),
                        )),
                    }
                };
                Ok([one(chosen)?, one(rejected)?])
            }
        }
    }

    /// Cuts the samples of a unit, and adds it unless nothing that counts is left of one.
    fn add(&self, unit: Vec<Masked>, to: &mut Rendered) -> Result<(), Unrendered> {
        let mut samples = Vec::with_capacity(unit.len());
        for masked in unit {
            let mut sample = masked.sample;
            if sample.targets() == 0 {
                return Err(Unrendered::Bad(
                    "nothing in it counts: there is no answer to learn".to_owned(),
                ));
            }
            to.endless += u64::from(masked.endless);
            if sample.tokens.len() > self.max_length {
                to.truncated += 1;
                sample.tokens.truncate(self.max_length);
                sample.trained.truncate(self.max_length);
            }
            samples.push(sample);
        }
        if samples.iter().any(|sample| sample.targets() == 0) {
            to.cut_away += 1;
        } else {
            to.units.push(samples);
        }
        Ok(())
    }

    /// A task as a conversation, or where the model has no template in the words that Alpaca's
    /// models were trained with (<https://github.com/tatsu-lab/stanford_alpaca>).
    fn instruction(
        &self,
        instruction: &str,
        input: &str,
        output: &str,
    ) -> Result<Vec<Masked>, Unrendered> {
        if self.files.template.is_some() {
            let task = if input.is_empty() {
                instruction.to_owned()
            } else {
                format!("{instruction}\n{input}")
            };
            let messages = vec![
                serde_json::json!({"role": "user", "content": task}),
                serde_json::json!({"role": "assistant", "content": output}),
            ];
            return self.chat(messages, Vec::new(), 0);
        }
        let (with, middle) = if input.is_empty() {
            ("", String::new())
        } else {
            (
                ", paired with an input that provides further context",
                format!("### Input:\n{input}\n\n"),
            )
        };
        let prompt = format!(
            "Below is an instruction that describes a task{with}. Write a response that \
             appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{middle}\
             ### Response:\n"
        );
        Ok(vec![self.completion(&prompt, output)?])
    }

    /// A text that goes on, and ends: as a prompt of serving, without a template.
    fn completion(&self, prompt: &str, completion: &str) -> Result<Masked, Unrendered> {
        if completion.is_empty() {
            return Err(Unrendered::Bad("the answer is empty".to_owned()));
        }
        let from = if self.loss == Loss::All {
            0
        } else {
            prompt.len()
        };
        self.plain(&format!("{prompt}{completion}"), from)
    }

    fn text(&self, text: &str) -> Result<Masked, Unrendered> {
        if text.is_empty() {
            return Err(Unrendered::Bad("the text is empty".to_owned()));
        }
        self.plain(text, 0)
    }

    /// A text with what the tokenizer puts around it and the token that ends it, of which counts
    /// what begins at the byte `from`, or lies over it.
    fn plain(&self, text: &str, from: usize) -> Result<Masked, Unrendered> {
        let tokenizer = &self.files.tokenizer;
        let placed = tokenizer
            .encode_with_places(text)
            .map_err(|error| tokenizing(&error))?;
        let whole = tokenizer
            .encode(text, true)
            .map_err(|error| tokenizing(&error))?;
        let ids: Vec<u32> = placed.iter().map(|(token, _)| *token).collect();
        // What is put around it stands before and behind.
        let before = whole.windows(ids.len().max(1)).position(|some| some == ids);
        let before = before.ok_or_else(|| {
            Unrendered::Bad("its tokens change by what the tokenizer puts around them".to_owned())
        })?;
        let mut sample = Sample {
            trained: vec![false; whole.len()],
            tokens: whole,
        };
        for (index, (_, place)) in placed.iter().enumerate() {
            sample.trained[before + index] = place.end > from;
        }
        let end = self.files.defaults.eos.first().copied();
        match (sample.tokens.last(), end) {
            (Some(last), Some(_)) if self.ends(*last) => {
                if let Some(trained) = sample.trained.last_mut() {
                    *trained = true;
                }
            }
            (_, Some(end)) => {
                sample.tokens.push(end);
                sample.trained.push(true);
            }
            (_, None) => {}
        }
        self.masked(sample, end.is_none())
    }

    fn tokens(
        &self,
        ids: &[i64],
        labels: Option<&[i64]>,
        attention: Option<&[i64]>,
    ) -> Result<Masked, Unrendered> {
        /// What elsewhere stands for a token that does not count.
        const IGNORED: i64 = -100;
        let len = ids.len();
        for (name, other) in [("labels", labels), ("attention_mask", attention)] {
            if let Some(other) = other.filter(|other| other.len() != len) {
                let found = other.len();
                return Err(format!("{found} {name} for {len} input_ids").into());
            }
        }
        if attention.is_some_and(|mask| mask.iter().any(|seen| *seen != 1)) {
            let why = "attention_mask hides tokens: leave padding out of input_ids";
            return Err(why.to_owned().into());
        }
        let mut sample = Sample::default();
        for (index, id) in ids.iter().enumerate() {
            let token = u32::try_from(*id)
                .ok()
                .filter(|id| (*id as usize) < self.vocab_size);
            let token = token.ok_or_else(|| format!("the model has no token {id}"))?;
            let label = labels.map_or(*id, |labels| labels[index]);
            if label != IGNORED && label != *id {
                return Err(format!("label {label} is neither -100 nor the token {id}").into());
            }
            sample.tokens.push(token);
            sample
                .trained
                .push(label != IGNORED || self.loss == Loss::All);
        }
        self.masked(sample, false)
    }

    /// With the first token, which nothing comes before, left out of what counts.
    fn masked(&self, mut sample: Sample, endless: bool) -> Result<Masked, Unrendered> {
        let known = |token: &u32| (*token as usize) < self.vocab_size;
        if let Some(token) = sample.tokens.iter().find(|token| !known(token)) {
            let why = format!("it holds token {token}, for which the model has no embedding");
            return Err(Unrendered::Bad(why));
        }
        if sample.tokens.len() < 2 {
            return Err(Unrendered::Bad("it is shorter than two tokens".to_owned()));
        }
        sample.trained[0] = false;
        Ok(Masked { sample, endless })
    }

    /// Whether serving ends an answer at this token.
    fn ends(&self, token: u32) -> bool {
        self.files.defaults.eos.contains(&token)
    }
}

fn tokenizing(error: &TokenizerError) -> Unrendered {
    Unrendered::Bad(error.to_string())
}
