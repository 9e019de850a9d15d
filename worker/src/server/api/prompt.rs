//! From a conversation to tokens.

use hyprstream_engine::{ChatTemplate, Conversation, Guard, TemplateError};
use hyprstream_openai::{
    ApiError, Structured,
    chat::{ChatPrompt, Message, Role},
    grammar::{self, Otherwise, Thinking},
    tools::{Tool, ToolChoice, ToolFormat},
};
use serde_json::{Map, Value, json};

use super::{check_length, tokenizer_error};
use crate::{
    backend::Loaded,
    server::{
        app::App,
        reading::{Calls, ReadPlan},
    },
};

/// A conversation as the model gets it.
#[derive(Debug)]
pub(in crate::server) struct Rendered {
    pub(in crate::server) tokens: Vec<u32>,
    /// The end of its text: it may lie within the thoughts of the model.
    tail: String,
}

/// What a client wants of the tools.
#[derive(Debug)]
pub(in crate::server) struct ToolUse<'a> {
    pub(in crate::server) choice: &'a ToolChoice,
    pub(in crate::server) parallel: bool,
}

/// A form that an answer must have, and the field that asks for it.
pub(in crate::server) type Form = Option<(Structured, &'static str)>;

/// How the answers to `prompt` are read, and the form that they must have.
pub(in crate::server) fn plan(
    app: &App,
    loaded: &Loaded,
    prompt: &ChatPrompt,
    rendered: &Rendered,
    wanted: &ToolUse<'_>,
    structured: Form,
) -> Result<(ReadPlan, Form), ApiError> {
    let with_tools = !prompt.tools.is_empty() && *wanted.choice != ToolChoice::None;
    let source = source(loaded, with_tools);
    let thinks = app.options.reasoning.applies(source);
    let thinking = match rendered.tail.trim_end() {
        _ if !thinks => Thinking::No,
        tail if tail.ends_with("<think>") => Thinking::Begun,
        tail if tail.ends_with("</think>") => Thinking::No,
        _ => Thinking::Maybe,
    };
    let named = matches!(wanted.choice, ToolChoice::Named(_));
    let calls = tool_format(app, loaded, prompt, wanted.choice).map(|format| Calls {
        format,
        names: prompt.tools.iter().map(|tool| tool.name.clone()).collect(),
        forced: named || matches!(wanted.choice, ToolChoice::Required),
        // A function that is named is called once.
        parallel: wanted.parallel && !named,
        named,
    });
    // A grammar of the client's own has no place for thoughts.
    let is_own = |form: &Form| matches!(form, Some((Structured::Lark(_), _)));
    let thinks = thinks && !(is_own(&structured) && calls.is_none());
    let form = match &calls {
        None => structured.map(|(form, name)| (grammar::thoughtful(form, thinking), name)),
        Some(calls) => call_form(prompt, wanted, calls, structured, thinking)?,
    };
    let plan = ReadPlan {
        calls,
        thoughts: thinks.then(|| rendered.tail.clone()),
        tell_thoughts: true,
    };
    Ok((plan, form))
}

/// The form of answers that are, or may be, calls.
fn call_form(
    prompt: &ChatPrompt,
    wanted: &ToolUse<'_>,
    calls: &Calls,
    structured: Form,
    thinking: Thinking,
) -> Result<Form, ApiError> {
    let tools: Vec<&Tool> = match wanted.choice {
        ToolChoice::Named(name) => prompt.tools.iter().filter(|t| t.name == *name).collect(),
        _ => prompt.tools.iter().collect(),
    };
    let (otherwise, name) = match structured {
        None if calls.forced => (Otherwise::Nothing, "tools"),
        None if tools.iter().any(|tool| tool.strict) => (Otherwise::Text, "tools"),
        None => return Ok(None),
        // An answer of the form that was asked for, or calls.
        Some((Structured::JsonSchema(schema), name)) => (Otherwise::Json(schema), name),
        Some((Structured::JsonObject, name)) => (Otherwise::Json(json!({"type": "object"})), name),
        Some((_, name)) => {
            let why = "of this kind cannot be kept by an answer that may be a call of a tool";
            return Err(ApiError::invalid(name, why));
        }
    };
    let lark = grammar::calls(calls.format, &tools, calls.parallel, &otherwise, thinking);
    let lark = lark.ok_or_else(|| {
        let why = "strict tools need a tool_choice of required or a function with this model";
        ApiError::invalid("tools", why)
    })?;
    Ok(Some((Structured::Lark(lark), name)))
}

/// Whether special tokens must be seen for calls to be found.
pub(in crate::server) fn needs_special_tokens(plan: &ReadPlan) -> bool {
    plan.calls
        .as_ref()
        .is_some_and(|calls| !calls.forced && calls.format.needs_special_tokens())
}

fn tool_format(
    app: &App,
    loaded: &Loaded,
    prompt: &ChatPrompt,
    choice: &ToolChoice,
) -> Option<ToolFormat> {
    if prompt.tools.is_empty() || *choice == ToolChoice::None {
        return None;
    }
    app.options.tool_calls.format(source(loaded, true))
}

/// The text of the template for conversations with tools or without.
fn source(loaded: &Loaded, with_tools: bool) -> &str {
    let template = loaded.template.as_ref();
    template.map_or("", |template| template.for_tools(with_tools).source())
}

/// The tokens of `prompt`, of which there may be `limit`. With `with_tools` the model is told about
/// the tools.
pub(in crate::server) fn render(
    app: &App,
    loaded: &Loaded,
    prompt: &ChatPrompt,
    with_tools: bool,
    limit: usize,
) -> Result<Rendered, ApiError> {
    let template = loaded.template.as_ref().ok_or_else(|| {
        let why = "this model has no chat template: use /v1/completions";
        ApiError::invalid("messages", why)
    })?;
    let template = template.for_tools(with_tools);
    if with_tools && app.options.tool_calls.format(template.source()).is_none() {
        let why = "calls are not looked for by this server (--tool-call-parser none)";
        return Err(ApiError::invalid("tools", why));
    }
    let mut conversation = Conversation {
        messages: prompt.messages.iter().map(message).collect(),
        tools: Vec::new(),
        documents: prompt.documents.clone(),
        add_generation_prompt: prompt.add_generation_prompt,
        variables: variables(template, prompt)?,
    };
    if !prompt.documents.is_empty() && !template.mentions("documents") {
        let why = "the chat template of this model takes no documents";
        return Err(ApiError::invalid("documents", why));
    }
    let tools = prompt.tools.iter().map(|tool| tool.value.clone());
    if template.mentions("tools") {
        conversation.tools.extend(tools.filter(|_| with_tools));
    } else {
        in_words(&mut conversation.messages);
        if with_tools {
            teach(&mut conversation.messages, &tools.collect::<Vec<_>>());
        }
    }
    for message in &prompt.messages {
        check_length(loaded, &message.content, "messages")?;
    }
    let mut guard = guard(loaded, &conversation);
    for list in [
        &mut conversation.messages,
        &mut conversation.tools,
        &mut conversation.documents,
    ] {
        for value in list {
            mark(&mut guard, value);
        }
    }
    conversation
        .variables
        .values_mut()
        .for_each(|value| mark(&mut guard, value));
    let mut text = template
        .render_conversation(&conversation)
        .map_err(|error| template_error(&error))?;
    check_length(loaded, &text, "messages")?;
    if prompt.continue_final_message {
        let last = conversation
            .messages
            .last()
            .and_then(|m| m["content"].as_str());
        text.truncate(end_of_last(&text, last.unwrap_or_default())?);
    }
    let tokens = guard
        .encode(&text, limit)
        .map_err(|error| tokenizer_error(&error, "messages"))?;
    let from = text.len().saturating_sub(64);
    let from = (from..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    Ok(Rendered {
        tokens,
        tail: text.split_off(from),
    })
}

fn template_error(error: &TemplateError) -> ApiError {
    match error {
        TemplateError::Refused(_) | TemplateError::TooMuchWork => {
            ApiError::invalid("messages", error)
        }
        // The template did not foresee this conversation. Its error names its own source, which
        // is public with the model.
        TemplateError::Failed(_) | TemplateError::Syntax(_) | TemplateError::Unusable(_) => {
            ApiError::invalid("messages", error).with_code("chat_template_failed")
        }
    }
}

/// Where the last message ends in the prompt, as transformers finds it: its trailing white space
/// counts where the template keeps it.
fn end_of_last(text: &str, last: &str) -> Result<usize, ApiError> {
    let at = text.rfind(last.trim()).filter(|_| !last.trim().is_empty());
    let at = at.ok_or_else(|| {
        let why = "the chat template does not show the last message as it is";
        ApiError::invalid("continue_final_message", why)
    })?;
    let whole = last.trim_start();
    let len = if text[at..].starts_with(whole) {
        whole.len()
    } else {
        last.trim().len()
    };
    Ok(at + len)
}

/// Variables of the template that the request sets.
fn variables(template: &ChatTemplate, prompt: &ChatPrompt) -> Result<Map<String, Value>, ApiError> {
    let mut variables = prompt.template_kwargs.clone();
    for name in variables.keys() {
        if !template.mentions(name) {
            let why = "the chat template of this model does not know it";
            return Err(ApiError::invalid(
                format!("chat_template_kwargs.{name}"),
                why,
            ));
        }
    }
    if let Some(effort) = prompt.reasoning_effort {
        let switch = ["enable_thinking", "thinking"]
            .into_iter()
            .find(|name| template.mentions(name));
        match switch {
            _ if template.mentions("reasoning_effort") => {
                variables.insert("reasoning_effort".to_owned(), effort.into());
            }
            Some(switch) => {
                variables.insert(switch.to_owned(), (effort != "none").into());
            }
            None => {
                let why = "the chat template of this model knows no effort";
                return Err(ApiError::invalid("reasoning_effort", why));
            }
        }
    }
    Ok(variables)
}

/// A message as templates know it: members that were not sent are absent, since templates ask
/// whether they are there.
fn message(message: &Message) -> Value {
    let mut value = json!({"role": message.role.as_str(), "content": message.content});
    if let Some(name) = &message.name {
        value["name"] = name.as_str().into();
    }
    if let Some(id) = &message.tool_call_id {
        value["tool_call_id"] = id.as_str().into();
    }
    if let Some(thoughts) = &message.reasoning_content {
        value["reasoning_content"] = thoughts.as_str().into();
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            let mut value = json!({"type": "function", "function": function});
            if let Some(id) = &call.id {
                value["id"] = id.as_str().into();
            }
            value
        });
        value["tool_calls"] = calls.collect();
    }
    value
}

