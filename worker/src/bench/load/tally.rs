//! What came of all requests.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::events::Usage;
use crate::bench::BenchArgs;

/// Longest text of an error that is told.
const MAX_ERROR_CHARS: usize = 200;
/// Most different errors that are told.
const MAX_ERRORS: usize = 5;

/// What came of one request.
#[derive(Debug)]
pub(super) struct Outcome {
    sent: Instant,
    /// When each piece of the answer came.
    pub(super) chunks: Vec<Instant>,
    pub(super) usage: Usage,
    /// `None` when it was cut off.
    pub(super) ended: Option<Instant>,
    pub(super) error: Option<String>,
}

/// How a server did.
#[derive(Debug, Serialize)]
pub(in crate::bench) struct LoadReport {
    model: String,
    /// How many models and adapters requests asked for.
    models: usize,
    /// Requests a second that were sent; `None` when clients wait for their answers.
    rate: Option<f64>,
    /// Most requests at once.
    concurrency: usize,
    requests: usize,
    failed: usize,
    /// Each error with its number, the most frequent ones.
    errors: Vec<(String, usize)>,
    seconds: f64,
    prompt_tokens_mean: f64,
    completion_tokens: u64,
    requests_per_second: f64,
    output_tokens_per_second: f64,
    /// From the sending of a request to the first piece of its answer.
    first_token_seconds: Option<Quantiles>,
    /// Between two pieces of an answer, which are a token each as a rule.
    inter_token_seconds: Option<Quantiles>,
    /// From the sending of a request to the end of its answer.
    request_seconds: Option<Quantiles>,
}

/// Of a number of times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Quantiles {
    mean: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Outcome {
    /// Of a request that is sent now.
    pub(super) fn begin() -> Self {
        Self {
            sent: Instant::now(),
            chunks: Vec::new(),
            usage: Usage::default(),
            ended: None,
            error: None,
        }
    }

    /// Of a request that the time limit ended or kept from being sent.
    pub(super) fn cut_off() -> Self {
        Self {
            error: Some("cut off by --time-limit".to_owned()),
            ..Self::begin()
        }
    }

    fn first_token(&self) -> Option<Duration> {
        Some(*self.chunks.first()? - self.sent)
    }

    fn whole(&self) -> Option<Duration> {
        Some(self.ended? - self.sent)
    }

    fn gaps(&self) -> impl Iterator<Item = Duration> + '_ {
        self.chunks.windows(2).map(|pair| pair[1] - pair[0])
    }
}

impl LoadReport {
    /// Of all outcomes, after so long.
    pub(super) fn new(
        models: &[String],
        args: &BenchArgs,
        concurrency: usize,
        outcomes: &[Outcome],
        whole: Duration,
    ) -> Self {
        let (failed, good): (Vec<_>, Vec<_>) = outcomes.iter().partition(|o| o.error.is_some());
        let seconds = whole.as_secs_f64();
        let completion_tokens = good.iter().map(|o| o.usage.completion_tokens).sum();
        let prompt_tokens: u64 = good.iter().map(|o| o.usage.prompt_tokens).sum();
        Self {
            model: models[0].clone(),
            models: models.len(),
            rate: args.load.rate,
            concurrency,
            requests: outcomes.len(),
            failed: failed.len(),
            errors: errors(&failed),
            seconds,
            prompt_tokens_mean: prompt_tokens as f64 / good.len().max(1) as f64,
            completion_tokens,
            requests_per_second: good.len() as f64 / seconds,
            output_tokens_per_second: completion_tokens as f64 / seconds,
            first_token_seconds: Quantiles::of(good.iter().filter_map(|o| o.first_token())),
            inter_token_seconds: Quantiles::of(good.iter().flat_map(|o| o.gaps())),
            request_seconds: Quantiles::of(good.iter().filter_map(|o| o.whole())),
        }
    }

    /// Prints for people.
    pub(in crate::bench) fn print(&self) {
        let arrivals = match self.rate {
            Some(rate) => format!("{rate} requests a second"),
            None => format!("{} clients", self.concurrency),
        };
        let others = match self.models {
            1 => String::new(),
            models => format!(" and {} others", models - 1),
        };
        println!(
            "{}{others}: {} requests by {arrivals}, {} failed, {:.1} s",
            self.model, self.requests, self.failed, self.seconds
        );
        println!(
            "prompts of {:.0} tokens; {:.2} requests/s, {:.1} generated tokens/s",
            self.prompt_tokens_mean, self.requests_per_second, self.output_tokens_per_second
        );
        println!("seconds          mean     p50     p99     max");
        for (name, quantiles) in [
            ("first token", self.first_token_seconds),
            ("inter-token", self.inter_token_seconds),
            ("request", self.request_seconds),
        ] {
            if let Some(q) = quantiles {
                println!(
                    "{name:13} {:7.4} {:7.4} {:7.4} {:7.4}",
                    q.mean, q.p50, q.p99, q.max
                );
            }
        }
        for (error, count) in &self.errors {
            println!("{count} failed: {error}");
        }
    }
}

impl Quantiles {
    /// By the nearest rank. `None` of nothing.
    fn of(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut times: Vec<f64> = times.map(|time| time.as_secs_f64()).collect();
        times.sort_by(f64::total_cmp);
        let rank = |share: f64| (share * times.len() as f64).ceil() as usize;
        let at = |share: f64| times[rank(share).clamp(1, times.len()) - 1];
        (!times.is_empty()).then(|| Self {
            mean: times.iter().sum::<f64>() / times.len() as f64,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

fn errors(failed: &[&Outcome]) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::<String, usize>::new();
    for error in failed.iter().filter_map(|outcome| outcome.error.as_ref()) {
        let short = error.chars().take(MAX_ERROR_CHARS).collect();
        *counts.entry(short).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.truncate(MAX_ERRORS);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_seen() {
        let times = (1..=200).map(Duration::from_millis);
        let q = Quantiles::of(times).unwrap();
        assert!((q.p50 - 0.1).abs() < 1e-9, "{q:?}");
        assert!((q.p99 - 0.198).abs() < 1e-9, "{q:?}");
        assert!((q.max - 0.2).abs() < 1e-9, "{q:?}");
        let one = Quantiles::of([Duration::from_secs(3)].into_iter()).unwrap();
        assert!((one.p50 - 3.0).abs() < 1e-9 && (one.p99 - 3.0).abs() < 1e-9);
        assert_eq!(Quantiles::of(std::iter::empty()), None);
    }

    #[test]
    fn errors_are_counted_by_what_they_say() {
        let failed = |why: &str| Outcome {
            error: Some(why.to_owned()),
            ..Outcome::begin()
        };
        let all = [failed("503"), failed("429"), failed("503")];
        let counted = errors(&all.iter().collect::<Vec<_>>());
        assert_eq!(counted, [("503".to_owned(), 2), ("429".to_owned(), 1)]);
    }
}
