//! Prompts that are too long: how that is said, and how a conversation is shortened.

use std::ops::Range;

use hyprstream_openai::{
    ApiError,
    chat::{ChatPrompt, Message, Role},
};

use super::prompt::{self, Rendered};
use crate::{backend::Loaded, server::app::App};

/// Code of the errors of prompts that are too long.
pub(in crate::server) const CODE: &str = "context_length_exceeded";

/// The 400 for a prompt that has no room. `found` says how long it is. Agent frameworks look for
/// "maximum context length", in the words of the OpenAI API, and shorten the conversation then.
pub(in crate::server) fn too_long(param: &str, limit: usize, found: &str) -> ApiError {
    let why = format!(
        "this model's maximum context length is {limit} tokens, however {found}; shorten the \
         prompt or ask for a shorter answer"
    );
    ApiError::invalid(param, why).with_code(CODE)
}

/// Refuses a text that cannot fit, before any work goes into it.
pub(super) fn check_length(loaded: &Loaded, text: &str, param: &str) -> Result<(), ApiError> {
    let (least, limit) = (
        loaded.tokenizer.least_tokens(text),
        loaded.engine.max_model_len(),
    );
    if least < limit {
        return Ok(());
    }
    let found = format!("the prompt has more than {least} tokens");
    Err(too_long(param, limit, &found))
}

/// The tokens of `prompt` without its oldest turns, as far as that is needed to have room for
/// `answer` tokens. What the system says at the beginning, the last message of the user and what
/// follows the last call stay.
pub(super) fn render_truncated(
    app: &App,
    loaded: &Loaded,
    prompt: &ChatPrompt,
    with_tools: bool,
    answer: usize,
) -> Result<Rendered, ApiError> {
    let turns = turns(&prompt.messages);
    let limit = loaded.engine.max_model_len();
    let without = |count: usize| {
        let mut shorter = prompt.clone();
        let dropped = &turns[..count];
        let mut index = 0;
        shorter.messages.retain(|_| {
            index += 1;
            !dropped.iter().any(|turn| turn.contains(&(index - 1)))
        });
        match prompt::render(app, loaded, &shorter, with_tools, limit) {
            Ok(rendered) if rendered.tokens.len() + answer <= limit => Ok(Some(rendered)),
            Ok(_) => Ok(None),
            Err(error) if error.code.as_deref() == Some(CODE) => Ok(None),
            Err(error) => Err(error),
        }
    };
    if let Some(whole) = without(0)? {
        return Ok(whole);
    }
    // The fewer turns, the shorter: the least number that is enough is found by halving.
    let (mut too_few, mut enough) = (0, turns.len());
    let Some(mut shortest) = without(enough)? else {
        // Not even that fits. The error says by how much.
        return prompt::render(app, loaded, prompt, with_tools, limit);
    };
    while enough - too_few > 1 {
        let middle = usize::midpoint(too_few, enough);
        if let Some(rendered) = without(middle)? {
            (enough, shortest) = (middle, rendered);
        } else {
            too_few = middle;
        }
    }
    Ok(shortest)
}

/// What can be left out of `messages`, oldest first: whole turns, each from a message of the user
/// on, and then, within the last turn, calls with their results. So no result is without its call,
/// and a conversation begins with its user, as templates expect.
fn turns(messages: &[Message]) -> Vec<Range<usize>> {
    let is = |role: Role| move |message: &Message| message.role == role;
    let head = messages
        .iter()
        .position(|message| message.role != Role::System)
        .unwrap_or(messages.len());
    let last_user = messages.iter().rposition(is(Role::User));
    let last_user = last_user.filter(|at| *at >= head);
    let starts = |role: Role, within: Range<usize>| {
        let mut starts = vec![within.start];
        let more = within.clone().skip(1);
        starts.extend(more.filter(|at| messages[*at].role == role));
        starts.push(within.end);
        starts
    };
    let mut turns = Vec::new();
    let mut add = |starts: &[usize]| {
        let ranges = starts.windows(2).map(|pair| pair[0]..pair[1]);
        turns.extend(ranges.filter(|range| !range.is_empty()));
    };
    add(&starts(Role::User, head..last_user.unwrap_or(head)));
    let mut steps = starts(
        Role::Assistant,
        last_user.map_or(head, |at| at + 1)..messages.len(),
    );
    // The latest stays.
    steps.pop();
    add(&steps);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(roles: &str, expected: &[(usize, usize)]) {
        let messages: Vec<Message> = roles
            .chars()
            .map(|c| match c {
                's' => Role::System,
                'u' => Role::User,
                'a' => Role::Assistant,
                _ => Role::Tool,
            })
            .map(|role| Message::new(role, String::new()))
            .collect();
        let found: Vec<_> = turns(&messages).iter().map(|t| (t.start, t.end)).collect();
        assert_eq!(found, expected, "{roles}");
    }

    #[test]
    fn whole_turns_go_first_then_calls_with_their_results() {
        check("", &[]);
        check("s", &[]);
        check("u", &[]);
        check("suau", &[(1, 3)]);
        check("suauau", &[(1, 3), (3, 5)]);
        check("aau", &[(0, 2)]);
        check("suatatatt", &[(2, 4), (4, 6)]);
        check("suatauatat", &[(1, 5), (6, 8)]);
        check("uat", &[]);
        check("atat", &[(0, 2)]);
        check("suasu", &[(1, 4)]);
    }
}
