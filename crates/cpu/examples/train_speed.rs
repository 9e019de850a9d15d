//! Times learning alone: `train_speed DIR [f32|bf16] [threads] [kernels] [segments] [tokens] [rank]
//! [steps] [kept MiB]`. An adapter of random numbers is on all linear maps; tokens are random, and all
//! of them count. Prints tokens a second by the clock and in processor time, and the peak of resident
//! memory.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, time::Instant};

use hyprstream_cpu::{CpuLearner, LearnOptions};
use hyprstream_models::{
    DType, DecoderConfig,
    adapter::{Linear, Site},
};
use hyprstream_training::{Batch, Dropout, Learner, Parameters, Part, Segment};

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("the folder of a model"));
    let dtype = match args.next().as_deref() {
        Some("f32") => DType::Float32,
        _ => DType::BFloat16,
    };
    let mut number = |otherwise: usize| args.next().map_or(otherwise, |n| n.parse().unwrap());
    let threads = number(2);
    let kernels = ["", "portable", "avx2", "avx512"][number(0)].parse().ok();
    let (segments, tokens, rank, steps) = (number(4), number(512), number(16), number(5));
    let kept_bytes = (number(1536) as u64) << 20;
    let (config, _) = DecoderConfig::read(&dir).unwrap();
    let parameters = all_linear(&config, rank);
    let mut random = fastrand::Rng::with_seed(1);
    let values: Vec<f32> = (0..parameters.len)
        .map(|_| (random.f32() - 0.5) * 0.02)
        .collect();
    let options = LearnOptions {
        dtype,
        kernels,
        threads: Some(threads),
        kept_bytes,
    };
    let mut learner = CpuLearner::load(&dir, parameters, &options).unwrap();
    let mut gradient = vec![0.0; values.len()];
    let mut seconds = Vec::new();
    for step in 0..steps {
        let segments = (0..segments).map(|sample| Segment {
            sample: sample as u64,
            tokens: (0..tokens)
                .map(|_| random.u32(3..config.vocab_size as u32))
                .collect(),
            trained: (0..tokens).map(|at| at > 0).collect(),
            weight: 1.0 / (segments * (tokens - 1)) as f32,
        });
        let batch = Batch {
            segments: segments.collect(),
        };
        gradient.fill(0.0);
        let (begin, processor) = (Instant::now(), processor_seconds());
        let scores = learner
            .accumulate(&batch, &values, Dropout::NONE, &mut gradient)
            .unwrap();
        let clock = begin.elapsed().as_secs_f64();
        let processor = processor_seconds() - processor;
        let loss: f64 = scores.iter().map(|score| score.loss).sum();
        let counted: u32 = scores.iter().map(|score| score.tokens).sum();
        println!(
            "step {step}: loss {:.5}, {:.3} s, processor {:.3} s, {:.1} tok/s, {:.1} tok/s if all \
             threads had a processor",
            loss / f64::from(counted),
            clock,
            processor,
            batch.tokens() as f64 / clock,
            batch.tokens() as f64 / (processor / threads as f64)
        );
        seconds.push(processor / threads as f64);
    }
    seconds.sort_by(f64::total_cmp);
    println!(
        "median {:.1} tok/s in processor time, peak {} MB",
        (segments * tokens) as f64 / seconds[seconds.len() / 2],
        peak_mb()
    );
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
