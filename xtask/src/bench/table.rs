//! Judges the figures and shows them.

use std::fmt::Write as _;

use serde::Serialize;

use super::rows::{Bar, Row};

/// Share of the memory limit that is as good as any bar.
const SHARE_OF_LIMIT: f64 = 0.9;

/// Everything measured of one row.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Samples {
    /// Ours, one a round.
    pub(super) ours: Vec<f64>,
    /// What our figures cannot exceed, where memory bounds them.
    pub(super) limits: Vec<f64>,
    /// Of each other: its name and its figures.
    pub(super) others: Vec<(String, Vec<f64>)>,
    /// What could not be measured, and why.
    pub(super) failures: Vec<String>,
}

/// A row with what came out.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) work: String,
    pub(super) sizes: String,
    pub(super) unit: &'static str,
    /// The best other's name and median.
    pub(super) other: Option<(String, f64)>,
    pub(super) ours: Option<f64>,
    pub(super) ratio: Option<f64>,
    pub(super) bar: String,
    pub(super) limit: Option<f64>,
    pub(super) share_of_limit: Option<f64>,
    /// `None` when a figure is missing.
    pub(super) met: Option<bool>,
    /// Why it is met although the ratio is below the bar.
    pub(super) met_by_limit: bool,
    pub(super) samples: Samples,
}

impl Samples {
    /// Adds a figure of another.
    pub(super) fn push_other(&mut self, name: &str, figure: f64) {
        match self.others.iter_mut().find(|(other, _)| other == name) {
            Some((_, figures)) => figures.push(figure),
            None => self.others.push((name.to_owned(), vec![figure])),
        }
    }
}

/// Compares medians.
pub(super) fn judge(row: &Row, samples: Samples) -> Verdict {
    let ours = median(&samples.ours);
    let limit = median(&samples.limits);
    let other = samples
        .others
        .iter()
        .filter_map(|(name, figures)| Some((name.clone(), median(figures)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let ratio = ours
        .zip(other.as_ref())
        .map(|(ours, (_, theirs))| ours / theirs);
    let share_of_limit = ours.zip(limit).map(|(ours, limit)| ours / limit);
    let by_ratio = ratio.map(|ratio| match row.bar {
        Bar::AtLeast(bar) => ratio >= bar,
        Bar::AtMost(bar) => ratio <= bar,
    });
    let met_by_limit = matches!(row.bar, Bar::AtLeast(_))
        && by_ratio == Some(false)
        && share_of_limit.is_some_and(|share| share >= SHARE_OF_LIMIT);
    Verdict {
        work: row.name.to_owned(),
        sizes: row.work.describe(),
        unit: row.work.unit(),
        other,
        ours,
        ratio,
        bar: match row.bar {
            Bar::AtLeast(bar) => format!(">= {bar}"),
            Bar::AtMost(bar) => format!("<= {bar}"),
        },
        limit,
        share_of_limit,
        met: by_ratio.map(|by_ratio| by_ratio || met_by_limit),
        met_by_limit,
        samples,
    }
}

/// The table for people.
pub(super) fn render(verdicts: &[Verdict]) -> String {
    let mut text = format!(
        "{:<27} {:<22} {:>9} {:>7} {:>8} {:>9} {:>6}  {}\n",
        "work", "peer figure", "ours", "ratio", "bar", "limit", "share", "met?"
    );
    for v in verdicts {
        let digits = if v.unit == "s" { 3 } else { 1 };
        let number = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let short = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.2}"));
        let other = v.other.as_ref().map_or("-".to_owned(), |(name, figure)| {
            format!("{name} {figure:.digits$}")
        });
        let met = match v.met {
            Some(true) if v.met_by_limit => "yes, by the limit",
            Some(true) => "yes",
            Some(false) => "no",
            None if v.ours.is_some() => "no peer",
            None => "not measured",
        };
        let _ = writeln!(
            text,
            "{:<27} {:<22} {:>9} {:>7} {:>8} {:>9} {:>6}  {met}",
            v.work,
            other,
            number(v.ours),
            short(v.ratio),
            v.bar,
            number(v.limit),
            short(v.share_of_limit),
        );
    }
    for v in verdicts {
        for failure in &v.samples.failures {
            let _ = writeln!(text, "{}: {failure}", v.work);
        }
    }
    text
}

/// The middle of the figures; of two middle ones their mean. `None` without any.
pub(super) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[sorted.len() / 2 - 1], upper)
    } else {
        upper
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows;

    fn row(name: &str) -> Row {
        let mut rows = rows::all(false);
        rows.retain(|row| row.name == name);
        rows.remove(0)
    }

    #[track_caller]
    fn check(name: &str, samples: Samples, met: Option<bool>, by_limit: bool) -> Verdict {
        let verdict = judge(&row(name), samples);
        assert_eq!((verdict.met, verdict.met_by_limit), (met, by_limit));
        verdict
    }

    fn samples(ours: &[f64], others: &[(&str, f64)], limits: &[f64]) -> Samples {
        let mut samples = Samples {
            ours: ours.to_vec(),
            limits: limits.to_vec(),
            ..Samples::default()
        };
        for (name, figure) in others {
            samples.push_other(name, *figure);
        }
        samples
    }

    #[test]
    fn the_better_peer_counts_and_so_does_the_median() {
        let peers = [("llama.cpp", 275.0), ("vLLM-CPU", 373.0)];
        let ours = [1.0, 490.0, 9000.0];
        let verdict = check(
            "decode B=8 bf16",
            samples(&ours, &peers, &[]),
            Some(true),
            false,
        );
        assert_eq!(verdict.other, Some(("vLLM-CPU".to_owned(), 373.0)));
        check(
            "decode B=8 bf16",
            samples(&[480.0], &peers, &[]),
            Some(false),
            false,
        );
    }

    #[test]
    fn nine_tenths_of_the_memory_limit_are_enough_for_decoding() {
        let peers = [("llama.cpp", 110.0)];
        let name = "decode B=1 bf16";
        check(name, samples(&[117.0], &peers, &[130.0]), Some(true), true);
        check(
            name,
            samples(&[116.0], &peers, &[130.0]),
            Some(false),
            false,
        );
        check(name, samples(&[121.0], &peers, &[200.0]), Some(true), false);
    }

    #[test]
    fn times_have_to_be_short() {
        let name = "shared prefix, first token";
        let other = [("without cache", 30.0)];
        check(name, samples(&[2.9], &other, &[]), Some(true), false);
        check(name, samples(&[3.1], &other, &[]), Some(false), false);
    }

    #[test]
    fn a_row_without_figures_is_not_met_and_says_why() {
        let mut missing = samples(&[], &[("llama.cpp", 100.0)], &[]);
        missing.failures.push("ours: no int8".to_owned());
        let verdict = check("decode B=1 8-bit", missing, None, false);
        let text = render(&[verdict]);
        assert!(
            text.contains("not measured") && text.contains("no int8"),
            "{text}"
        );
    }

    #[test]
    fn of_two_middle_figures_the_mean_counts() {
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }
}
