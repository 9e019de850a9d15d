//! Whether a template can be used at all, found out before anybody asks.

use minijinja::context;
use serde_json::{Value, json};

use super::{ChatTemplate, Conversation, TemplateError, scan};

impl ChatTemplate {
    /// Refuses a template that fails on the simplest conversation, or that calls a filter, a test,
    /// a method or a function that there is not. What the template itself refuses is its right.
    ///
    /// # Errors
    /// [`TemplateError::Unusable`] with the reason.
    pub(crate) fn probe(&self) -> Result<(), TemplateError> {
        if let Some(tool_use) = &self.tool_use {
            tool_use.probe()?;
        }
        self.check_names()?;
        for (at, conversation) in conversations().iter().enumerate() {
            self.try_out(at == 0, conversation)?;
        }
        Ok(())
    }

    fn try_out(&self, simplest: bool, conversation: &Conversation) -> Result<(), TemplateError> {
        match self.render_conversation(conversation) {
            Ok(_) | Err(TemplateError::Refused(_)) => Ok(()),
            Err(TemplateError::Failed(why)) if !simplest && !why.starts_with("unknown ") => Ok(()),
            Err(TemplateError::Failed(why)) => Err(TemplateError::Unusable(why)),
            Err(error) => Err(TemplateError::Unusable(error.to_string())),
        }
    }

    /// As Jinja2, which looks for filters and tests when it reads a template.
    fn check_names(&self) -> Result<(), TemplateError> {
        let (filters, tests) = scan::names(&self.source);
        for (kind, names) in [("filter", filters), ("test", tests)] {
            let question = format!("name is {kind}");
            let unusable =
                |error: &dyn std::fmt::Display| TemplateError::Unusable(error.to_string());
            let known = self.environment.compile_expression(&question);
            let known = known.map_err(|error| unusable(&error))?;
            for name in names {
                let answer = known
                    .eval(context! { name })
                    .map_err(|error| unusable(&error))?;
                if !answer.is_true() {
                    return Err(unusable(&format!("there is no {kind} named {name}")));
                }
            }
        }
        Ok(())
    }
}

/// Conversations that templates are made for, the simplest first.
fn conversations() -> Vec<Conversation> {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let (system, user) = (message("system", "Be brief."), message("user", "Hello."));
    let assistant = message("assistant", "Hello!");
    let call = json!({
        "role": "assistant", "content": "",
        "tool_calls": [{
            "id": "call00000", "type": "function",
            "function": {"name": "look", "arguments": {"at": "it"}},
        }],
    });
    let result = json!({
        "role": "tool", "name": "look", "tool_call_id": "call00000", "content": "seen",
    });
    let tool = json!({
        "type": "function",
        "function": {
            "name": "look", "description": "Looks.",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    });
    let conversation = |messages: &[&Value], tools: Vec<Value>| Conversation {
        messages: messages.iter().map(|message| (*message).clone()).collect(),
        tools,
        add_generation_prompt: true,
        ..Conversation::default()
    };
    vec![
        conversation(&[&user], Vec::new()),
        conversation(&[&system, &user, &assistant, &user], Vec::new()),
        conversation(&[&user, &assistant, &user], Vec::new()),
        conversation(&[&system, &user], vec![tool.clone()]),
        conversation(&[&user, &call, &result, &assistant, &user], vec![tool]),
    ]
}
