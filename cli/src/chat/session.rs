//! Questions and answers in turn.

use std::io::{IsTerminal as _, Read as _, Write as _};

use rustyline::{DefaultEditor, error::ReadlineError};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{
    Client,
    client::{Answer, Sampling},
};
use crate::{
    failure::{Context as _, Failure, Kind},
    runtime::until_interrupted,
};

/// How a conversation begins and what is shown of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Opening {
    /// What the model is told before the first question.
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// Asks this once and ends. With `-` the question is read from standard input.
    #[arg(long, short)]
    pub(crate) prompt: Option<String>,
    /// Shows tokens and speed behind every answer.
    #[arg(long)]
    pub(crate) stats: bool,
    /// How answers are chosen.
    #[command(flatten)]
    pub(crate) sampling: Sampling,
}

/// A conversation.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    runtime: &'a Runtime,
    client: Client,
    opening: Opening,
    json: bool,
    messages: Vec<Value>,
}

const HELP: &str = "\
/system TEXT   what the model is told before all else; begins anew
/reset         forgets what was said
/exit          ends, as does Ctrl-D; Ctrl-C ends an answer
/help          this";

impl<'a> Session<'a> {
    pub(crate) fn new(runtime: &'a Runtime, client: Client, opening: Opening, json: bool) -> Self {
        let mut session = Self {
            runtime,
            client,
            opening,
            json,
            messages: Vec::new(),
        };
        session.reset();
        session
    }

    /// One question if there is just one, else a conversation until the user ends it.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let question = match self.opening.prompt.as_deref() {
            Some("-") => Some(all_input()?),
            Some(prompt) => Some(prompt.to_owned()),
            None if !std::io::stdin().is_terminal() => Some(all_input()?),
            None => None,
        };
        match question {
            Some(question) => self.ask_once(question),
            None if self.json => Err(Failure::usage("--json needs a question: give --prompt")),
            None => self.converse(),
        }
    }

    fn ask_once(&mut self, question: String) -> Result<(), Failure> {
        if question.trim().is_empty() {
            return Err(Failure::usage("the question is empty"));
        }
        let answer = self.ask(question)?;
        let Some(answer) = answer else {
            return Err(Failure::new(Kind::Interrupted, "interrupted"));
        };
        if self.json {
            let told = json!({
                "model": self.client.model,
                "content": answer.text,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "seconds": answer.elapsed.as_secs_f64(),
                "tokens_per_second": answer.tokens_per_second(),
            });
            println!("{told}");
        }
        Ok(())
    }

    fn converse(&mut self) -> Result<(), Failure> {
        let mut editor = DefaultEditor::new().context("the terminal cannot be read")?;
        eprintln!(
            "{} answers. /help tells what else there is.",
            self.client.model
        );
        loop {
            let line = match editor.readline("> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("the terminal cannot be read"),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(line);
            if line.starts_with('/') {
                if self.command(line) {
                    return Ok(());
                }
                continue;
            }
            if let Err(failure) = self.ask(line.to_owned()) {
                eprintln!("{failure}");
            }
        }
    }

    /// Carries out `/...`; whether it was the last.
    fn command(&mut self, line: &str) -> bool {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match name {
            "/exit" | "/quit" => return true,
            "/reset" => self.reset(),
            "/system" if rest.trim().is_empty() => eprintln!("/system needs a text"),
            "/system" => {
                self.opening.system = Some(rest.trim().to_owned());
                self.reset();
            }
            "/help" => eprintln!("{HELP}"),
            _ => eprintln!("there is no {name}:\n{HELP}"),
        }
        false
    }

    fn reset(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.opening.system {
            self.messages
                .push(json!({"role": "system", "content": system}));
        }
    }

    /// The answer, which is shown as it comes; `None` if it was interrupted. A question that got no
    /// answer is forgotten.
    fn ask(&mut self, question: String) -> Result<Option<Answer>, Failure> {
        self.messages
            .push(json!({"role": "user", "content": question}));
        let mut answer = Answer::default();
        let json = self.json;
        let asked = self.client.ask(
            &self.messages,
            &self.opening.sampling,
            &mut answer,
            |piece| {
                if !json {
                    show(piece);
                }
            },
        );
        let ended = until_interrupted(self.runtime, asked)?;
        if !json && !answer.text.is_empty() {
            println!();
        }
        if answer.text.is_empty() {
            self.messages.pop();
        } else {
            self.messages
                .push(json!({"role": "assistant", "content": answer.text}));
        }
        let Some(ended) = ended else {
            return Ok(None);
        };
        ended?;
        if self.opening.stats {
            show_stats(&answer);
        }
        Ok(Some(answer))
    }
}

fn show_stats(answer: &Answer) {
    let speed = answer
        .tokens_per_second()
        .map_or(String::new(), |speed| format!(", {speed:.1} tokens/s"));
    eprintln!(
        "[{} + {} tokens, {:.1} s{speed}]",
        answer.prompt_tokens,
        answer.completion_tokens,
        answer.elapsed.as_secs_f64()
    );
}

/// Writes at once: an answer is read while it comes.
fn show(piece: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that is gone is told by the next signal or the end.
    let _ = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
}

fn all_input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("standard input cannot be read")?;
    Ok(text.trim_end().to_owned())
}
