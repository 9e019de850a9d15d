//! Times learning alone: `train_speed DIR [f32|bf16|exact] [threads] [kernels] [segments] [tokens]
//! [rank] [steps] [kept MiB]`. An adapter of random numbers is on all linear maps; tokens are random,
//! and all of them count. `exact` is weights of bf16 and products of f32. Prints tokens a second by the
//! clock and in processor time, and the peak of resident memory.
//!
//! `compare` in the place of the type tells what rounding changes instead: losses and gradients of
//! bf16 beside those of `exact`, and the losses of so many updates by each, with a batch of its own for
//! each update.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, time::Instant};

use hyprstream_cpu::{CpuLearner, Kernels, LearnOptions};
use hyprstream_models::{
    DType, DecoderConfig,
    adapter::{Linear, Site},
};
use hyprstream_training::{
    AdamW, Batch, Dropout, Learner, Moments, Parameters, Part, Segment, clip, norm,
};

/// What a job has by itself.
const LEARNING_RATE: f64 = 2e-4;

struct Asked {
    dir: PathBuf,
    options: LearnOptions,
    parameters: Parameters,
    vocabulary: u32,
    segments: usize,
    tokens: usize,
    steps: usize,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("the folder of a model"));
    let kind = args.next().unwrap_or_default();
    let (dtype, products) = match kind.as_str() {
        "f32" => (DType::Float32, DType::Auto),
        "exact" => (DType::BFloat16, DType::Float32),
        _ => (DType::BFloat16, DType::Auto),
    };
    let mut number = |otherwise: usize| args.next().map_or(otherwise, |n| n.parse().unwrap());
    let threads = number(2);
    let kernels = ["", "portable", "avx2", "avx512", "amx"][number(0)]
        .parse()
        .ok();
    let (segments, tokens, rank, steps) = (number(4), number(512), number(16), number(5));
    let kept_bytes = (number(1536) as u64) << 20;
    let (config, _) = DecoderConfig::read(&dir).unwrap();
    let asked = Asked {
        dir,
        options: LearnOptions {
            dtype,
            products,
            kernels,
            threads: Some(threads),
            kept_bytes,
            memory_bytes: None,
        },
        parameters: all_linear(&config, rank),
        vocabulary: config.vocab_size as u32,
        segments,
        tokens,
        steps,
    };
    match kind.as_str() {
        "compare" => compare(&asked),
        _ => time(&asked),
    }
}

impl Asked {
    fn learner(&self, options: &LearnOptions) -> CpuLearner {
        CpuLearner::load(&self.dir, self.parameters.clone(), options).unwrap()
    }

    fn values(&self, random: &mut fastrand::Rng) -> Vec<f32> {
        let mut next = || (random.f32() - 0.5) * 0.02;
        (0..self.parameters.len).map(|_| next()).collect()
    }

    fn batch(&self, random: &mut fastrand::Rng) -> Batch {
        let segments = (0..self.segments).map(|sample| Segment {
            sample: sample as u64,
            tokens: (0..self.tokens)
                .map(|_| random.u32(3..self.vocabulary))
                .collect(),
            trained: (0..self.tokens).map(|at| at > 0).collect(),
            weight: 1.0 / (self.segments * (self.tokens - 1)) as f32,
        });
        Batch {
            segments: segments.collect(),
        }
    }
}

/// The mean loss; the gradient is written anew.
fn learn(learner: &mut CpuLearner, batch: &Batch, values: &[f32], gradient: &mut [f32]) -> f64 {
    gradient.fill(0.0);
    let scores = learner
        .accumulate(batch, values, Dropout::NONE, gradient)
        .unwrap();
    let loss: f64 = scores.iter().map(|score| score.loss).sum();
    let counted: u32 = scores.iter().map(|score| score.tokens).sum();
    loss / f64::from(counted)
}

fn time(asked: &Asked) {
    let threads = asked.options.threads.unwrap_or(1);
    let mut random = fastrand::Rng::with_seed(1);
    let values = asked.values(&mut random);
    let mut learner = asked.learner(&asked.options);
    let mut gradient = vec![0.0; values.len()];
    let mut seconds = Vec::new();
    for step in 0..asked.steps {
        let batch = asked.batch(&mut random);
        let (begin, processor) = (Instant::now(), processor_seconds());
        let loss = learn(&mut learner, &batch, &values, &mut gradient);
        let clock = begin.elapsed().as_secs_f64();
        let processor = processor_seconds() - processor;
        println!(
            "step {step}: loss {loss:.5}, {clock:.3} s, processor {processor:.3} s, {:.1} tok/s, \
             {:.1} tok/s if all threads had a processor",
            batch.tokens() as f64 / clock,
            batch.tokens() as f64 / (processor / threads as f64)
        );
        seconds.push(processor / threads as f64);
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "median {:.1} tok/s in processor time, peak {} MB",
        (asked.segments * asked.tokens) as f64 / seconds[seconds.len() / 2],
        peak_mb()
    );
}

