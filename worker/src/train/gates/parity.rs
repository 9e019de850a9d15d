//! Whether what is served is what was trained.

use hyprstream_contract::training::{Metric, Verdict};
use hyprstream_training::{Batch, Control, Learner, Policy, Prepared, Sample, Segment};

use super::{
    Cancelled, Halt,
    served::{Loss, Served, how_far},
    verdict::finite,
};

/// Most units (samples, or pairs) that both compute.
const UNITS: usize = 32;
/// Below this loss the bound shrinks no more: what is left are sums of rounding errors.
const LEAST: f64 = 0.1;
/// Of an engine that computes in 32 bits, as the trainer does: only the order of sums differs.
const FLOAT32: f64 = 1e-3;
/// Of one whose weights, cache or rows have 16 bits, which the trainer's need not have. SmolLM2 with
/// weights of 32 bits, trained in those and served in bfloat16 with AVX2: 0.000314 of a loss of 0.6728
/// over 6 answers, a twentieth of this; a tiny model: 0.000003 of 0.0616. An alpha of 18 instead of 16
/// makes 0.0028 there. Perplexities move by 0.06 % (docs/performance.md). Samples of few tokens, and
/// kernels that round rows too, need the rest.
const HALF: f64 = 1e-2;

/// Samples, and the trainer's mean loss of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    samples: Vec<Sample>,
    loss: f64,
}

/// The trainer's loss of the first samples of what is held back, or else of what it learnt from.
pub(super) fn trained(
    prepared: &Prepared,
    mut learner: Box<dyn Learner>,
    values: &[f32],
    control: &Control,
    tell: &dyn Fn(&str),
) -> Result<Scored, Halt> {
    let subset = prepared.eval.as_ref().filter(|eval| !eval.is_empty());
    let subset = subset.unwrap_or(&prepared.train);
    let mut samples = Vec::new();
    for index in 0..subset.len().min(UNITS) as u32 {
        let unit = subset.read(index);
        samples.extend(
            unit.map_err(|error| Halt::Failed(format!("a sample cannot be read back: {error}")))?,
        );
    }
    let mut progress = how_far(tell, Metric::ServingParity, "the trainer", samples.len());
    let mut losses = Vec::with_capacity(samples.len());
    for sample in &samples {
        if control.is_ended() {
            return Err(Cancelled.into());
        }
        let batch = Batch {
            segments: vec![Segment {
                sample: 0,
                tokens: sample.tokens.clone(),
                trained: sample.trained.clone(),
                weight: 1.0,
            }],
        };
        let scores = learner.score(&batch, Policy::Adapter(values));
        let scores = scores.map_err(|error| Halt::Failed(format!("the trainer fails: {error}")))?;
        losses.extend(scores.into_iter().map(|score| Loss {
            sum: score.loss,
            tokens: u64::from(score.tokens),
        }));
        progress(losses.len());
    }
    Ok(Scored {
        samples,
        loss: Loss::mean(losses),
    })
}

/// The engine's loss of the same samples, less the trainer's.
pub(super) fn verdict(
    served: &Served<'_>,
    scored: &Scored,
    tell: &dyn Fn(&str),
) -> Result<Verdict, Halt> {
    let count = scored.samples.len();
    let progress = how_far(tell, Metric::ServingParity, "the engine", count);
    let losses = served.losses(&scored.samples, &served.adapted(), progress)?;
    Ok(compared(Loss::mean(losses), scored.loss, served.dtype()))
}

pub(super) fn compared(engine: f64, trainer: f64, dtype: &str) -> Verdict {
    let difference = engine - trainer;
    let bound = bound(dtype, trainer);
    // An infinite loss would make the bound infinite.
    let passed = difference.is_finite() && difference.abs() <= bound;
    let word = if passed { "within" } else { "and not within" };
    let mut message = format!(
        "ServingParity {difference:.6}: the engine's loss is {engine:.4} and the trainer's \
         {trainer:.4}, {word} {bound:.6} of each other ({dtype})"
    );
    if !passed {
        message += ": the adapter as it is served is not the one that was trained";
    }
    Verdict {
        metric: Metric::ServingParity,
        value: finite(difference),
        baseline: None,
        passed,
        message,
    }
}

/// Most that the losses may differ by: a part of the trainer's, but of a small one no less than of
/// [`LEAST`], since rounding errors of a token's loss shrink with it.
fn bound(dtype: &str, trainer: f64) -> f64 {
    let relative = match dtype {
        "float32" => FLOAT32,
        _ => HALF,
    };
    relative * trainer.abs().max(LEAST)
}
