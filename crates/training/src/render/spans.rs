//! Which bytes of a rendered conversation the assistant says.

use std::ops::Range;

use hyprstream_engine::{ChatTemplate, Conversation, MarkedPrompt, TemplateError};
use serde_json::Value;

/// Says where a message stands in a rendering: a noncharacter, which no text should hold, and not
/// that of [`hyprstream_engine::Guard`].
const SIGN: char = '\u{fdd1}';

/// A rendered conversation, and which of its bytes are learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spanned {
    pub(super) text: String,
    pub(super) spans: Vec<Range<usize>>,
}

/// Why there are no spans.
#[derive(Debug)]
pub(super) enum NoSpans {
    /// The template does not manage the conversation.
    Template(TemplateError),
    /// The template shows a turn otherwise than it is prompted for.
    Unprompted,
}

/// What finds spans in one conversation.
pub(super) struct Spans<'a> {
    pub(super) template: &'a ChatTemplate,
    pub(super) conversation: &'a Conversation,
    /// Whether a text is nothing but white space and tokens that end something.
    pub(super) only_ends: &'a dyn Fn(&str) -> bool,
}

impl Spans<'_> {
    /// Spans over the assistant's turns at these indices, in order: of one text, or of one for each
    /// turn where the template shows earlier turns otherwise than the last.
    ///
    /// Where the template marks what the assistant says, that is it, as far as marks and turns are
    /// as many. Else a turn is what the template writes after the prompt that serving would give.
    pub(super) fn find(&self, turns: &[usize]) -> Result<Vec<Spanned>, NoSpans> {
        if let Some(marked) = self.marked(turns)? {
            return Ok(vec![marked]);
        }
        let text = self.render(self.conversation.messages.len(), false)?;
        let mut spans = Vec::with_capacity(turns.len());
        for &turn in turns {
            let before = self.render(turn, true)?;
            let after = self.render(turn + 1, false)?;
            let end = self.end(&text, &after);
            match end.filter(|end| text.starts_with(&before) && *end > before.len()) {
                Some(end) => spans.push(before.len()..end),
                None => return turns.iter().map(|turn| self.alone(*turn)).collect(),
            }
        }
        Ok(vec![Spanned { text, spans }])
    }

    /// Where `after`, a text that ends with a turn, ends in the whole one. Templates may end a text
    /// with what does not stand there within a longer one (Phi-3).
    fn end(&self, text: &str, after: &str) -> Option<usize> {
        if text.starts_with(after) {
            return Some(after.len());
        }
        let ends = after.char_indices().rev().map(|(at, _)| at);
        let mut ends =
            ends.take_while(|at| (self.only_ends)(&after[*at..]) || is_torn(&after[*at..]));
        ends.find(|at| text.starts_with(&after[..*at]) && (self.only_ends)(&after[*at..]))
    }

    /// By the template's own marks; `None` where it has none, or they are not one for each turn.
    fn marked(&self, turns: &[usize]) -> Result<Option<Spanned>, NoSpans> {
        let marked = self.template.render_marked(self.conversation);
        let Some(MarkedPrompt { text, mut spans }) = marked.map_err(NoSpans::Template)? else {
            return Ok(None);
        };
        let all = self.conversation.messages.iter().enumerate();
        let all = all.filter(|(_, message)| message["role"] == "assistant");
        let all: Vec<usize> = all.map(|(index, _)| index).collect();
        if spans.len() != all.len() {
            return Ok(None);
        }
        let mut of = all.iter();
        spans.retain(|_| of.next().is_some_and(|turn| turns.contains(turn)));
        Ok(Some(Spanned { text, spans }))
    }

    /// The text that ends with this turn, behind the prompt that serving would give.
    fn alone(&self, turn: usize) -> Result<Spanned, NoSpans> {
        let before = self.render(turn, true)?;
        let mut text = self.render(turn + 1, false)?;
        if !text.starts_with(&before) {
            let answer = self.answer(turn, &before, &text);
            text = format!("{before}{}", answer.unwrap_or_default());
        }
        if text.len() <= before.len() {
            return Err(NoSpans::Unprompted);
        }
        let span = before.len()..text.len();
        Ok(Spanned {
            text,
            spans: vec![span],
        })
    }

    /// What the template writes of this turn, where it shows something above the message that is
    /// answered in the prompt alone, as Mistral's do with what the system says: from that message on,
    /// `text` must begin as the prompt `before` ends. `None` if it does not, or if that cannot be told.
    pub(super) fn answer<'t>(&self, turn: usize, before: &str, text: &'t str) -> Option<&'t str> {
        let mut signed = self.conversation.messages[..=turn].to_vec();
        let Value::String(answered) = signed[turn.checked_sub(1)?].get_mut("content")? else {
            return None;
        };
        answered.insert(0, SIGN);
        let prompted = self.render_some(&signed[..turn], true).ok()?;
        let shown = self.render_some(&signed, false).ok()?;
        let (prompted, shown) = (place(&prompted, before)?, place(&shown, text)?);
        text[shown..].strip_prefix(&before[prompted..])
    }

    /// The first `count` messages.
    fn render(&self, count: usize, add_generation_prompt: bool) -> Result<String, NoSpans> {
        self.render_some(&self.conversation.messages[..count], add_generation_prompt)
    }

    fn render_some(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, NoSpans> {
        let some = Conversation {
            messages: messages.to_vec(),
            add_generation_prompt,
            ..self.conversation.clone()
        };
        let rendered = self.template.render_conversation(&some);
        rendered.map_err(NoSpans::Template)
    }
}

/// Where the sign stands, if it changes nothing else of the whole text.
fn place(signed: &str, whole: &str) -> Option<usize> {
    let (above, below) = signed.split_once(SIGN)?;
    (whole.strip_prefix(above) == Some(below)).then_some(above.len())
}

/// Whether it may be the rest of a token that is written in signs.
fn is_torn(text: &str) -> bool {
    const LONGEST: usize = 64;
    text.len() <= LONGEST
}
