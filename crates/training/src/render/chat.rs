//! Conversations.

use std::ops::Range;

use hyprstream_engine::{Conversation, Guard, TemplateError};
use serde_json::{Map, Value};

use super::{
    Masked, Renderer, Unrendered,
    spans::{NoSpans, Spanned, Spans},
    tokenizing,
};
use crate::{job::Loss, samples::Sample};

impl Renderer<'_> {
    /// The samples of a conversation, of which messages before `from` are never learnt: one, or one
    /// for each turn.
    pub(super) fn chat(
        &self,
        messages: Vec<Value>,
        tools: Vec<Value>,
        from: usize,
    ) -> Result<Vec<Masked>, Unrendered> {
        let template = self.files.template.as_ref().ok_or_else(|| {
            Unrendered::Never(
                "these are conversations, but the model has no chat template: use a model that was \
                 made for conversations, or data of prompt and completion as texts"
                    .to_owned(),
            )
        })?;
        let template = template.for_tools(!tools.is_empty());
        let mut turns = Vec::new();
        let mut conversation = Conversation {
            tools,
            variables: self.variables.clone(),
            ..Conversation::default()
        };
        for (index, message) in messages.into_iter().enumerate() {
            let (message, is_learnt) = message_of(index, message)?;
            if is_learnt && index >= from {
                turns.push(index);
            }
            conversation.messages.push(message);
        }
        if turns.is_empty() {
            let why = "there is no turn of the assistant to learn";
            return Err(Unrendered::Bad(why.to_owned()));
        }
        if self.loss == Loss::Completion {
            turns.drain(..turns.len() - 1);
        }
        if uses_tools(&conversation) && !template.mentions("tools") {
            let why = "it uses tools, which the chat template of this model does not know";
            return Err(Unrendered::Bad(why.to_owned()));
        }
        let mut texts = Vec::new();
        let said = conversation.messages.iter().chain(&conversation.tools);
        said.for_each(|value| gather(value, &mut texts));
        let mut guard = Guard::new(&self.files.tokenizer, texts.into_iter());
        let parts = [&mut conversation.messages, &mut conversation.tools];
        for value in parts.into_iter().flatten() {
            mark(&mut guard, value);
        }
        let rendered = if self.loss == Loss::All {
            let text = template.render_conversation(&conversation);
            let text = text.map_err(|error| refused(&error))?;
            let all = 0..text.len();
            vec![Spanned {
                text,
                spans: Vec::from([all]),
            }]
        } else {
            let only_ends = |text: &str| {
                let placed = guard.encode_with_places(text).unwrap_or_default();
                let mut placed = placed.iter();
                placed.all(|(token, place)| self.is_end(*token) || is_space(text, place))
            };
            let found = Spans {
                template,
                conversation: &conversation,
                only_ends: &only_ends,
            };
            found.find(&turns).map_err(|error| match error {
                NoSpans::Template(error) => refused(&error),
                NoSpans::Unprompted => Unrendered::Bad(
                    "the chat template shows an answer otherwise than it prompts for it, so that \
                     it cannot be told from the prompt: use a template that marks it with \
                     {% generation %}, or loss: all"
                        .to_owned(),
                ),
            })?
        };
        let masked = rendered.iter().map(|one| self.masked_chat(&guard, one));
        masked.collect()
    }

    fn masked_chat(&self, guard: &Guard<'_>, rendered: &Spanned) -> Result<Masked, Unrendered> {
        let placed = guard
            .encode_with_places(&rendered.text)
            .map_err(|error| tokenizing(&error))?;
        let mut sample = Sample {
            tokens: placed.iter().map(|(token, _)| *token).collect(),
            trained: vec![false; placed.len()],
        };
        let mut endless = false;
        for span in &rendered.spans {
            let tokens = self.tokens_of(span, &placed, &rendered.text);
            if tokens.is_empty() {
                continue;
            }
            endless |= self.loss != Loss::All && !self.is_end(sample.tokens[tokens.end - 1]);
            sample.trained[tokens].fill(true);
        }
        self.masked(sample, endless)
    }

    /// The tokens over a span of bytes: up to the one that ends the turn, wherever the span ends
    /// about it.
    fn tokens_of(
        &self,
        span: &Range<usize>,
        placed: &[(u32, Range<usize>)],
        text: &str,
    ) -> Range<usize> {
        let from = placed.partition_point(|(_, place)| place.end <= span.start);
        let mut to = placed.partition_point(|(_, place)| place.start < span.end);
        if to <= from || self.loss == Loss::All {
            return from..to.max(from);
        }
        // White space behind the end is the template's: the model is never asked for it.
        let of = |index: usize| &placed[index];
        let is_space = |index: usize| text[of(index).1.clone()].trim().is_empty();
        let last = (from..to)
            .rev()
            .find(|i| self.is_end(of(*i).0) || !is_space(*i));
        match last.filter(|last| self.is_end(of(*last).0)) {
            Some(end) => to = end + 1,
            // Marks that leave the end out.
            None if to < placed.len() && self.is_end(of(to).0) => to += 1,
            None => {}
        }
        from..to
    }

    /// Whether a token ends a turn: serving stops at it, or it is the tokenizer's own.
    fn is_end(&self, token: u32) -> bool {
        self.ends(token) || self.files.tokenizer.is_special(token)
    }
}

