//! From figures to verdicts.

use hyprstream_contract::training::{Gate, Metric, Verdict};

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// Maybe no finite number, which passes nothing.
    pub(super) value: f64,
    /// What people should know of it, such as how many records were left out.
    pub(super) notes: Vec<String>,
}

/// What a figure is compared with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compared {
    /// That of the baseline.
    pub(super) figure: f64,
    /// `the base's`.
    pub(super) whose: &'static str,
    /// Why it is another than was asked for.
    pub(super) note: Option<String>,
}

/// Whether a figure is within the bounds of its gate.
pub(super) fn verdict(gate: &Gate, figure: &Figure, compared: Option<&Compared>) -> Verdict {
    let value = figure.value;
    let bounded = compared.map_or(value, |compared| value - compared.figure);
    // What is no number is within no bounds, written so that a comparison with it is false.
    let within = |max: Option<f64>, min: Option<f64>| {
        bounded.is_finite()
            && max.is_none_or(|max| bounded <= max)
            && min.is_none_or(|min| bounded >= min)
    };
    let passed = within(gate.max, gate.min);
    let mut message = format!("{:?} {value:.4}", gate.metric);
    if let Some(compared) = compared {
        let (whose, other) = (compared.whose, compared.figure);
        let change = match bounded.partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Less) => format!(", {:.4} below {whose} {other:.4}", -bounded),
            Some(std::cmp::Ordering::Greater) => {
                format!(", {bounded:.4} above {whose} {other:.4}")
            }
            Some(std::cmp::Ordering::Equal) => format!(", which is {whose} too"),
            None => format!(", which {whose} {other:.4} cannot be compared with"),
        };
        message.push_str(&change);
    }
    let named = |name: &str, bound: Option<f64>| bound.map(|bound| format!("{name} {bound}"));
    let failed = [
        named("max", gate.max.filter(|max| !within(Some(*max), None))),
        named("min", gate.min.filter(|min| !within(None, Some(*min)))),
    ];
    let all = [named("max", gate.max), named("min", gate.min)];
    let (word, bounds) = if passed {
        ("passes", all)
    } else {
        ("fails", failed)
    };
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    let bound = match (bounds.is_empty(), passed) {
        (false, _) => format!(": {word} {}", bounds.join(" and ")),
        (true, true) => ": no bound is set".to_owned(),
        (true, false) => ": fails, since it is no finite number".to_owned(),
    };
    message.push_str(&bound);
    let note = compared.and_then(|compared| compared.note.as_ref());
    for note in figure.notes.iter().chain(note) {
        message.push_str("; ");
        message.push_str(note);
    }
    Verdict {
        metric: gate.metric,
        value: finite(value),
        baseline: compared.and_then(|compared| finite(compared.figure)),
        passed,
        message,
    }
}

/// That of what cannot be measured.
pub(super) fn not_measured(metric: Metric, why: &str) -> Verdict {
    Verdict {
        metric,
        value: None,
        baseline: None,
        passed: false,
        message: format!("{metric:?} cannot be measured: {}", one_line(why)),
    }
}

/// JSON has no other numbers.
pub(super) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
