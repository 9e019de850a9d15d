mod adapters;
mod constrained;
mod shared;
mod told;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, executor::block_on};

use super::*;
use crate::{
    SamplingParams,
    fake::{self, FakeBackend, FakeOptions},
};

fn start(num_blocks: usize, options: FakeOptions, config: EngineConfig) -> EngineHandle {
    let backend = Box::new(FakeBackend::new(num_blocks, 4096, options));
    Engine::start(
        backend,
        Arc::new(fake::tokenizer()),
        config,
        Arc::new(NoObserver),
    )
    .unwrap()
}

fn plain(num_blocks: usize) -> EngineHandle {
    start(num_blocks, FakeOptions::default(), EngineConfig::default())
}

fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..Default::default()
        },
        stop: StopRules {
            max_tokens: Some(max_tokens),
            ..Default::default()
        },
        ..Default::default()
    }
}

/// All text, all tokens, and the error if there was one.
fn collect(mut stream: TextStream) -> (String, Vec<u32>, Option<GenerationError>, Stats) {
    let (mut text, mut tokens, mut error) = (String::new(), Vec::new(), None);
    block_on(async {
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => {
                    text.push_str(&piece.text);
                    tokens.extend(piece.tokens);
                }
                Err(broken) => error = Some(broken),
            }
        }
    });
    (text, tokens, error, *stream.stats())
}

