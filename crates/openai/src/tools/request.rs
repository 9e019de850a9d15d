//! What a client offers.

use serde_json::{Map, Value, json};

use crate::{
    error::{ApiError, excerpt},
    fields::Fields,
    structured,
};

/// Most tools of one request.
pub(crate) const MAX_TOOLS: usize = 128;
/// Longest name of a tool.
const MAX_NAME: usize = 64;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Schema of its arguments; absent for a function without any.
    pub parameters: Option<Value>,
    /// Calls must follow the schema.
    pub strict: bool,
    /// The tool as chat templates see it: an object with `type` and `function`.
    pub value: Value,
}

/// Whether the model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It does not.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It calls some tool.
    Required,
    /// It calls this one.
    Named(String),
}

impl ToolChoice {
    /// Whether the answer is a call, whatever the model likes.
    pub fn is_forced(&self) -> bool {
        matches!(self, Self::Required | Self::Named(_))
    }
}

/// The tools of the chat API.
pub(crate) fn tools(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let tools = fields.each("tools", MAX_TOOLS, |tool| {
        if tool.word("type", &["function"])?.is_none() && !tool.describes() {
            return Err(tool.error("type", "is required"));
        }
        let read = tool.nested("function", function)?;
        match read {
            Some(read) => Ok(read),
            None if tool.describes() => Ok(unnamed()),
            None => Err(tool.error("function", "is required")),
        }
    })?;
    distinct(fields, tools.unwrap_or_default())
}

/// Refuses two tools of one name: nobody could say which is called.
pub(crate) fn distinct(fields: &Fields, tools: Vec<Tool>) -> Result<Vec<Tool>, ApiError> {
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let why = format!("two tools have the name {:?}", tool.name);
            return Err(fields.error("tools", why));
        }
    }
    Ok(tools)
}

fn unnamed() -> Tool {
    Tool {
        name: String::new(),
        parameters: None,
        strict: false,
        value: Value::Null,
    }
}

/// The fields that name and describe a function.
pub(crate) fn function(fields: &mut Fields) -> Result<Tool, ApiError> {
    let pattern = "^[a-zA-Z0-9_.:-]{1,64}$";
    let name = fields.required("name", || json!({"type": "string", "pattern": pattern}))?;
    let description = fields.string("description")?;
    let parameters = fields.object("parameters")?;
    let strict = fields.boolean("strict")?;
    if fields.describes() {
        return Ok(unnamed());
    }
    let Value::String(name) = name else {
        return Err(fields.wrong("name", "a string", &name));
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        let why = format!("must be 1 to {MAX_NAME} of the characters a-z A-Z 0-9 _ - . :");
        return Err(fields.error("name", why));
    }
    let parameters = parameters.map(Value::Object);
    if let Some(schema) = &parameters {
        structured::check_schema(schema, &fields.name("parameters"))?;
    }
    // Members that were not sent are not made up: templates print the object as it is.
    let mut value = Map::new();
    value.insert("name".to_owned(), Value::String(name.clone()));
    if let Some(description) = description {
        value.insert("description".to_owned(), Value::String(description));
    }
    if let Some(parameters) = &parameters {
        value.insert("parameters".to_owned(), parameters.clone());
    }
    if let Some(strict) = strict {
        value.insert("strict".to_owned(), Value::Bool(strict));
    }
    Ok(Tool {
        name,
        parameters,
        strict: strict.unwrap_or(false),
        value: json!({"type": "function", "function": value}),
    })
}

/// `tool_choice`, in the form of the chat API or that of the responses API. Tools that it does not
/// allow are taken out of `tools`.
pub(crate) fn choice(fields: &mut Fields, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    let choice = match fields.take("tool_choice", choice_schema) {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(ToolChoice::None),
            "auto" => return Ok(ToolChoice::Auto),
            "required" => ToolChoice::Required,
            _ => {
                let why = "must be none, auto, required or an object that names functions";
                return Err(fields.error("tool_choice", why));
            }
        },
        Some(value) => {
            let mut object = Fields::new(value, fields.name("tool_choice"))?;
            let choice = match object.word("type", &["function", "allowed_tools"])? {
                None => return Err(object.error("type", "is required")),
                Some("allowed_tools") => allowed(&mut object, tools)?,
                Some(_) => ToolChoice::Named(named(&mut object)?),
            };
            object.finish()?;
            choice
        }
    };
    match &choice {
        _ if tools.is_empty() => {
            Err(fields.error("tool_choice", "there are no tools to choose from"))
        }
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => Err(fields
            .error(
                "tool_choice",
                "names a function that is not among the tools",
            )),
        _ => Ok(choice),
    }
}

/// The name of a function, beside the type or one level further in.
fn named(object: &mut Fields) -> Result<String, ApiError> {
    let nested = object.nested("function", |function| function.required_string("name"))?;
    match nested {
        Some(name) => Ok(name),
        None => object.required_string("name"),
    }
}

/// A choice among some of the tools: the others are as if they were not offered. Its fields lie
/// beside the type or one level further in.
fn allowed(object: &mut Fields, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    let nested = object.nested("allowed_tools", mode_and_names)?;
    let (choice, names) = match nested {
        Some(read) => read,
        None => mode_and_names(object)?,
    };
    if let Some(name) = names
        .iter()
        .find(|name| !tools.iter().any(|tool| tool.name == **name))
    {
        let why = format!("{:?} is not among the tools", excerpt(name));
        return Err(object.error("tools", why));
    }
    tools.retain(|tool| names.contains(&tool.name));
    Ok(choice)
}

fn mode_and_names(fields: &mut Fields) -> Result<(ToolChoice, Vec<String>), ApiError> {
    let choice = match fields.word("mode", &["auto", "required"])? {
        None => return Err(fields.error("mode", "is required")),
        Some("required") => ToolChoice::Required,
        Some(_) => ToolChoice::Auto,
    };
    let names = fields.each("tools", MAX_TOOLS, |tool| {
        if tool.word("type", &["function"])?.is_none() {
            return Err(tool.error("type", "is required"));
        }
        named(tool)
    })?;
    match names {
        Some(names) if !names.is_empty() => Ok((choice, names)),
        _ => Err(fields.error("tools", "must name at least one tool")),
    }
}

fn choice_schema() -> Value {
    let object = |mut own: Value| {
        let required: Vec<String> = match own.as_object() {
            Some(members) => members.keys().cloned().collect(),
            None => Vec::new(),
        };
        json!({"type": "object", "properties": own.take(), "required": required,
            "additionalProperties": false})
    };
    let name = json!({"type": "string"});
    let is_function = json!({"enum": ["function"]});
    let inner = object(json!({"type": is_function, "function": object(json!({"name": name}))}));
    let outer = object(json!({"type": is_function, "name": name}));
    let tools = json!({"type": "array", "items": {"anyOf": [inner, outer]}, "minItems": 1,
        "maxItems": MAX_TOOLS});
    let mode = json!({"enum": ["auto", "required"]});
    let is_allowed = json!({"enum": ["allowed_tools"]});
    let allowed = object(json!({"mode": mode, "tools": tools}));
    json!({"anyOf": [
        {"enum": ["none", "auto", "required"]},
        inner,
        outer,
        object(json!({"type": is_allowed, "allowed_tools": allowed})),
        object(json!({"type": is_allowed, "mode": mode, "tools": tools})),
    ]})
}
