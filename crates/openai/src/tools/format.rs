//! How families of models write calls.

/// How a model writes the calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, as Hermes and Qwen do.
    Hermes,
    /// `{"name": .., "parameters": {..}}` as the whole answer, maybe after `<|python_tag|>`, as
    /// Llama 3 does.
    Llama3,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}]` or `[TOOL_CALLS]name{..}`, as Mistral does.
    Mistral,
}

impl ToolFormat {
    /// The format that a chat template teaches, if it knows tools at all.
    pub fn of_template(source: &str) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        if source.contains("[TOOL_CALLS]") || source.contains("[AVAILABLE_TOOLS]") {
            Some(Self::Mistral)
        } else if source.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if source.contains("<|python_tag|>") || source.contains("\"parameters\":") {
            Some(Self::Llama3)
        } else {
            None
        }
    }

    /// Text that begins a call.
    pub(crate) fn trigger(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// What may part calls.
    pub(crate) fn separators(self) -> &'static [char] {
        match self {
            Self::Hermes => &[' ', '\n', '\r', '\t'],
            Self::Llama3 => &[' ', '\n', '\r', '\t', ';'],
            Self::Mistral => &[' ', '\n', '\r', '\t', ',', '[', ']'],
        }
    }

    /// Whether the trigger is a special token of the family, so that it is seen only when special
    /// tokens are shown.
    pub fn needs_special_tokens(self) -> bool {
        matches!(self, Self::Llama3 | Self::Mistral)
    }

    /// Name of the member that holds the arguments.
    pub(crate) fn arguments(self) -> &'static str {
        match self {
            Self::Hermes | Self::Mistral => "arguments",
            Self::Llama3 => "parameters",
        }
    }

    /// Length of a call's id where the family's chat templates insist on one: alphanumeric ids of
    /// nine characters for Mistral.
    pub fn id_len(self) -> Option<usize> {
        matches!(self, Self::Mistral).then_some(9)
    }
}
