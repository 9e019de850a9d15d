//! Measures what a shared beginning saves: the time to the first token with the prefix cache and
//! without.

use std::time::Duration;

use super::{
    BenchArgs,
    local::Rig,
    median,
    prompts::{Prompts, request},
    report::{PrefixReport, PrefixRow},
};

/// Measures every batch size on two engines, one after the other: one that keeps shared
/// beginnings and one that does not.
///
/// With the cache two figures are told: of requests whose beginning an earlier request left
/// (`warm`), and of the first requests with that beginning, all at once (`cold`).
pub(super) fn measure(shared: usize, args: &BenchArgs) -> anyhow::Result<PrefixReport> {
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    let length = shared + args.own_tokens() + 1;
    let run = |no_prefix_cache: bool| -> anyhow::Result<Vec<Wave>> {
        let mut model = args.model.clone();
        model.no_prefix_cache = no_prefix_cache;
        let rig = Rig::load(&model, largest, length)?;
        let mut prompts = Prompts::new(rig.engine.spec().vocab_size, args.seed);
        rig.round(vec![request(prompts.unique(length - 1), 1)])?;
        args.batch
            .iter()
            .map(|&batch| wave(&rig, &mut prompts, shared, batch, args))
            .collect()
    };
    let (with, without) = (run(false)?, run(true)?);
    let results = with
        .into_iter()
        .zip(without)
        .map(|(with, without)| PrefixRow {
            batch: with.batch,
            without_cache_seconds: without.warm,
            cold_seconds: with.cold,
            warm_seconds: with.warm,
            warm_ratio: with.warm / without.warm,
            cold_ratio: with.cold / without.cold,
        })
        .collect();
    Ok(PrefixReport {
        model: args.model.model.display().to_string(),
        shared_tokens: shared,
        own_tokens: args.own_tokens(),
        results,
    })
}

/// Mean time to the first token, median of the repetitions.
struct Wave {
    batch: usize,
    cold: f64,
    warm: f64,
}

fn wave(
    rig: &Rig,
    prompts: &mut Prompts,
    shared: usize,
    batch: usize,
    args: &BenchArgs,
) -> anyhow::Result<Wave> {
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        let prefix = prompts.unique(shared);
        for times in [&mut cold, &mut warm] {
            let requests = (0..batch)
                .map(|_| {
                    let own = prompts.unique(args.own_tokens());
                    request([prefix.as_slice(), &own].concat(), 1)
                })
                .collect();
            let first_tokens = rig.round(requests)?.first_tokens;
            let sum: Duration = first_tokens.iter().sum();
            times.push(sum.as_secs_f64() / first_tokens.len() as f64);
        }
    }
    Ok(Wave {
        batch,
        cold: median(cold).unwrap_or_default(),
        warm: median(warm).unwrap_or_default(),
    })
}
