//! Times the backend alone:
//! `speed DIR [none|int8|int4] [threads] [kernels] [part of a name] [adapters] [rank]`. With adapters
//! on all linear layers, the sequences of a step have them by turns, and each step is followed by
//! the same without them: the last columns are the medians of the ratio of both, by the clock and in
//! processor time, of which what else runs on the machine takes less.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, time::Instant};

use hyprstream_cpu::{CpuBackend, LoadOptions, Quantization, SAMPLE_TEXT, load};
use hyprstream_engine::{AdapterId, Backend, LogitsWanted, SequenceStep, StepBatch, Tokenizer};
use hyprstream_models::{DecoderConfig, adapter::Adapter};

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(
        args.next()
            .expect("usage: speed DIR [QUANTIZATION] [THREADS] [KERNELS] [ONLY] [ADAPTERS] [RANK]"),
    );
    let quantization = args
        .next()
        .map_or(Ok(Quantization::None), |q| q.parse())
        .unwrap();
    let sample = if quantization == Quantization::Int4 {
        let tokenizer = Tokenizer::load(&dir).unwrap();
        tokenizer.encode(SAMPLE_TEXT, true).unwrap()
    } else {
        Vec::new()
    };
    let options = LoadOptions {
        quantization,
        sample,
        threads: args.next().map(|t| t.parse().unwrap()),
        kernels: args.next().map(|k| k.parse().unwrap()),
        kv_cache_bytes: Some(2 << 30),
        ..LoadOptions::default()
    };
    let only = args.next().unwrap_or_default();
    let adapters: u64 = args.next().map_or(0, |count| count.parse().unwrap());
    let rank = args.next().map_or(16, |rank| rank.parse().unwrap());
    let begin = Instant::now();
    let mut backend = load(&dir, &options).unwrap();
    let spec = backend.spec().clone();
    println!(
        "{spec}, {} {}: loaded in {:.3} s",
        spec.quantization,
        spec.kernels,
        begin.elapsed().as_secs_f64()
    );
    let (config, _) = DecoderConfig::read(&dir).unwrap();
    let adapters: Vec<_> = (0..adapters).map(AdapterId::new).collect();
    for &id in &adapters {
        let mut random = fastrand::Rng::with_seed(1);
        let weights = Adapter::on_all_linear(&config, rank, || (random.f32() - 0.5) * 0.02);
        let begin = Instant::now();
        let packed = backend.adapter_packer().pack(&weights).unwrap();
        let bytes = packed.bytes();
        backend.attach(id, packed).unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        println!("{id:?}: {bytes} bytes, packed and attached in {seconds:.3} s");
    }
    let mut next = 0;
    let mut stack = move || {
        next += 1;
        let id = adapters.get(next % adapters.len().max(1));
        id.map(|id| (*id, 0.5)).into_iter().collect()
    };

    let mut seed = 1_u32;
    let mut token = move || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1000 + (seed >> 8) % 20_000
    };
    let mut sequence =
        |first_block: u32, position: usize, count: usize, total: usize| SequenceStep {
            tokens: (0..count).map(|_| token()).collect(),
            position,
            blocks: (first_block..).take(total.div_ceil(16)).collect(),
            logits: LogitsWanted::Last,
            adapters: stack(),
        };
    let mut time =
        |what: &str, steps: usize, tokens: usize, mut batch: Box<dyn FnMut(usize) -> StepBatch>| {
            if !what.contains(&only) {
                return;
            }
            let (mut with, mut without) = (Times::default(), Times::default());
            for step in 0..steps {
                let mut batch = batch(step);
                with.add(&mut backend, &batch);
                if batch.sequences.iter().any(|row| !row.adapters.is_empty()) {
                    batch
                        .sequences
                        .iter_mut()
                        .for_each(|row| row.adapters.clear());
                    without.add(&mut backend, &batch);
                }
            }
            let [clock, processor] = with.medians();
            print!(
                "{what:24} {:9.1} tok/s  median {:7.2} ms  processor {:7.2} ms",
                tokens as f64 / clock,
                clock * 1e3,
                processor * 1e3
            );
            if !without.0.is_empty() {
                let [clock, processor] = without.over(&with);
                print!("  of the base {clock:.3} and {processor:.3}");
            }
            println!();
        };
    let prompt = sequence(0, 0, 512, 512);
    time(
        "prefill 512",
        9,
        512,
        Box::new(move |_| StepBatch {
            sequences: vec![prompt.clone()],
        }),
    );
    for (size, steps) in [(1, 120), (8, 60), (32, 30)] {
        let rows: Vec<_> = (0..size).map(|i| sequence(i * 20, 128, 1, 300)).collect();
        let name = format!("decode {size}, context 128");
        time(
            &name,
            steps,
            size as usize,
            Box::new(move |step| StepBatch {
                sequences: rows
                    .iter()
                    .map(|row| SequenceStep {
                        position: 128 + step,
                        ..row.clone()
                    })
                    .collect(),
            }),
        );
    }
    if spec.max_positions > 4200 {
        let row = sequence(0, 4096, 1, 4200);
        time(
            "decode 1, context 4096",
            40,
            1,
            Box::new(move |step| StepBatch {
                sequences: vec![SequenceStep {
                    position: 4096 + step,
                    ..row.clone()
                }],
            }),
        );
    }
}

/// Seconds of steps: by the clock, and of the processors.
#[derive(Default)]
struct Times(Vec<[f64; 2]>);

impl Times {
    fn add(&mut self, backend: &mut CpuBackend, batch: &StepBatch) {
        let (begin, processor) = (Instant::now(), processor_seconds());
        backend.step(batch).unwrap();
        let clock = begin.elapsed().as_secs_f64();
        self.0.push([clock, processor_seconds() - processor]);
    }

    fn medians(&self) -> [f64; 2] {
        [0, 1].map(|kind| median(self.0.iter().map(|times| times[kind])))
    }

    /// Medians of what each of these is of the one beside it.
    fn over(&self, others: &Self) -> [f64; 2] {
        let pairs = || self.0.iter().zip(&others.0);
        [0, 1].map(|kind| median(pairs().map(|(ours, theirs)| ours[kind] / theirs[kind])))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
