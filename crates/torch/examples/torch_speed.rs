//! Prints load time and tokens per second: `speed DIR [DTYPE [THREADS [DEVICE]]]`.
//!
//! Where other programs use the CPU too, set `OMP_WAIT_POLICY=PASSIVE`, as the worker does.
#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Instant};

use hyprstream_engine::{Backend, LogitsWanted, SequenceStep, StepBatch};
use hyprstream_torch::{LoadOptions, load};

const PROMPT_TOKENS: usize = 512;
const DECODE_STEPS: usize = 32;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("a folder is named");
    let dtype = args
        .next()
        .unwrap_or_else(|| "auto".into())
        .parse()
        .unwrap();
    let threads = args.next().map(|t| t.parse().unwrap());
    let device = args
        .next()
        .unwrap_or_else(|| "auto".into())
        .parse()
        .unwrap();
    let begin = Instant::now();
    let options = LoadOptions {
        dtype,
        threads,
        device,
        ..LoadOptions::default()
    };
    let mut backend = load(Path::new(&dir), &options).unwrap();
    println!(
        "{}: loaded in {:.3} s",
        backend.spec(),
        begin.elapsed().as_secs_f64()
    );

    let begin = Instant::now();
    prefill(&mut backend, 0, 8);
    println!("first step: {:.3} s", begin.elapsed().as_secs_f64());
    for round in 0..3 {
        let begin = Instant::now();
        prefill(&mut backend, round, PROMPT_TOKENS);
        let rate = PROMPT_TOKENS as f64 / begin.elapsed().as_secs_f64();
        println!("prefill {PROMPT_TOKENS}: {rate:.0} tok/s");
    }
    for batch in [1, 8, 32] {
        for scattered in [false, true] {
            let rate = decode(&mut backend, batch, scattered);
            println!("decode {batch} at 128, scattered {scattered}: {rate:.0} tok/s");
        }
    }
}

fn prefill(backend: &mut impl Backend, seed: usize, count: usize) {
    let vocab = backend.spec().vocab_size;
    let step = SequenceStep {
        tokens: (0..count)
            .map(|i| ((i * 7919 + seed * 31) % vocab) as u32)
            .collect(),
        position: 0,
        blocks: (0..count.div_ceil(16) as u32).collect(),
        logits: LogitsWanted::Last,
        ..SequenceStep::default()
    };
    backend
        .step(&StepBatch {
            sequences: vec![step],
        })
        .unwrap();
}

fn decode(backend: &mut impl Backend, batch: usize, scattered: bool) -> f64 {
    let blocks = |sequence: usize| -> Vec<u32> {
        let each = (128 + DECODE_STEPS).div_ceil(16) as u32;
        (0..each)
            .map(|b| {
                if scattered {
                    b * 32 + sequence as u32
                } else {
                    sequence as u32 * each + b
                }
            })
            .collect()
    };
    let step = |index: usize| StepBatch {
        sequences: (0..batch)
            .map(|sequence| SequenceStep {
                tokens: vec![(sequence * 131 + index) as u32],
                position: 128 + index,
                blocks: blocks(sequence),
                logits: LogitsWanted::Last,
                ..SequenceStep::default()
            })
            .collect(),
    };
    backend.step(&step(0)).unwrap();
    let begin = Instant::now();
    for index in 1..DECODE_STEPS {
        backend.step(&step(index)).unwrap();
    }
    (batch * (DECODE_STEPS - 1)) as f64 / begin.elapsed().as_secs_f64()
}