/// The last event of an answer comes before the thread has tidied up after it.
#[track_caller]
fn comes_to_rest(engine: &EngineHandle) {
    let rest = Load {
        running: 0,
        queued: 0,
        used_blocks: 0,
        ..engine.load()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.load() != rest {
        assert!(Instant::now() < deadline, "{:?}", engine.load());
        std::thread::yield_now();
    }
}

#[test]
fn greedy_answers_are_the_models_and_counted() {
    let engine = plain(64);
    let (text, tokens, error, stats) = collect(engine.submit(greedy(&[5, 6, 7], 20)).unwrap());
    let expected = fake::greedy(&[5, 6, 7], 20);
    assert_eq!((tokens, error), (expected.clone(), None));
    assert!(
        fake::tokenizer()
            .decode(&expected, true)
            .unwrap()
            .starts_with(&text)
    );
    assert_eq!((stats.prompt_tokens, stats.completion_tokens), (3, 20));
    assert_eq!(stats.finish_reason, Some(FinishReason::Length));
}

#[test]
fn an_answer_is_the_same_alone_and_in_a_crowd_that_fights_for_blocks() {
    // 24 requests of up to 60 + 100 tokens need ten blocks each; there are 30.
    let config = EngineConfig {
        max_batch: 16,
        max_step_tokens: 40,
        ..Default::default()
    };
    let engine = start(30, FakeOptions::default(), config);
    let prompts: Vec<Vec<u32>> = (0..24)
        .map(|i| (0..=i * 5 % 60).map(|t| (i * 7 + t) % 260).collect())
        .collect();
    let streams: Vec<_> = prompts
        .iter()
        .map(|prompt| engine.submit(greedy(prompt, 100)).unwrap())
        .collect();
    for (prompt, stream) in prompts.iter().zip(streams) {
        let (_, tokens, error, _) = collect(stream);
        assert_eq!((tokens, error), (fake::greedy(prompt, 100), None));
    }
    comes_to_rest(&engine);
}

#[test]
fn a_seed_gives_the_same_answer_whatever_the_batch() {
    let engine = plain(256);
    let seeded = |seed| Request {
        sampling: SamplingParams {
            seed: Some(seed),
            temperature: 1.3,
            ..Default::default()
        },
        ..greedy(&[9, 9], 30)
    };
    let alone = collect(engine.submit(seeded(1)).unwrap()).1;
    let crowd: Vec<_> = (0..20)
        .map(|seed| engine.submit(seeded(seed)).unwrap())
        .collect();
    let answers: Vec<_> = crowd.into_iter().map(|stream| collect(stream).1).collect();
    assert_eq!(answers[1], alone);
    assert_ne!(answers[2], alone);
}

#[test]
fn stop_strings_stop_tokens_and_the_models_ending_end_an_answer() {
    let engine = plain(64);
    let whole = collect(engine.submit(greedy(&[5], 40)).unwrap());
    let (at, stop) = whole
        .0
        .char_indices()
        .nth(5)
        .map(|(at, _)| (at, whole.0[at..].chars().take(3).collect::<String>()))
        .unwrap();
    let mut request = greedy(&[5], 40);
    request.stop.strings = vec![stop.clone()];
    let stopped = collect(engine.submit(request.clone()).unwrap());
    assert_eq!(stopped.0, whole.0[..whole.0.find(&stop).unwrap().min(at)]);
    assert_eq!(stopped.3.finish_reason, Some(FinishReason::Stop));
    request.stop.include_string = true;
    assert!(collect(engine.submit(request).unwrap()).0.ends_with(&stop));

    let third = whole.1[2];
    let before = whole.1.iter().position(|token| *token == third).unwrap();
    let mut request = greedy(&[5], 40);
    request.stop.tokens = vec![third];
    let stopped = collect(engine.submit(request.clone()).unwrap());
    assert_eq!(stopped.1.len(), before + 1);
    assert_eq!(stopped.3.finish_reason, Some(FinishReason::Stop));
    request.stop.min_tokens = 30;
    let later = collect(engine.submit(request).unwrap());
    assert!(later.1.len() >= 30 && !later.1[..30].contains(&third));

    let mut request = greedy(&[5], 40);
    request.stop.strings = vec![stop];
    request.stop.min_tokens = 40;
    let passed = collect(engine.submit(request).unwrap());
    assert_eq!((&passed.0, passed.1.len()), (&whole.0, 40));

    let options = FakeOptions::default();
    let config = EngineConfig {
        eos: vec![third],
        ..Default::default()
    };
    let ending = start(64, options, config);
    assert_eq!(
        collect(ending.submit(greedy(&[5], 40)).unwrap()).1.len(),
        before + 1
    );
    let mut request = greedy(&[5], 40);
    request.stop.ignore_eos = true;
    assert_eq!(collect(ending.submit(request).unwrap()).1, whole.1);
}

#[test]
fn impossible_requests_are_refused_with_the_cause() {
    let engine = start(4, FakeOptions::default(), EngineConfig::default());
    let refusal = |request| match engine.submit(request) {
        Err(SubmitError::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(greedy(&[], 1)), InvalidRequest::EmptyPrompt);
    assert_eq!(
        refusal(greedy(&[1; 64], 1)),
        InvalidRequest::PromptTooLong {
            tokens: 64,
            limit: 64
        }
    );
    assert_eq!(
        refusal(greedy(&[1; 60], 5)),
        InvalidRequest::AnswerTooLong {
            tokens: 60,
            max_tokens: 5,
            limit: 64
        }
    );
    assert!(matches!(
        refusal(greedy(&[9999], 1)),
        InvalidRequest::UnknownToken { .. }
    ));
    let mut request = greedy(&[1], 1);
    request.sampling.top_p = f32::NAN;
    assert!(matches!(refusal(request), InvalidRequest::Sampling(_)));
    collect(engine.submit(greedy(&[1; 60], 4)).unwrap());
}

#[test]
fn a_full_queue_turns_requests_away_and_recovers() {
    let options = FakeOptions {
        step_time: Duration::from_millis(5),
        ..Default::default()
    };
    let config = EngineConfig {
        max_batch: 1,
        max_queue: 3,
        ..Default::default()
    };
    let engine = start(64, options, config);
    let mut accepted = Vec::new();
    let turned_away = (0..20)
        .filter(|_| match engine.submit(greedy(&[1], 20)) {
            Ok(stream) => {
                accepted.push(stream);
                false
            }
            Err(error) => {
                assert_eq!(
                    error,
                    SubmitError::Full {
                        retry_after: Duration::from_secs(1)
                    }
                );
                true
            }
        })
        .count();
    assert!(turned_away >= 16, "{turned_away}");
    drop(accepted);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match engine.submit(greedy(&[1], 2)) {
            Ok(stream) => break assert_eq!(collect(stream).1.len(), 2),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn dropping_streams_frees_the_engine_at_once() {
    let steps = Arc::default();
    let options = FakeOptions {
        step_time: Duration::from_millis(1),
        steps: Arc::clone(&steps),
        ..Default::default()
    };
    let engine = start(2048, options, EngineConfig::default());
    let streams: Vec<_> = (0..200)
        .map(|i| engine.submit(greedy(&[i], 4000)).unwrap())
        .collect();
    drop(streams);
    let before = steps.load(Ordering::Relaxed);
    let (_, tokens, _, _) = collect(engine.submit(greedy(&[3], 5)).unwrap());
    assert_eq!(tokens, fake::greedy(&[3], 5));
    let taken = steps.load(Ordering::Relaxed) - before;
    assert!(taken <= 7, "{taken} steps for 5 tokens");
}

#[test]
fn a_failing_request_fails_alone() {
    for options in [
        FakeOptions {
            failing_token: Some(13),
            ..Default::default()
        },
        FakeOptions {
            panicking_token: Some(13),
            ..Default::default()
        },
    ] {
        let engine = start(256, options, EngineConfig::default());
        let good: Vec<_> = (100..110)
            .map(|t| engine.submit(greedy(&[t], 3)).unwrap())
            .collect();
        let bad = engine.submit(greedy(&[1, 13], 30)).unwrap();
        assert!(matches!(collect(bad).2, Some(GenerationError::Failed(_))));
        for (token, stream) in (100..110).zip(good) {
            let (_, tokens, error, _) = collect(stream);
            assert_eq!((tokens, error), (fake::greedy(&[token], 3), None));
        }
        assert_eq!(engine.health(), Ok(()));
        comes_to_rest(&engine);
    }
}

#[test]
fn a_broken_backend_ends_every_answer_and_is_told() {
    let options = FakeOptions {
        fatal_token: Some(13),
        ..Default::default()
    };
    let engine = start(256, options, EngineConfig::default());
    let streams: Vec<_> = [13, 20, 21]
        .map(|t| engine.submit(greedy(&[t], 4000)))
        .into();
    for stream in streams.into_iter().flatten() {
        assert_eq!(collect(stream).2, Some(GenerationError::EngineStopped));
    }
    assert_eq!(engine.health(), Err("the device is gone".to_owned()));
    assert!(matches!(
        engine.submit(greedy(&[1], 1)),
        Err(SubmitError::Stopped)
    ));
}

#[test]
fn whoever_waits_for_the_engine_hears_of_its_death_and_of_nothing_else() {
    let options = FakeOptions {
        fatal_token: Some(13),
        failing_token: Some(14),
        ..Default::default()
    };
    let engine = start(256, options, EngineConfig::default());
    let mut died = Box::pin(engine.died());
    collect(engine.submit(greedy(&[14], 1)).unwrap());
    assert_eq!(died.as_mut().now_or_never(), None, "a request failed alone");
    let last = engine.submit(greedy(&[13], 1)).unwrap();
    assert_eq!(block_on(died), "the device is gone");
    assert_eq!(block_on(engine.died()), "the device is gone");
    assert_eq!(collect(last).2, Some(GenerationError::EngineStopped));

    let engine = plain(64);
    let died = engine.died();
    drop(engine);
    assert_eq!(block_on(died), "the engine has stopped");
}

#[test]
fn logprobs_come_with_every_token() {
    let engine = plain(64);
    let mut stream = engine
        .submit(Request {
            logprobs: Some(3),
            ..greedy(&[5], 10)
        })
        .unwrap();
    let mut told = Vec::new();
    block_on(async {
        while let Some(piece) = stream.next().await {
            let piece = piece.unwrap();
            assert_eq!(piece.tokens.len(), piece.logprobs.len());
            told.extend(piece.logprobs);
        }
    });
    assert_eq!(told.len(), 10);
    for (entry, token) in told.iter().zip(fake::greedy(&[5], 10)) {
        assert_eq!(
            (entry.token, entry.top.len(), entry.top[0].0),
            (token, 3, token)
        );
        assert!(entry.logprob < 0.0 && (entry.logprob - entry.top[0].1).abs() < 1e-6);
    }
}

#[test]
fn what_was_accepted_is_finished_after_the_handle_is_gone() {
    let engine = plain(64);
    let stream = engine.submit(greedy(&[5], 50)).unwrap();
    drop(engine);
    assert_eq!(collect(stream).1, fake::greedy(&[5], 50));
}