/// Writes calls and their results as text, for a template that knows neither.
fn in_words(messages: &mut [Value]) {
    for message in messages {
        let content = message["content"].as_str().unwrap_or_default();
        if message["role"] == Role::Tool.as_str() {
            let text = format!("<tool_response>\n{content}\n</tool_response>");
            *message = json!({"role": Role::User.as_str(), "content": text});
            continue;
        }
        let Some(calls) = message.get("tool_calls").and_then(Value::as_array) else {
            continue;
        };
        let calls = calls
            .iter()
            .map(|call| format!("<tool_call>\n{}\n</tool_call>", call["function"]));
        let text: Vec<String> = std::iter::once(content.to_owned())
            .filter(|content| !content.is_empty())
            .chain(calls)
            .collect();
        *message = json!({"role": Role::Assistant.as_str(), "content": text.join("\n")});
    }
}

/// Tells the model about the tools in the system message, for a template that does not: in the
/// words of Hermes and Qwen, whose format is read then.
fn teach(messages: &mut Vec<Value>, tools: &[Value]) {
    let list: Vec<String> = tools.iter().map(Value::to_string).collect();
    let text = format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
        You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n\
        </tools>\n\nFor each function call, return a json object with function name and arguments \
        within <tool_call></tool_call> XML tags:\n<tool_call>\n\
        {{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
        list.join("\n")
    );
    match messages.first_mut() {
        Some(first) if first["role"] == Role::System.as_str() => {
            let content = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{content}\n\n{text}").into();
        }
        _ => messages.insert(0, json!({"role": Role::System.as_str(), "content": text})),
    }
}

fn guard<'t>(loaded: &'t Loaded, conversation: &Conversation) -> Guard<'t> {
    let mut texts = Vec::new();
    let lists = [
        &conversation.messages,
        &conversation.tools,
        &conversation.documents,
    ];
    for value in lists
        .into_iter()
        .flatten()
        .chain(conversation.variables.values())
    {
        gather(value, &mut texts);
    }
    Guard::new(&loaded.tokenizer, texts.into_iter())
}

/// Every text in `value`.
fn gather<'v>(value: &'v Value, texts: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| gather(item, texts)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            texts.push(key);
            gather(value, texts);
        }),
        _ => {}
    }
}

/// Marks the special tokens in every text in `value`.
fn mark(guard: &mut Guard<'_>, value: &mut Value) {
    match value {
        Value::String(text) => *text = guard.mark(text),
        Value::Array(items) => items.iter_mut().for_each(|item| mark(guard, item)),
        Value::Object(map) => {
            let marked = std::mem::take(map).into_iter().map(|(key, mut value)| {
                mark(guard, &mut value);
                (guard.mark(&key), value)
            });
            *map = marked.collect();
        }
        _ => {}
    }
}
