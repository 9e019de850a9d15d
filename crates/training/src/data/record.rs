//! The forms in which people write data.

use serde_json::{Map, Value, json};

use crate::render::{Answers, Record};

/// The columns of every form that is understood, for messages.
pub(super) const UNDERSTOOD: &str = "messages [tools]; prompt and completion; text; instruction, \
    output [input]; conversations; input_ids [labels]; for method dpo: chosen and rejected \
    [prompt]; input, preferred_output and non_preferred_output";

/// A form of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `{messages, tools?}`.
    Messages,
    /// `{prompt, completion}`, texts or messages.
    PromptCompletion,
    /// `{text}`.
    Text,
    /// `{instruction, input?, output}`.
    Alpaca,
    /// `{conversations: [{from, value}]}`.
    ShareGpt,
    /// `{prompt?, chosen, rejected}`, texts or messages.
    Preference,
    /// `{input: {messages, tools?}, preferred_output, non_preferred_output}`.
    OpenAiPreference,
    /// `{input_ids, labels?}`.
    Tokens,
    /// `{prompt, completion, label}`, which nothing here learns from.
    Kto,
}

type Fields = Map<String, Value>;

impl Shape {
    /// The form of a record with these fields.
    pub(super) fn of(fields: &Fields) -> Option<Self> {
        let has = |names: &[&str]| {
            names
                .iter()
                .all(|name| fields.get(*name).is_some_and(|value| !value.is_null()))
        };
        // What has more columns comes before what has fewer of them.
        let shapes: [(&[&str], Self); 9] = [
            (&["input_ids"], Self::Tokens),
            (
                &["input", "preferred_output", "non_preferred_output"],
                Self::OpenAiPreference,
            ),
            (&["chosen", "rejected"], Self::Preference),
            (&["prompt", "completion", "label"], Self::Kto),
            (&["prompt", "completion"], Self::PromptCompletion),
            (&["messages"], Self::Messages),
            (&["conversations"], Self::ShareGpt),
            (&["instruction", "output"], Self::Alpaca),
            (&["text"], Self::Text),
        ];
        let found = shapes.into_iter().find(|(names, _)| has(names));
        found.map(|(_, shape)| shape)
    }

    /// Names of the columns that mean something.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages", "tools"],
            Self::PromptCompletion => &["prompt", "completion", "tools"],
            Self::Text => &["text"],
            Self::Alpaca => &["instruction", "input", "output"],
            Self::ShareGpt => &["conversations", "tools"],
            Self::Preference => &["prompt", "chosen", "rejected", "tools"],
            Self::OpenAiPreference => &["input", "preferred_output", "non_preferred_output"],
            Self::Tokens => &["input_ids", "labels", "attention_mask"],
            Self::Kto => &["prompt", "completion", "label"],
        }
    }

    /// Names of fields that say nothing here.
    pub(super) fn ignored(self, fields: &Fields) -> impl Iterator<Item = &str> {
        let known = self.columns();
        let names = fields.iter().filter(|(_, value)| !value.is_null());
        names
            .map(|(name, _)| name.as_str())
            .filter(|name| !known.contains(name))
    }

    /// The record of these fields, or what is wrong with them.
    pub(super) fn record(self, mut fields: Fields) -> Result<Record, String> {
        for old in ["functions", "function_call"] {
            if fields.get(old).is_some_and(|value| !value.is_null()) {
                return Err(format!(
                    "{old} is not understood: write tools and tool_calls"
                ));
            }
        }
        let mut take = |name: &str| fields.remove(name).unwrap_or_default();
        match self {
            Self::Messages => Ok(Record::Chat {
                messages: list("messages", take("messages"))?,
                tools: tools(take("tools"))?,
                from: 0,
            }),
            Self::PromptCompletion => match (take("prompt"), take("completion")) {
                (Value::String(prompt), Value::String(completion)) => {
                    Ok(Record::Completion { prompt, completion })
                }
                (prompt, completion) => {
                    let mut messages = list("prompt", prompt)?;
                    let from = messages.len();
                    messages.extend(list("completion", completion)?);
                    let tools = tools(take("tools"))?;
                    Ok(Record::Chat {
                        messages,
                        tools,
                        from,
                    })
                }
            },
            Self::Text => Ok(Record::Text(text("text", take("text"))?)),
            Self::Alpaca => {
                let instruction = text("instruction", take("instruction"))?;
                let input = match take("input") {
                    Value::Null => String::new(),
                    input => text("input", input)?,
                };
                let output = text("output", take("output"))?;
                Ok(Record::Instruction {
                    instruction,
                    input,
                    output,
                })
            }
            Self::ShareGpt => {
                let turns = list("conversations", take("conversations"))?;
                Ok(Record::Chat {
                    messages: turns.into_iter().map(turn).collect::<Result<_, _>>()?,
                    tools: tools(take("tools"))?,
                    from: 0,
                })
            }
            Self::Preference => {
                let prompt = take("prompt");
                preference(prompt, take("chosen"), take("rejected"), take("tools"))
            }
            Self::OpenAiPreference => {
                let Value::Object(mut input) = take("input") else {
                    return Err("input is no object".to_owned());
                };
                let prompt = input.remove("messages").unwrap_or_default();
                let tools = input.remove("tools").unwrap_or_default();
                let (chosen, rejected) = (take("preferred_output"), take("non_preferred_output"));
                list("input.messages", prompt.clone())?;
                preference(prompt, chosen, rejected, tools)
            }
            Self::Tokens => Ok(Record::Tokens {
                ids: numbers("input_ids", take("input_ids"))?,
                labels: match take("labels") {
                    Value::Null => None,
                    labels => Some(numbers("labels", labels)?),
                },
                attention: match take("attention_mask") {
                    Value::Null => None,
                    mask => Some(numbers("attention_mask", mask)?),
                },
            }),
            Self::Kto => Err("data for KTO is not understood".to_owned()),
        }
    }
}