fn compare(asked: &Asked) {
    let mut random = fastrand::Rng::with_seed(1);
    let (batch, first) = (asked.batch(&mut random), asked.values(&mut random));
    let exact = LearnOptions {
        products: DType::Float32,
        ..asked.options.clone()
    };
    let avx2 = LearnOptions {
        kernels: Some(Kernels::Avx2),
        ..asked.options.clone()
    };
    let avx2_exact = LearnOptions {
        kernels: Some(Kernels::Avx2),
        ..exact.clone()
    };
    let all = [&asked.options, &exact, &avx2, &avx2_exact].map(|options| {
        let mut gradient = vec![0.0; first.len()];
        let loss = learn(&mut asked.learner(options), &batch, &first, &mut gradient);
        (loss, gradient)
    });
    for (what, ours, other) in [
        ("rounded beside exact", 0, 1),
        ("rounded beside rounded by avx2", 0, 2),
        ("exact beside exact by avx2", 1, 3),
    ] {
        let ((a, ours), (b, other)) = (&all[ours], &all[other]);
        let ranges = asked.parameters.parts.iter().flat_map(|p| [&p.a, &p.b]);
        let mut parts: Vec<(f64, f64)> = ranges
            .map(|range| apart(&ours[range.clone()], &other[range.clone()]))
            .collect();
        parts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let cosine = parts.iter().fold(1.0, |least: f64, part| least.min(part.1));
        println!(
            "{what}: losses {a:.6} and {b:.6}; gradients of a factor differ by {:.2e} (median) and \
             {:.2e} (most) of their length, least cosine {cosine:.7}",
            parts[parts.len() / 2].0,
            parts[parts.len() - 1].0
        );
    }
    let losses = [&asked.options, &exact].map(|options| {
        let (mut learner, mut values) = (asked.learner(options), first.clone());
        let mut random = random.clone();
        let (mut moments, mut gradient) = (Moments::zeros(values.len()), first.clone());
        let each = (1..=asked.steps as u64).map(|update| {
            let batch = asked.batch(&mut random);
            let loss = learn(&mut learner, &batch, &values, &mut gradient);
            let length = norm(&gradient);
            clip(&mut gradient, length, 1.0);
            AdamW::default().update(&mut values, &mut moments, &gradient, LEARNING_RATE, update);
            loss
        });
        each.collect::<Vec<f64>>()
    });
    for (step, (a, b)) in losses[0].iter().zip(&losses[1]).enumerate() {
        println!(
            "update {step}: rounded {a:.5}, exact {b:.5}, {:+.2} %",
            (a / b - 1.0) * 100.0
        );
    }
}

/// How far apart two gradients are, as part of the second's length, and the cosine between them.
fn apart(ours: &[f32], other: &[f32]) -> (f64, f64) {
    let (mut apart, mut dot, mut squares) = (0.0, 0.0, [0.0; 2]);
    for (a, b) in ours.iter().zip(other) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        apart += (a - b) * (a - b);
        dot += a * b;
        squares = [squares[0] + a * a, squares[1] + b * b];
    }
    (
        (apart / squares[1]).sqrt(),
        dot / (squares[0] * squares[1]).sqrt(),
    )
}

fn all_linear(config: &DecoderConfig, rank: usize) -> Parameters {
    let (mut parts, mut len) = (Vec::new(), 0);
    for index in 0..config.num_layers() {
        for linear in Linear::ALL {
            let site = Site::Layer(index, linear);
            let (outputs, inputs) = site.size(config);
            let a = len..len + rank * inputs;
            let b = a.end..a.end + outputs * rank;
            len = b.end;
            parts.push(Part {
                site,
                rank,
                scaling: 2.0,
                a,
                b,
                magnitude: None,
            });
        }
    }
    Parameters { parts, len }
}

fn peak_mb() -> i64 {
    // SAFETY: zeros are a value of it, and there is room for it.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage.ru_maxrss / 1024
    }
}

/// Processor time of all threads of this process.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: there is room for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
