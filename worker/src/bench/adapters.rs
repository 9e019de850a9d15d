//! Measures what adapters cost: the same work with and without them, in turn on one engine.

use anyhow::Context;
use futures::executor::block_on;
use hyprstream_engine::Adapter;
use hyprstream_models::{DecoderConfig, adapter};

use super::{
    BenchArgs,
    clock::Timing,
    local::Rig,
    median,
    prompts::{Prompts, request},
    report::{AdapterReport, AdapterRow, Pair},
};

/// Measures every batch size with so many adapters, which its requests have in turn, and without.
/// Each repetition is a round without and a round with, so that what else the machine does
/// falls on both.
pub(super) fn measure(count: usize, args: &BenchArgs) -> anyhow::Result<AdapterReport> {
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    let rig = Rig::load(&args.model, largest, args.own_tokens() + args.gen_tokens)?;
    let (config, _) = DecoderConfig::read(&args.model.model)?;
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut adapters = Vec::with_capacity(count);
    let mut bytes = 0;
    for _ in 0..count {
        let number = || (random.f32() - 0.5) * 0.02;
        let adapter = adapter::Adapter::on_all_linear(&config, args.rank, number);
        let packed = rig.packer.pack(&adapter)?;
        bytes += packed.bytes();
        let attached = rig.engine.attach(*adapter.digest().as_bytes(), packed);
        adapters.push(block_on(attached).context("an adapter cannot be attached")?);
    }
    let mut prompts = Prompts::new(rig.engine.spec().vocab_size, args.seed);
    // The first run pays for memory that is touched for the first time.
    round(&rig, &mut prompts, 1, &adapters, args)?;
    let mut results = Vec::new();
    for &batch in &args.batch {
        let mut pairs = Vec::new();
        for _ in 0..args.repeat {
            let without = round(&rig, &mut prompts, batch, &[], args)?;
            let with = round(&rig, &mut prompts, batch, &adapters, args)?;
            pairs.push((without, with));
        }
        let tokens = (batch * args.own_tokens()) as f64;
        results.push(AdapterRow {
            batch,
            prefill: pair(&pairs, |t| Some(tokens / t.prefill.as_secs_f64())),
            decode: pair(&pairs, |t| {
                t.decode
                    .map(|(tokens, time)| tokens as f64 / time.as_secs_f64())
            }),
        });
    }
    Ok(AdapterReport {
        model: args.model.model.display().to_string(),
        adapters: count,
        rank: args.rank,
        bytes,
        prompt_tokens: args.own_tokens(),
        gen_tokens: args.gen_tokens,
        results,
    })
}

fn round(
    rig: &Rig,
    prompts: &mut Prompts,
    batch: usize,
    adapters: &[Adapter],
    args: &BenchArgs,
) -> anyhow::Result<Timing> {
    let requests = (0..batch).map(|index| {
        let mut request = request(prompts.unique(args.own_tokens()), args.gen_tokens);
        if !adapters.is_empty() {
            let adapter = adapters[index % adapters.len()].clone();
            request.adapters.push((adapter, 1.0));
        }
        request
    });
    let requests = requests.collect();
    rig.round(requests)
}

/// Medians of a figure without and with adapters, and of what the latter is of the former.
fn pair(pairs: &[(Timing, Timing)], figure: impl Fn(&Timing) -> Option<f64>) -> Option<Pair> {
    let figures = pairs
        .iter()
        .filter_map(|(without, with)| Some((figure(without)?, figure(with)?)));
    let figures: Vec<_> = figures.collect();
    let of = |value: fn(&(f64, f64)) -> f64| median(figures.iter().map(value).collect());
    Some(Pair {
        without_tokens_per_second: of(|(without, _)| *without)?,
        with_tokens_per_second: of(|(_, with)| *with)?,
        ratio: of(|(without, with)| with / without)?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_ratio_is_that_of_each_pair() {
        let timing = |millis| Timing {
            prefill: Duration::from_millis(millis),
            ..Timing::default()
        };
        // The machine was busy in the second repetition, for both.
        let pairs = [10, 100, 20].map(|millis| (timing(millis), timing(millis * 2)));
        let pair = pair(&pairs, |t| Some(1.0 / t.prefill.as_secs_f64())).unwrap();
        assert!((pair.ratio - 0.5).abs() < 1e-9);
        assert!((pair.without_tokens_per_second - 50.0).abs() < 1e-9);
        assert!((pair.with_tokens_per_second - 25.0).abs() < 1e-9);
    }
}
