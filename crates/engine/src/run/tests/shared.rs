//! Prefix cache, groups, salts and priorities, through the whole engine.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

fn without_cache() -> EngineConfig {
    EngineConfig {
        prefix_cache: false,
        ..EngineConfig::default()
    }
}

/// Counts what an observer hears.
#[derive(Default)]
struct Sums {
    tokens: usize,
    queries: usize,
    hits: usize,
    preempted: usize,
}

#[derive(Default)]
struct Ear(Mutex<Sums>);

impl Observer for Ear {
    fn step(&self, report: &StepReport) {
        let mut sums = self.0.lock().unwrap();
        sums.tokens += report.tokens;
        sums.queries += report.prefix_queries;
        sums.hits += report.prefix_hits;
        sums.preempted += report.preempted;
    }
    fn first_token(&self, _: Duration) {}
    fn next_token(&self, _: Duration) {}
    fn finished(&self, _: &Stats, _: &'static str) {}
}

fn heard(num_blocks: usize, config: EngineConfig) -> (EngineHandle, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let backend = Box::new(FakeBackend::new(num_blocks, 4096, FakeOptions::default()));
    let tokenizer = Arc::new(fake::tokenizer());
    let engine = Engine::start(backend, tokenizer, config, Arc::clone(&ear) as _).unwrap();
    (engine, ear)
}

fn salted(prompt: &[u32], salt: &str) -> Request {
    Request {
        cache_salt: Some(salt.into()),
        ..greedy(prompt, 3)
    }
}

#[test]
fn the_second_of_two_equal_prompts_computes_only_its_end() {
    let prompt = vec![7; 100];
    let (engine, ear) = heard(64, EngineConfig::default());
    let first = collect(engine.submit(greedy(&prompt, 3)).unwrap());
    let second = collect(engine.submit(greedy(&prompt, 3)).unwrap());
    assert_eq!(first.1, second.1);
    assert_eq!((first.3.cached_tokens, second.3.cached_tokens), (0, 96));
    comes_to_rest(&engine);
    let sums = ear.0.lock().unwrap();
    assert_eq!((sums.queries, sums.hits), (200, 96));
    assert_eq!(sums.tokens, 100 + 2 + 4 + 2);
}

#[test]
fn without_the_cache_everything_is_computed() {
    let prompt = vec![7; 100];
    let (engine, ear) = heard(64, without_cache());
    for _ in 0..2 {
        let answer = collect(engine.submit(greedy(&prompt, 3)).unwrap());
        assert_eq!(
            (answer.3.cached_tokens, &answer.1),
            (0, &fake::greedy(&prompt, 3))
        );
    }
    comes_to_rest(&engine);
    let sums = ear.0.lock().unwrap();
    assert_eq!((sums.queries, sums.hits, sums.tokens), (0, 0, 204));
}

#[test]
fn only_the_same_salt_shares() {
    let prompt = vec![7; 100];
    let (engine, _) = heard(64, EngineConfig::default());
    let cached = |request| collect(engine.submit(request).unwrap()).3.cached_tokens;
    assert_eq!(cached(salted(&prompt, "a")), 0);
    assert_eq!(cached(salted(&prompt, "b")), 0);
    assert_eq!(cached(greedy(&prompt, 3)), 0);
    assert_eq!(cached(salted(&prompt, "a")), 96);
}

#[test]
fn an_answer_is_found_by_the_next_turn() {
    let (engine, _) = heard(64, EngineConfig::default());
    let mut turn = vec![9; 20];
    let answer = collect(engine.submit(greedy(&turn, 60)).unwrap()).1;
    turn.extend(answer);
    turn.extend([5; 10]);
    let next = collect(engine.submit(greedy(&turn, 3)).unwrap());
    assert_eq!(next.1, fake::greedy(&turn, 3));
    // The last token of an answer is not computed any more.
    assert_eq!(next.3.cached_tokens, 64);
}

#[test]
fn the_choices_of_a_group_compute_their_prompt_once_with_and_without_the_cache() {
    for config in [EngineConfig::default(), without_cache()] {
        let (engine, ear) = heard(64, config);
        let prompt = vec![8; 100];
        let request = |seed| Request {
            sampling: SamplingParams {
                seed: Some(seed),
                ..SamplingParams::default()
            },
            ..greedy(&prompt, 2)
        };
        let alone: Vec<_> = (0..5)
            .map(|seed| collect(plain(64).submit(request(seed)).unwrap()).1)
            .collect();
        let streams = engine.submit_group((0..5).map(request).collect()).unwrap();
        let answers: Vec<_> = streams.into_iter().map(|s| collect(s).1).collect();
        assert_eq!(answers, alone);
        comes_to_rest(&engine);
        // Of each the last, incomplete block and one token of its answer.
        assert_eq!(ear.0.lock().unwrap().tokens, 100 + 4 * 4 + 5);
    }
}

#[test]
fn a_group_is_accepted_as_a_whole_or_not_at_all() {
    let config = EngineConfig {
        max_queue: 3,
        max_batch: 1,
        ..Default::default()
    };
    let options = FakeOptions {
        step_time: Duration::from_millis(20),
        ..Default::default()
    };
    let engine = start(64, options, config);
    let refusal = |group: Vec<Request>| engine.submit_group(group).unwrap_err();
    assert_eq!(refusal(vec![]), InvalidRequest::EmptyGroup.into());
    let mixed = vec![greedy(&[1], 1), greedy(&[2], 1)];
    assert_eq!(refusal(mixed), InvalidRequest::MixedGroup.into());
    let mixed = vec![salted(&[1], "a"), salted(&[1], "b")];
    assert_eq!(refusal(mixed), InvalidRequest::MixedGroup.into());
    assert!(matches!(
        refusal(vec![greedy(&[1], 1); 4]),
        SubmitError::Invalid(InvalidRequest::GroupTooLarge {
            requests: 4,
            limit: 3
        })
    ));
    let invalid = vec![greedy(&[1], 1), greedy(&[1], 0)];
    assert_eq!(refusal(invalid), InvalidRequest::NoAnswer.into());
    let running = engine.submit(greedy(&[1], 100)).unwrap();
    let waiting = engine.submit_group(vec![greedy(&[1], 1); 2]).unwrap();
    let full = refusal(vec![greedy(&[1], 1); 3]);
    assert!(matches!(full, SubmitError::Full { .. }), "{full:?}");
    drop((running, waiting));
    comes_to_rest(&engine);
}

#[test]
fn the_groups_of_a_request_are_accepted_together_and_answered_in_order() {
    let engine = plain(64);
    let group = |token| vec![greedy(&[token], 5), greedy(&[token], 3)];
    let streams = engine.submit_groups(vec![group(40), group(50)]).unwrap();
    let answers: Vec<_> = streams.into_iter().map(|s| collect(s).1).collect();
    let expected = [(40, 5), (40, 3), (50, 5), (50, 3)];
    let expected = expected.map(|(token, count)| fake::greedy(&[token], count));
    assert_eq!(answers, expected);
    let invalid = vec![group(40), vec![greedy(&[1], 0)]];
    assert_eq!(
        engine.submit_groups(invalid).unwrap_err(),
        InvalidRequest::NoAnswer.into()
    );
    assert_eq!(
        engine.submit_groups(vec![]).unwrap_err(),
        InvalidRequest::EmptyGroup.into()
    );
    comes_to_rest(&engine);
}

#[test]
fn a_prompt_that_gave_no_numbers_is_not_shared() {
    let options = FakeOptions {
        nan_token: Some(13),
        ..Default::default()
    };
    let config = EngineConfig {
        max_step_tokens: 64,
        ..Default::default()
    };
    let engine = start(64, options, config);
    let mut prompt = vec![5; 100];
    prompt[80] = 13;
    for _ in 0..2 {
        let (_, _, error, stats) = collect(engine.submit(greedy(&prompt, 3)).unwrap());
        assert!(matches!(error, Some(GenerationError::Failed(_))));
        assert_eq!(stats.cached_tokens, 0);
    }
    let good = collect(engine.submit(greedy(&[5; 60], 3)).unwrap());
    assert_eq!(
        (good.1, good.3.cached_tokens),
        (fake::greedy(&[5; 60], 3), 0)
    );
    comes_to_rest(&engine);
}

#[test]
fn the_more_important_is_answered_first() {
    let options = FakeOptions {
        step_time: Duration::from_millis(2),
        ..Default::default()
    };
    let config = EngineConfig {
        max_batch: 1,
        ..Default::default()
    };
    let engine = start(64, options, config);
    let first = engine.submit(greedy(&[1], 20)).unwrap();
    let with = |priority| {
        let request = Request {
            priority,
            ..greedy(&[2], 5)
        };
        engine.submit(request).unwrap()
    };
    let (low, high) = (with(5), with(-5));
    drop(first);
    let (low, high) = (collect(low).3, collect(high).3);
    assert!(high.queue_time < low.queue_time);
}

/// Panics at the first token of the request that comes second.
struct Trap(Mutex<usize>);

impl Observer for Trap {
    fn step(&self, _: &StepReport) {}
    fn first_token(&self, _: Duration) {
        let mut count = self.0.lock().unwrap();
        *count += 1;
        let second = *count == 2;
        drop(count);
        assert!(!second, "a panic beside the backend");
    }
    fn next_token(&self, _: Duration) {}
    fn finished(&self, _: &Stats, _: &'static str) {}
}

#[test]
fn a_panic_beside_the_backend_fails_one_request() {
    let backend = Box::new(FakeBackend::new(64, 4096, FakeOptions::default()));
    let tokenizer = Arc::new(fake::tokenizer());
    let trap = Arc::new(Trap(Mutex::new(0)));
    let engine = Engine::start(backend, tokenizer, EngineConfig::default(), trap).unwrap();
    let streams: Vec<_> = [20, 21, 22]
        .map(|token| engine.submit(greedy(&[token], 5)).unwrap())
        .into();
    let errors: Vec<_> = streams
        .into_iter()
        .map(|stream| collect(stream).2)
        .collect();
    assert!(
        matches!(errors[1], Some(GenerationError::Failed(_))),
        "{errors:?}"
    );
    assert_eq!((&errors[0], &errors[2]), (&None, &None));
    comes_to_rest(&engine);
}

#[derive(Clone, Debug)]
struct Ask {
    text: u32,
    prompt: usize,
    answer: usize,
    salt: bool,
    priority: i32,
    scored: bool,
    dropped: bool,
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let ask = (
        (0..3_u32, 1..90_usize, 1..60_usize),
        any::<bool>(),
        -2..2_i32,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |((text, prompt, answer), salt, priority, scored, dropped)| Ask {
                text,
                prompt,
                answer,
                salt,
                priority,
                scored,
                dropped,
            },
        );
    prop::collection::vec(ask, 1..32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The fake's cache holds hashes of whole prefixes, so any mistake changes the answers.
    #[test]
    fn greedy_answers_are_the_same_alone_and_among_31_others(
        asks in asks(), num_blocks in 10..60_usize, max_batch in 1..32_usize,
        spare in 0..80_usize, prefix_cache in prop::bool::weighted(0.7),
    ) {
        let config = EngineConfig {
            max_batch, max_step_tokens: max_batch + spare, prefix_cache, ..Default::default()
        };
        let engine = start(num_blocks, FakeOptions::default(), config);
        let mut streams = Vec::new();
        for ask in &asks {
            let token = |at: usize| 40 + at as u32 % 5 + if at < 40 { 0 } else { 10 * ask.text };
            let prompt: Vec<u32> = (0..ask.prompt).map(token).collect();
            let request = Request {
                cache_salt: ask.salt.then(|| "tenant".into()),
                priority: ask.priority,
                prompt_logprobs: ask.scored.then_some(1),
                ..greedy(&prompt, ask.answer)
            };
            let stream = engine.submit(request).unwrap();
            if !ask.dropped {
                streams.push((prompt, ask, stream));
            }
        }
        for (prompt, ask, stream) in streams {
            let (_, tokens, error, stats) = collect(stream);
            prop_assert_eq!((tokens, error), (fake::greedy(&prompt, ask.answer), None));
            prop_assert!(stats.cached_tokens < prompt.len());
        }
        comes_to_rest(&engine);
    }
}