/// A message as templates see it, and whether it is learnt.
fn message_of(index: usize, message: Value) -> Result<(Value, bool), Unrendered> {
    let bad = |why: &str| Unrendered::Bad(format!("message {}: {why}", index + 1));
    let Value::Object(mut message) = message else {
        return Err(bad("it is no object"));
    };
    let role = message.get("role").and_then(Value::as_str);
    let role = role.ok_or_else(|| bad("it has no role"))?.to_owned();
    if !["system", "developer", "user", "assistant", "tool"].contains(&role.as_str()) {
        return Err(bad(&format!("the role {role} is not known")));
    }
    // Files of columns write what is absent.
    message.retain(|name, value| name == "content" || !value.is_null());
    let weight = match message.remove("weight").map(|weight| weight.as_f64()) {
        None | Some(Some(1.0)) => true,
        Some(Some(0.0)) => false,
        Some(_) => return Err(bad("its weight is neither 0 nor 1")),
    };
    match message.get("content") {
        None | Some(Value::Null) => {
            if !message.contains_key("tool_calls") {
                return Err(bad("it has no content"));
            }
            message.insert("content".to_owned(), "".into());
        }
        Some(Value::String(text)) => {
            let says_nothing = text.trim().is_empty() && !message.contains_key("tool_calls");
            if role == "assistant" && says_nothing {
                return Err(bad("the assistant says nothing"));
            }
        }
        Some(Value::Array(parts)) => {
            let text = of_parts(parts).ok_or_else(|| bad("it holds what is no text"))?;
            message.insert("content".to_owned(), text.into());
        }
        Some(_) => return Err(bad("its content is no text")),
    }
    if let Some(calls) = message.get_mut("tool_calls") {
        let calls = calls.as_array_mut();
        for call in calls.ok_or_else(|| bad("tool_calls is no list"))? {
            parse_arguments(call).map_err(bad)?;
        }
    }
    let is_learnt = role == "assistant" && weight;
    Ok((Value::Object(message), is_learnt))
}

/// The text of a content in parts, if all of them are texts.
fn of_parts(parts: &[Value]) -> Option<String> {
    let text = |part: &Value| {
        let is_text = part["type"] == "text";
        is_text.then(|| part["text"].as_str().map(str::to_owned))?
    };
    parts.iter().map(text).collect()
}

/// Arguments of a call as an object: OpenAI's form has them as a text, and serving gives templates
/// the object.
fn parse_arguments(call: &mut Value) -> Result<(), &'static str> {
    let arguments = call.pointer_mut("/function/arguments");
    let arguments = arguments.ok_or("a call of a tool has no function with arguments")?;
    if let Value::String(text) = arguments {
        let parsed: Result<Map<String, Value>, _> = serde_json::from_str(text);
        *arguments = Value::Object(parsed.map_err(|_| "arguments of a call are no JSON object")?);
    }
    Ok(())
}

fn uses_tools(conversation: &Conversation) -> bool {
    let speaks = |m: &Value| m["role"] == "tool" || m.get("tool_calls").is_some();
    !conversation.tools.is_empty() || conversation.messages.iter().any(speaks)
}

fn is_space(text: &str, place: &Range<usize>) -> bool {
    text.get(place.clone())
        .is_some_and(|text| text.trim().is_empty())
}

/// All texts in `value`, names of fields too.
fn gather<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(list) => list.iter().for_each(|value| gather(value, texts)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            texts.push(name);
            gather(value, texts);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Marks the special tokens in every text in `value`, as serving does.
fn mark(guard: &mut Guard<'_>, value: &mut Value) {
    match value {
        Value::String(text) => *text = guard.mark(text),
        Value::Array(list) => list.iter_mut().for_each(|value| mark(guard, value)),
        Value::Object(fields) => {
            let marked = std::mem::take(fields).into_iter().map(|(name, mut value)| {
                mark(guard, &mut value);
                (guard.mark(&name), value)
            });
            *fields = marked.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn refused(error: &TemplateError) -> Unrendered {
    Unrendered::Bad(error.to_string())
}
