//! Chat templates, rendered as transformers renders them.
//!
//! transformers renders with Jinja2 in a sandbox with `trim_blocks`, `lstrip_blocks`, loop
//! controls, a `tojson` of its own, `raise_exception` and `strftime_now`. Here minijinja does it,
//! with Python's methods, Python's way of printing values, and a bound on the work of a render.
//!
//! Limitations: `~` prints lists and maps as minijinja does, not as Python; `'%s' % x` is understood
//! where the format is written out and `x` is no mapping; `urlize`, `xmlattr`, `wordwrap`,
//! `striptags`, `filesizeformat`, `urlencode` and `random` are missing. What uses a filter that is
//! missing is refused when it is loaded.

mod generation;
mod methods;
mod probe;
mod python;
mod scan;
mod strings;

use std::ops::Range;

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Rest, Serde, ValueKind, ValueOrKwargs},
};

/// Bound on instructions and on memory (about 64 bytes each) of one render.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat";
/// The same template, but that it marks what the assistant says.
const MARKED: &str = "chat with marks";

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token` and the like, as templates know them.
    special_tokens: Vec<(String, String)>,
    /// The one for conversations with tools, if the model has two.
    tool_use: Option<Box<ChatTemplate>>,
}

/// One message, as templates see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
    /// The speaker, if named.
    pub name: Option<String>,
}

impl TemplateMessage {
    fn value(&self) -> Value {
        let name = self.name.as_deref().map(|name| ("name", name));
        let fields = [
            ("role", self.role.as_str()),
            ("content", self.content.as_str()),
        ];
        Value::from_pairs(fields.into_iter().chain(name))
    }
}

/// Everything that a prompt is made of, in the form that transformers gives to templates.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Messages, each an object with `role`, `content` and what else its role has.
    pub messages: Vec<serde_json::Value>,
    /// Tools, each an object with `type` and `function`; none when empty.
    pub tools: Vec<serde_json::Value>,
    /// Documents, each an object; none when empty.
    pub documents: Vec<serde_json::Value>,
    /// End where the model begins.
    pub add_generation_prompt: bool,
    /// Further variables. They do not hide the others.
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// A prompt, and what in it the assistant says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedPrompt {
    /// The prompt.
    pub text: String,
    /// Which of its bytes lie between `{% generation %}` and `{% endgeneration %}`, in order.
    pub spans: Vec<Range<usize>>,
}

/// A conversation could not be rendered, or a template not be read.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is no Jinja that we can run.
    #[error("the chat template cannot be read: {0}")]
    Syntax(String),
    /// The template fails on every conversation, or calls what there is not.
    #[error("the chat template cannot be used: {0}")]
    Unusable(String),
    /// The template itself refused the conversation.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The render took more work than is allowed.
    #[error("the conversation is too long for the chat template to be rendered")]
    TooMuchWork,
    /// The render failed, mostly because the template does not foresee the conversation.
    #[error("the chat template failed: {0}")]
    Failed(String),
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// The variable that says which day it is, as in `2026-11-29`, for a text that must not change
    /// from day to day. Without it that is today.
    pub const DATE: &'static str = "hyprstream_date";

    /// The template with the text `source`. `special_tokens` are pairs such as `bos_token` and
    /// `<s>`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn new(source: &str, special_tokens: Vec<(String, String)>) -> Result<Self, TemplateError> {
        let syntax = |error: Error| TemplateError::Syntax(error.to_string());
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(syntax)?;
        environment.set_syntax(whitespace);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, _, value| python::print(out, value));
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", |value: Value| python::text(&value));
        environment.add_filter("format", format);
        environment.add_filter("center", center);
        environment.add_filter("int", int);
        environment.add_filter("float", float);
        environment.add_filter("truncate", truncate);
        environment.add_filter("wordcount", |text: &str| strings::wordcount(text));
        environment.add_filter("forceescape", minijinja::filters::escape);
        environment.add_test("callable", is_callable);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, scan::with_formats(&generation::without_marks(source)))
            .map_err(syntax)?;
        if let Some(marked) = generation::with_marks(source) {
            environment
                .add_template_owned(MARKED, scan::with_formats(&marked))
                .map_err(syntax)?;
        }
        Ok(Self {
            environment,
            source: source.to_owned(),
            special_tokens,
            tool_use: None,
        })
    }

    /// The same with `template` for conversations with tools.
    pub(crate) fn with_tool_use(self, template: Self) -> Self {
        Self {
            tool_use: Some(Box::new(template)),
            ..self
        }
    }

    /// The template of a conversation with tools or without.
    pub fn for_tools(&self, with_tools: bool) -> &Self {
        match &self.tool_use {
            Some(template) if with_tools => template,
            _ => self,
        }
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template's text holds `word` as a word of its own, as it does when it looks at
    /// a variable of that name.
    pub fn mentions(&self, word: &str) -> bool {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        self.source.match_indices(word).any(|(at, _)| {
            let (before, after) = (&self.source[..at], &self.source[at + word.len()..]);
            !before.ends_with(part) && !after.starts_with(part)
        })
    }

    /// The prompt of `messages`; with `add_generation_prompt` it ends where the model begins.
    ///
    /// # Errors
    /// The template refuses or does not manage the conversation.
    pub fn render(
        &self,
        messages: &[TemplateMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.render_values(
            NAME,
            context! {
                messages => messages.iter().map(TemplateMessage::value).collect::<Vec<_>>(),
                tools => (),
                documents => (),
                add_generation_prompt => add_generation_prompt,
            },
        )
    }

    /// The prompt of `conversation`.
    ///
    /// # Errors
    /// The template refuses or does not manage the conversation.
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
    ) -> Result<String, TemplateError> {
        self.render_values(NAME, conversation_value(conversation))
    }

    /// The prompt of `conversation` with what the template marks as the assistant's words. `None` where the template has no such marks, or
    /// treats what is between them so that they get lost.
    ///
    /// # Errors
    /// As [`Self::render_conversation`].
    pub fn render_marked(
        &self,
        conversation: &Conversation,
    ) -> Result<Option<MarkedPrompt>, TemplateError> {
        if self.environment.get_template(MARKED).is_err() {
            return Ok(None);
        }
        let plain = self.render_conversation(conversation)?;
        // A noncharacter, more in a row than the prompt has together.
        let most = plain.matches(NONCHARACTER).count();
        let mark = NONCHARACTER.repeat(most + 1);
        let mut marked = conversation.clone();
        let variable = serde_json::Value::from(mark.as_str());
        marked
            .variables
            .insert(generation::MARK.to_owned(), variable);
        let marked = self.render_values(MARKED, conversation_value(&marked))?;
        let mut text = String::with_capacity(plain.len());
        let mut ends = Vec::new();
        for piece in marked.split(mark.as_str()) {
            text.push_str(piece);
            ends.push(text.len());
        }
        ends.pop();
        let lost = text != plain || !ends.len().is_multiple_of(2);
        let spans = ends.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        Ok((!lost).then_some(MarkedPrompt { text, spans }))
    }

    fn render_values(&self, name: &str, own: Value) -> Result<String, TemplateError> {
        let tokens = Value::from_pairs(
            self.special_tokens
                .iter()
                .map(|(name, token)| (name.as_str(), token.as_str())),
        );
        let template = self
            .environment
            .get_template(name)
            .map_err(|e| failure(&e))?;
        template
            .render(context! { ..own, ..tokens })
            .map_err(|error| failure(&error))
    }
}

/// U+FDD1: no text should hold it.
const NONCHARACTER: &str = "\u{fdd1}";

fn conversation_value(conversation: &Conversation) -> Value {
    // transformers gives none where there is none, and templates ask for that.
    let list = |values: &[serde_json::Value]| {
        if values.is_empty() {
            Value::from(())
        } else {
            Value::from(Serde(values))
        }
    };
    context! {
        messages => Value::from(Serde(&conversation.messages)),
        tools => list(&conversation.tools),
        documents => list(&conversation.documents),
        add_generation_prompt => conversation.add_generation_prompt,
        ..Value::from(Serde(&conversation.variables))
    }
}

fn failure(error: &Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooMuchWork;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        source = cause.source();
    }
    TemplateError::Failed(error.to_string())
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(
        Error::new(ErrorKind::InvalidOperation, "raise_exception was called")
            .with_source(Refusal(message.to_owned())),
    )
}

/// Python's formatting with signs of per cent.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls"
)]
fn format(text: &str, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    methods::percent(text, &args.into_values())
}

/// A whole number, or the default (0) for what is none.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls"
)]
fn int(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [default, base] = methods::slots(&args.into_values(), ["default", "base"])?;
    let base = base.map_or(Ok(10), u32::try_from)?;
    let number = match value.as_str() {
        Some(text) => strings::integer(text, base),
        None if value.is_integer() => return Ok(value),
        None if value.kind() == ValueKind::Bool => Some(value.is_true().into()),
        None => f64::try_from(value).ok().and_then(strings::whole),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| 0.into()), Value::from))
}

/// A number, or the default (0.0) for what is none.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls"
)]
fn float(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let [default] = methods::slots(&args.into_values(), ["default"])?;
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value).ok(),
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| 0.0.into()), Value::from))
}

fn center(text: &str, width: Option<usize>) -> String {
    let most = usize::try_from(strings::MAX_WIDTH).unwrap_or(usize::MAX);
    strings::pad(text, width.unwrap_or(80).min(most), ' ', "center")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls"
)]
fn truncate(text: &str, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill_words, end, leeway] = methods::slots(&args, names)?;
    let size = |slot: Option<Value>, default| slot.map_or(Ok(default), usize::try_from);
    strings::truncate(
        text,
        size(length, 255)?,
        kill_words.is_some_and(|kill| kill.is_true()),
        end.as_ref().and_then(Value::as_str).unwrap_or("..."),
        size(leeway, 5)?,
    )
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls"
)]
fn is_callable(value: Value) -> bool {
    // Functions and macros are objects that are neither lists nor maps.
    value.kind() == ValueKind::Plain && value.as_object().is_some()
}

/// The time in UTC, formatted as C's `strftime` does: now, or the beginning of the day that
/// [`ChatTemplate::DATE`] says.
fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, Error> {
    let invalid = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let date = state.lookup(ChatTemplate::DATE);
    let formatted = match date.as_ref().and_then(Value::as_str) {
        None => jiff::fmt::strtime::format(format, jiff::Timestamp::now()),
        Some(date) => {
            let date: jiff::civil::Date = date.parse().map_err(invalid)?;
            jiff::fmt::strtime::format(format, date.at(0, 0, 0, 0))
        }
    };
    formatted.map_err(invalid)
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the form that minijinja calls"
)]
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let default_item = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_deref() {
        None => (default_item.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            let why = "separators must be a pair";
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
    };
    python::Json {
        indent,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
        item,
        key,
    }
    .dumps(value)
}

#[cfg(test)]
mod tests;