fn preference(
    prompt: Value,
    chosen: Value,
    rejected: Value,
    with: Value,
) -> Result<Record, String> {
    match (prompt, chosen, rejected) {
        (Value::String(prompt), Value::String(chosen), Value::String(rejected)) => {
            Ok(Record::Pair(Answers::Texts {
                prompt,
                chosen,
                rejected,
            }))
        }
        (Value::Null, Value::String(_), Value::String(_)) => {
            Err("chosen and rejected are texts, for which a prompt is missing".to_owned())
        }
        (prompt, chosen, rejected) => {
            let (chosen, rejected) = (list("chosen", chosen)?, list("rejected", rejected)?);
            let (mut prompt, mut same) = match prompt {
                Value::Null => (Vec::new(), 0),
                prompt => (list("prompt", prompt)?, 0),
            };
            if prompt.is_empty() {
                // Both tell the whole conversation: what they share is the prompt.
                let pairs = chosen.iter().zip(&rejected);
                same = pairs.take_while(|(a, b)| a == b).count();
                prompt = chosen[..same].to_vec();
            }
            let whole = |answer: &[Value]| [&prompt, &answer[same..]].concat();
            Ok(Record::Pair(Answers::Chats {
                from: prompt.len(),
                chosen: whole(&chosen),
                rejected: whole(&rejected),
                tools: tools(with)?,
            }))
        }
    }
}

/// One turn of ShareGPT as a message.
fn turn(turn: Value) -> Result<Value, String> {
    if turn.get("role").is_some() {
        return Ok(turn);
    }
    let part = |name: &str| {
        let value = turn.get(name).and_then(Value::as_str);
        value.ok_or_else(|| format!("a turn of conversations has no text called {name}"))
    };
    let role = match part("from")? {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" => "assistant",
        "system" => "system",
        "tool" | "observation" => "tool",
        other => {
            return Err(format!(
                "a turn of conversations is from {other}: human, gpt, system and tool are known"
            ));
        }
    };
    Ok(json!({"role": role, "content": part("value")?}))
}

fn text(name: &str, value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(format!("{name} is no text")),
    }
}

fn list(name: &str, value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(list) => Ok(list),
        _ => Err(format!("{name} is no list")),
    }
}

/// Tools, which data sets of columns also hold as a text.
fn tools(value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|error| format!("tools are no JSON list: {error}"))
        }
        value => list("tools", value),
    }
}

fn numbers(name: &str, value: Value) -> Result<Vec<i64>, String> {
    let all = list(name, value)?;
    let number = |value: &Value| {
        let number = value.as_i64();
        number.ok_or_else(|| format!("{name} holds {value}, which is no whole number"))
    };
    all.iter().map(number).collect()
}
