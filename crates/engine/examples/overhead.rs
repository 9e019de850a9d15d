//! What the engine itself costs: sampling, grammars, and a step of 32 streams without a model.
//!
//! `cargo run --release -p hyprstream-engine --example overhead [PART] [MODEL]`:
//! `sampling`, `grammars` (with the tokenizer in the folder `MODEL`) or `steps`; all by default.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it prints what it measures"
)]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, executor::block_on, future::join_all};
use hyprstream_engine::{
    Engine, EngineConfig, Grammar, GrammarCompiler, GrammarLimits, NoObserver, Request,
    SamplingParams, StopRules, Tokenizer,
    fake::{self, FakeBackend, FakeOptions},
    measure,
};

fn main() {
    let part = std::env::args().nth(1).unwrap_or_default();
    let parts: [(&str, fn()); 3] = [
        ("sampling", sampling),
        ("grammars", grammars),
        ("steps", steps),
    ];
    for (name, run) in parts {
        if part.is_empty() || part == name {
            run();
        }
    }
}

/// The median of many runs.
fn median(mut run: impl FnMut(u32) -> Duration) -> Duration {
    let mut times: Vec<_> = (0..201).map(&mut run).collect();
    times.sort();
    times[times.len() / 2]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn sampling() {
    println!("sampling, us a token          vocabulary 49152   262144");
    let logits = |size: u32| -> Vec<f32> {
        // About as real logits are: a wide bulk, and a few that stand out.
        let noise = |i: u32| {
            let bits = u64::from(i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let quarters = [0, 16, 32, 48].map(|shift| (bits >> shift & 0xffff) as f32);
            let outlier = if i % 5000 == 7 { 8.0 } else { 0.0 };
            quarters.iter().sum::<f32>() / 9_400.0 - 14.0 + outlier
        };
        (0..size).map(noise).collect()
    };
    let default = SamplingParams::default;
    for (name, params, logprobs) in [
        (
            "greedy",
            SamplingParams {
                temperature: 0.0,
                ..default()
            },
            None,
        ),
        (
            "greedy, 5 logprobs",
            SamplingParams {
                temperature: 0.0,
                ..default()
            },
            Some(5),
        ),
        ("temperature 1", default(), None),
        (
            "top_k 50",
            SamplingParams {
                top_k: 50,
                ..default()
            },
            None,
        ),
        (
            "top_p 0.9",
            SamplingParams {
                top_p: 0.9,
                ..default()
            },
            None,
        ),
        (
            "top_k 50, top_p 0.9",
            SamplingParams {
                top_k: 50,
                top_p: 0.9,
                ..default()
            },
            None,
        ),
        (
            "min_p 0.05",
            SamplingParams {
                min_p: 0.05,
                ..default()
            },
            None,
        ),
        (
            "typical_p 0.9",
            SamplingParams {
                typical_p: 0.9,
                ..default()
            },
            None,
        ),
        ("temperature 1, 5 logprobs", default(), Some(5)),
    ] {
        let params = SamplingParams {
            seed: Some(1),
            ..params
        };
        let times = [49_152, 262_144].map(|size| {
            let row = logits(size);
            let mut sampler = measure::Sampling::new(params.clone(), logprobs);
            let mut copy = row.clone();
            median(|_| {
                copy.copy_from_slice(&row);
                let started = Instant::now();
                black_box(sampler.next(&mut copy));
                started.elapsed()
            })
        });
        println!("{name:30}{:16.1}{:9.1}", micros(times[0]), micros(times[1]));
    }
}

/// The tokenizer in the folder that is named, or the fake one.
fn tokenizer() -> (Tokenizer, u32) {
    match std::env::args().nth(2) {
        Some(dir) => {
            let tokenizer = Tokenizer::load(dir.as_ref()).unwrap();
            let eos = ["<|im_end|>", "<eos>", "</s>", "<|endoftext|>"];
            let eos = eos.into_iter().find_map(|name| tokenizer.token_id(name));
            (tokenizer, eos.unwrap())
        }
        None => (fake::tokenizer(), fake::EOS),
    }
}

fn grammars() {
    let (tokenizer, eos) = tokenizer();
    let size = tokenizer.vocab_size();
    println!(
        "\ngrammars, vocabulary {size}: to compile, ms; to start, us; a token by what is allowed, us: \
         p50, p99, max; and by whether it is allowed alone"
    );
    let started = Instant::now();
    let compiler = GrammarCompiler::new(&tokenizer, size, &[eos]).unwrap();
    println!(
        "(compiler made in {:.0} ms)",
        micros(started.elapsed()) / 1e3
    );
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false,
        "required": ["name", "age", "tags", "address"],
        "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": {"type": "object", "additionalProperties": false,
                "required": ["street", "zip"],
                "properties": {"street": {"type": "string"},
                    "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}},
        },
    });
    let text = r#"{"name": "Grace Hopper", "age": 85, "tags": ["navy", "compilers", "COBOL"], "address": {"street": "12 Long Wharf Road, near the old lighthouse", "zip": "02210"}}"#;
    for (name, grammar, text) in [
        ("json_schema", Grammar::JsonSchema(schema), text),
        ("json object", Grammar::JsonObject, text),
        (
            "regex",
            Grammar::Regex("(\\w+ ){3,60}end".into()),
            "one two three four five six end",
        ),
        (
            "choice",
            Grammar::Choice(vec!["positive".into(), "negative".into()]),
            "positive",
        ),
    ] {
        let started = Instant::now();
        let constraint = compiler
            .compile_blocking(&grammar, &GrammarLimits::default())
            .unwrap();
        let compile = started.elapsed();
        let tokens = tokenizer.encode(text, false).unwrap();
        let mut start = Duration::ZERO;
        let mut times = [const { Vec::new() }; 2];
        for _ in 0..20 {
            for (one, times) in times.iter_mut().enumerate() {
                let started = Instant::now();
                let mut walk = measure::Walk::new(&constraint);
                start = started.elapsed();
                for &token in &tokens {
                    let started = Instant::now();
                    let step = if one == 1 {
                        walk.step_one(token)
                    } else {
                        walk.step(token)
                    };
                    step.unwrap();
                    times.push(started.elapsed());
                }
            }
        }
        for times in &mut times {
            times.sort();
        }
        let [all, one] = times.map(|times| {
            move |share: f64| micros(times[((times.len() - 1) as f64 * share) as usize])
        });
        println!(
            "{name:15}{:10.1}{:10.0}{:14.1}{:7.0}{:7.0}{:14.1}{:7.0}{:7.0}",
            micros(compile) / 1e3,
            micros(start),
            all(0.5),
            all(0.99),
            all(1.0),
            one(0.5),
            one(0.99),
            one(1.0)
        );
    }
}

/// What a step costs beyond the model: the same answers from an engine whose model takes a known
/// time. The readers run on another thread, as a server's do.
fn steps() {
    println!("\n32 streams, 400 tokens each, a vocabulary of 262 and a model of no cost:");
    for (name, sampling, prefix_cache) in [
        (
            "greedy",
            SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            true,
        ),
        (
            "greedy, no prefix cache",
            SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            false,
        ),
        ("temperature 1", SamplingParams::default(), true),
    ] {
        let backend = FakeBackend::new(
            2048,
            1024,
            FakeOptions {
                constant: true,
                ..FakeOptions::default()
            },
        );
        let config = EngineConfig {
            prefix_cache,
            ..EngineConfig::default()
        };
        let tokenizer = Arc::new(fake::tokenizer());
        let engine =
            Engine::start(Box::new(backend), tokenizer, config, Arc::new(NoObserver)).unwrap();
        let request = |which: u32| Request {
            prompt: (0..100).map(|i| 40 + (i * 7 + which) % 80).collect(),
            sampling: sampling.clone(),
            stop: StopRules {
                max_tokens: Some(400),
                ignore_eos: true,
                ..StopRules::default()
            },
            ..Request::default()
        };
        let cpu = cpu_time();
        let started = Instant::now();
        let streams: Vec<_> = (0..32)
            .map(|i| engine.submit(request(i)).unwrap())
            .collect();
        block_on(join_all(streams.into_iter().map(|mut stream| async move {
            while let Some(piece) = stream.next().await {
                black_box(piece.unwrap());
            }
        })));
        let wall = started.elapsed();
        let spent = cpu_time()
            .zip(cpu)
            .map(|(after, before)| after.saturating_sub(before));
        println!(
            "{name:30}{:8.0} us a step by the clock, {:.0} us of the engine's thread",
            micros(wall) / 400.0,
            spent.map_or(f64::NAN, micros) / 400.0
        );
    }
}

/// Processor time of the youngest thread called `engine`.
fn cpu_time() -> Option<Duration> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let mut engines: Vec<u32> = threads
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|thread| {
            let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
            name.is_ok_and(|name| name.trim() == "engine")
        })
        .collect();
    engines.sort_unstable();
    // The first field is the time on a processor in nanoseconds.
    let stat = format!("/proc/self/task/{}/schedstat", engines.last()?);
    let stat = std::fs::read_to_string(stat).ok()?;
    let nanos = stat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}
