//! Prints tokens per second and peak memory of training: `learn DIR [DTYPE [THREADS [DEVICE [RECOMPUTE
//! [RANK]]]]]`, with 4 segments of 512 tokens and all linear maps of all layers.
//!
//! Where other programs use the CPU too, set `OMP_WAIT_POLICY=PASSIVE`, as the worker does.
#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Instant};

use hyprstream_models::{
    DecoderConfig,
    adapter::{Linear, Site},
};
use hyprstream_torch::{LearnOptions, load_learner};
use hyprstream_training::{Batch, Dropout, Learner, Parameters, Part, Segment};

const SEGMENTS: u64 = 4;
const TOKENS: usize = 512;
const STEPS: usize = 5;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("a folder is named");
    let options = LearnOptions {
        dtype: args.next().unwrap_or("auto".into()).parse().unwrap(),
        threads: args.next().map(|threads| threads.parse().unwrap()),
        device: args.next().unwrap_or("auto".into()).parse().unwrap(),
        recompute: args.next().is_none_or(|text| text.parse().unwrap()),
        ..LearnOptions::default()
    };
    let rank = args.next().map_or(16, |rank| rank.parse().unwrap());
    let dir = Path::new(&dir);
    let (config, _) = DecoderConfig::read(dir).unwrap();
    let parameters = on_all_linear(&config, rank);
    let len = parameters.len;
    // Numbers of nowhere, small and not 0.
    let values: Vec<f32> = (0..len)
        .map(|i| ((i * 7919) % 2003) as f32 / 2003.0 * 0.04 - 0.02)
        .collect();
    let mut learner = load_learner(dir, parameters, &options).unwrap();
    let mut rates = Vec::new();
    for step in 0..STEPS {
        let batch = batch(&config, step);
        let mut gradient = vec![0.0; len];
        let begin = Instant::now();
        let scores = learner
            .accumulate(&batch, &values, Dropout::NONE, &mut gradient)
            .unwrap();
        let rate = batch.tokens() as f64 / begin.elapsed().as_secs_f64();
        let loss: f64 = scores.iter().map(|score| score.loss).sum();
        let tokens: u32 = scores.iter().map(|score| score.tokens).sum();
        println!("loss {:.5}, {rate:.1} tok/s", loss / f64::from(tokens));
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "median {:.1} tok/s, {len} numbers, peak {}",
        rates[STEPS / 2],
        peak()
    );
}

fn on_all_linear(config: &DecoderConfig, rank: usize) -> Parameters {
    let mut len = 0;
    let mut take = |count: usize| {
        len += count;
        len - count..len
    };
    let layers = 0..config.num_layers();
    let sites = layers.flat_map(|layer| Linear::ALL.map(|linear| Site::Layer(layer, linear)));
    let parts = sites
        .map(|site| {
            let (outputs, inputs) = site.size(config);
            Part {
                site,
                rank,
                scaling: 2.0,
                a: take(rank * inputs),
                b: take(outputs * rank),
                magnitude: None,
            }
        })
        .collect();
    Parameters { parts, len }
}

fn batch(config: &DecoderConfig, step: usize) -> Batch {
    let segments = (0..SEGMENTS).map(|sample| Segment {
        sample,
        tokens: (0..TOKENS)
            .map(|i| ((i * 7919 + step * 31 + sample as usize * 101) % config.vocab_size) as u32)
            .collect(),
        trained: (0..TOKENS).map(|i| i > 0).collect(),
        weight: 1.0 / (SEGMENTS as usize * (TOKENS - 1)) as f32,
    });
    Batch {
        segments: segments.collect(),
    }
}

/// What the kernel says of this process's largest memory.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("VmHWM: unknown").replace('\t', " ")
}
