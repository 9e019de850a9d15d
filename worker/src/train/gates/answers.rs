//! What the model answers by itself.

use hyprstream_contract::training::{Gate, Metric};
use hyprstream_engine::Tokenizer;
use hyprstream_training::{Loss, Sample};

use super::{
    Bench, Halt,
    records::Records,
    schema::Schema,
    served::{Answer, With, how_far},
    verdict::Figure,
};

/// The least tokens of a prompt. A text of which all is learnt has one before it, that nothing
/// comes before.
const LEAST_PROMPT: usize = 2;

/// A prompt, and what the record answers.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    prompt: Vec<u32>,
    expected: String,
}

/// Why a record is no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusable {
    /// There is nothing before what is learnt of it.
    NoPrompt,
    /// Its answer was cut, so that none can be equal to it.
    Cut,
    /// Nothing can follow the prompt.
    NoRoom,
}

/// The part of greedy answers that are as `gate` wants them.
pub(super) fn figure(
    bench: &Bench<'_>,
    gate: &Gate,
    with: &With,
    whose: &str,
) -> Result<Figure, Halt> {
    let schema = Schema::new(gate.schema.as_ref()).map_err(Halt::Failed)?;
    let Records { samples, mut notes } =
        Records::of(bench, gate, bench.job.method, Loss::Completion)?;
    let served = bench.served;
    let reading = Reading {
        tokenizer: served.tokenizer(),
        eos: served.eos(),
        max_length: bench.job.data.max_length,
        max_len: served.max_len(),
        is_compared: gate.metric == Metric::ExactMatch,
    };
    let mut tasks = Vec::with_capacity(samples.len());
    let mut unusable = Vec::new();
    for sample in &samples {
        match reading.task(sample).map_err(Halt::Failed)? {
            Ok(task) => tasks.push(task),
            Err(why) => unusable.push(why),
        }
    }
    for (kind, why) in [
        (
            Unusable::NoPrompt,
            "have no prompt before what is learnt of them",
        ),
        (Unusable::Cut, "have their answer cut at data.maxLength"),
        (Unusable::NoRoom, "leave no room for an answer"),
    ] {
        let count = unusable.iter().filter(|found| **found == kind).count();
        if count > 0 {
            notes.push(format!("{count} records are left out, which {why}"));
        }
    }
    if tasks.is_empty() {
        return Err(Halt::Failed(format!(
            "none of {} records has a prompt and an answer ({}): give the gate a path with \
             conversations, or with prompt and completion",
            samples.len(),
            notes.join("; ")
        )));
    }
    let progress = how_far(bench.tell, gate.metric, whose, tasks.len());
    let prompts = tasks.iter().map(|task| task.prompt.as_slice());
    let answers = served.answers(prompts, gate.max_tokens as usize, with, progress)?;
    let good = tasks
        .iter()
        .zip(&answers)
        .filter(|(task, answer)| is_good(gate.metric, task, answer, &schema))
        .count();
    Ok(Figure {
        value: good as f64 / tasks.len() as f64,
        notes,
    })
}

fn is_good(metric: Metric, task: &Task, answer: &Answer, schema: &Schema) -> bool {
    match metric {
        Metric::ExactMatch => answer.text.trim() == task.expected.trim(),
        Metric::JsonSchema => schema.has(&answer.text),
        _ => answer.stopped,
    }
}

/// What is needed to find prompt and answer in a sample.
struct Reading<'a> {
    tokenizer: &'a Tokenizer,
    eos: &'a [u32],
    max_length: usize,
    /// Of prompt and answer, in the engine.
    max_len: usize,
    is_compared: bool,
}

impl Reading<'_> {
    /// The last run of tokens that count is the last turn of the assistant, and what is before it
    /// the prompt: the same tokens that were learnt.
    fn task(&self, sample: &Sample) -> Result<Result<Task, Unusable>, String> {
        let trained = &sample.trained;
        let Some(last) = trained.iter().rposition(|counts| *counts) else {
            return Ok(Err(Unusable::NoPrompt));
        };
        let before = trained[..last].iter().rposition(|counts| !*counts);
        let from = before.map_or(0, |before| before + 1);
        if from < LEAST_PROMPT {
            return Ok(Err(Unusable::NoPrompt));
        }
        if from >= self.max_len {
            return Ok(Err(Unusable::NoRoom));
        }
        let answer = &sample.tokens[from..=last];
        let ended = answer.last().is_some_and(|token| self.eos.contains(token));
        let is_cut = sample.tokens.len() >= self.max_length && !ended;
        if self.is_compared && is_cut {
            return Ok(Err(Unusable::Cut));
        }
        let answer = if ended {
            &answer[..answer.len() - 1]
        } else {
            answer
        };
        let expected = self.tokenizer.decode(answer, true);
        let expected = expected.map_err(|error| format!("an answer is no text: {error}"))?;
        Ok(Ok(Task {
            prompt: sample.tokens[..from].to_vec(),
            expected,
        }))
    }
}
