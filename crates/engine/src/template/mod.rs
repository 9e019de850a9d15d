//! Chat templates, rendered as transformers renders them.
//!
//! transformers renders with Jinja2 in a sandbox with `trim_blocks`, `lstrip_blocks`, loop
//! controls, a `tojson` of its own, `raise_exception` and `strftime_now`. Here minijinja does it,
//! with Python's methods, Python's way of printing values, and a bound on the work of a render.
//!
//! Limitation: `~` and `|string` print lists and maps as minijinja does, not as Python.

mod generation;
mod methods;
mod python;

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};

/// Bound on instructions and on memory (about 64 bytes each) of one render.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat";

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// `bos_token` and the like, as templates know them.
    special_tokens: Vec<(String, String)>,
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

/// A conversation could not be rendered, or a template not be read.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is no Jinja that we can run.
    #[error("the chat template cannot be read: {0}")]
    Syntax(String),
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
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, generation::without_marks(source))
            .map_err(syntax)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            special_tokens,
        })
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
        self.render_values(context! {
            messages => messages.iter().map(TemplateMessage::value).collect::<Vec<_>>(),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
        })
    }

    /// The prompt of `conversation`.
    ///
    /// # Errors
    /// The template refuses or does not manage the conversation.
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
    ) -> Result<String, TemplateError> {
        // transformers gives none where there is none, and templates ask for that.
        let list = |values: &[serde_json::Value]| {
            if values.is_empty() {
                Value::from(())
            } else {
                Value::from(Serde(values))
            }
        };
        self.render_values(context! {
            messages => Value::from(Serde(&conversation.messages)),
            tools => list(&conversation.tools),
            documents => list(&conversation.documents),
            add_generation_prompt => conversation.add_generation_prompt,
            ..Value::from(Serde(&conversation.variables))
        })
    }

    fn render_values(&self, own: Value) -> Result<String, TemplateError> {
        let tokens = Value::from_pairs(
            self.special_tokens
                .iter()
                .map(|(name, token)| (name.as_str(), token.as_str())),
        );
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|e| failure(&e))?;
        template
            .render(context! { ..own, ..tokens })
            .map_err(|error| failure(&error))
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

/// The time in UTC, formatted as C's `strftime` does.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, jiff::Timestamp::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
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
