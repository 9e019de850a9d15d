//! Adapters through the whole engine.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::{
    PackedAdapter,
    fake::{FATAL, FakeAdapter, PANICKING, REFUSED},
};

const SQL: FakeAdapter = FakeAdapter(7);
const TONE: FakeAdapter = FakeAdapter(8);

type Stack<T> = Vec<(T, f32)>;

/// The content decides about the digest, as it does for real ones.
fn attach(engine: &EngineHandle, adapter: FakeAdapter) -> Result<Adapter, AttachError> {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&adapter.0.to_le_bytes());
    block_on(engine.attach(digest, adapter.packed()))
}

fn adapted(prompt: &[u32], max_tokens: usize, adapters: &[(&Adapter, f32)]) -> Request {
    let adapters = adapters.iter().map(|(a, scale)| ((*a).clone(), *scale));
    Request {
        adapters: adapters.collect(),
        ..greedy(prompt, max_tokens)
    }
}

fn tokens(stream: TextStream) -> Vec<u32> {
    let (_, tokens, error, _) = collect(stream);
    assert_eq!(error, None);
    tokens
}

fn counting() -> (EngineHandle, Arc<AtomicUsize>) {
    let options = FakeOptions::default();
    let attached = Arc::clone(&options.attached);
    (start(64, options, EngineConfig::default()), attached)
}

#[track_caller]
fn becomes(attached: &AtomicUsize, count: usize) {
    let begin = Instant::now();
    while attached.load(Ordering::Acquire) != count {
        assert!(begin.elapsed() < Duration::from_secs(10), "{attached:?}");
        std::thread::yield_now();
    }
}

#[test]
fn stacks_and_scales_mix_in_one_batch() {
    let engine = plain(64);
    let (sql, tone) = (
        attach(&engine, SQL).unwrap(),
        attach(&engine, TONE).unwrap(),
    );
    let prompt: Vec<u32> = (40..80).collect();
    let cases: [(Stack<&Adapter>, Stack<FakeAdapter>); 6] = [
        (vec![], vec![]),
        (vec![(&sql, 1.0)], vec![(SQL, 1.0)]),
        (vec![(&sql, 0.5)], vec![(SQL, 0.5)]),
        (vec![(&tone, -1.0)], vec![(TONE, -1.0)]),
        (
            vec![(&sql, 1.0), (&tone, 0.5)],
            vec![(SQL, 1.0), (TONE, 0.5)],
        ),
        (vec![(&sql, 0.0), (&tone, 1.0)], vec![(TONE, 1.0)]),
    ];
    let streams: Vec<_> = cases
        .iter()
        .map(|(adapters, _)| engine.submit(adapted(&prompt, 12, adapters)).unwrap())
        .collect();
    let mut answers = Vec::new();
    for (stream, (_, expected)) in streams.into_iter().zip(&cases) {
        let answer = tokens(stream);
        assert_eq!(answer, fake::greedy_with(expected, &prompt, 12));
        assert!(!answers.contains(&answer), "each of them is another");
        answers.push(answer);
    }
}

#[test]
fn blocks_are_shared_under_the_same_digests_and_scales_and_under_no_others() {
    let engine = plain(256);
    let (sql, tone) = (
        attach(&engine, SQL).unwrap(),
        attach(&engine, TONE).unwrap(),
    );
    // The same content, attached once more.
    let again = attach(&engine, SQL).unwrap();
    assert_ne!(sql, again);
    let prompt: Vec<u32> = (40..90).collect();
    let cached = |adapters: &[(&Adapter, f32)]| {
        let stream = engine.submit(adapted(&prompt, 2, adapters)).unwrap();
        let (.., error, stats) = collect(stream);
        assert_eq!(error, None);
        stats.cached_tokens
    };
    let stacks: [&[(&Adapter, f32)]; 8] = [
        &[],
        &[(&sql, 1.0)],
        &[(&sql, 0.5)],
        &[(&sql, -1.0)],
        &[(&tone, 1.0)],
        &[(&sql, 1.0), (&tone, 1.0)],
        &[(&tone, 1.0), (&sql, 1.0)],
        &[(&sql, 1.0), (&tone, 0.5)],
    ];
    for stack in stacks {
        assert_eq!(cached(stack), 0, "first of {stack:?}");
    }
    for stack in stacks {
        assert_eq!(cached(stack), 48, "second of {stack:?}");
    }
    assert_eq!(cached(&[(&again, 1.0)]), 48, "the digest counts");
    assert_eq!(cached(&[(&sql, 0.0)]), 48, "0 is the model without");
    assert_eq!(cached(&[(&sql, -0.0), (&tone, 1.0)]), 48);
}

#[test]
fn an_adapter_goes_with_the_last_who_has_it() {
    let (engine, attached) = counting();
    let sql = attach(&engine, SQL).unwrap();
    assert_eq!(attached.load(Ordering::Acquire), 1);
    let prompt = [50, 51, 52];
    let stream = engine
        .submit(adapted(&prompt, 300, &[(&sql, 1.0)]))
        .unwrap();
    drop(sql);
    // Replaced under the same name, as its owner would do.
    let tone = attach(&engine, TONE).unwrap();
    let other = engine
        .submit(adapted(&prompt, 300, &[(&tone, 1.0)]))
        .unwrap();
    // Each ends with what it began with.
    let expected = fake::greedy_with(&[(SQL, 1.0)], &prompt, 300);
    assert_eq!(tokens(stream), expected);
    becomes(&attached, 1);
    let expected = fake::greedy_with(&[(TONE, 1.0)], &prompt, 300);
    assert_eq!(tokens(other), expected);
    assert_eq!(attached.load(Ordering::Acquire), 1, "it is still held");
    // Also while the thread has nothing to do.
    comes_to_rest(&engine);
    drop(tone);
    becomes(&attached, 0);
}

#[test]
fn an_abandoned_request_lets_its_adapter_go() {
    let (engine, attached) = counting();
    let sql = attach(&engine, SQL).unwrap();
    let stream = engine
        .submit(adapted(&[50], 1_000, &[(&sql, 1.0)]))
        .unwrap();
    drop(sql);
    drop(stream);
    becomes(&attached, 0);
    comes_to_rest(&engine);
}

#[test]
fn an_attachment_that_nobody_waits_for_does_not_stay() {
    let (engine, attached) = counting();
    drop(engine.attach([0; 32], SQL.packed()));
    let given_up = engine.attach([0; 32], SQL.packed()).now_or_never();
    drop(given_up);
    // Whatever was taken is looked at before the next answer.
    let sql = attach(&engine, TONE).unwrap();
    becomes(&attached, 1);
    drop(sql);
    becomes(&attached, 0);
}

#[test]
fn a_bad_adapter_fails_its_load_and_nothing_else() {
    let (engine, attached) = counting();
    let prompt = [60, 61, 62];
    let running = engine.submit(greedy(&prompt, 200)).unwrap();
    let refused = attach(&engine, FakeAdapter(REFUSED)).unwrap_err();
    assert!(matches!(&refused, AttachError::Refused(why) if why.contains("is refused")));
    let panicked = attach(&engine, FakeAdapter(PANICKING)).unwrap_err();
    assert!(matches!(&panicked, AttachError::Refused(why) if why.contains("a panic")));
    let strange = block_on(engine.attach([0; 32], PackedAdapter::new("something else", 0)));
    let strange = strange.unwrap_err();
    assert!(matches!(&strange, AttachError::Refused(why) if why.contains("another kind")));
    assert_eq!(attached.load(Ordering::Acquire), 0);
    assert_eq!(tokens(running), fake::greedy(&prompt, 200));
    let sql = attach(&engine, SQL).unwrap();
    let stream = engine.submit(adapted(&prompt, 5, &[(&sql, 1.0)])).unwrap();
    let expected = fake::greedy_with(&[(SQL, 1.0)], &prompt, 5);
    assert_eq!(tokens(stream), expected);
}

#[test]
fn a_backend_that_breaks_over_an_adapter_ends_the_engine_with_the_cause() {
    let options = FakeOptions {
        step_time: Duration::from_millis(1),
        ..FakeOptions::default()
    };
    let engine = start(64, options, EngineConfig::default());
    let running = engine.submit(greedy(&[60], 1_000)).unwrap();
    let broken = attach(&engine, FakeAdapter(FATAL)).unwrap_err();
    assert_eq!(broken, AttachError::Stopped);
    assert_eq!(collect(running).2, Some(GenerationError::EngineStopped));
    assert_eq!(engine.health(), Err("the device is gone".to_owned()));
    assert_eq!(attach(&engine, SQL), Err(AttachError::Stopped));
}

#[test]
fn adapters_of_others_and_scales_that_are_none_are_refused() {
    let (engine, other) = (plain(64), plain(64));
    let sql = attach(&engine, SQL).unwrap();
    let foreign = attach(&other, SQL).unwrap();
    let refused = |adapters: &[(&Adapter, f32)]| match engine.submit(adapted(&[50], 1, adapters)) {
        Err(SubmitError::Invalid(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[(&foreign, 1.0)]), InvalidRequest::ForeignAdapter);
    for scale in [10.5, -11.0, f32::INFINITY, f32::NAN] {
        let why = refused(&[(&sql, 1.0), (&sql, scale)]);
        assert!(matches!(why, InvalidRequest::AdapterScale { .. }), "{why}");
    }
    let mixed = vec![adapted(&[50], 1, &[(&sql, 1.0)]), greedy(&[50], 1)];
    assert_eq!(
        engine.submit_group(mixed).unwrap_err(),
        SubmitError::Invalid(InvalidRequest::MixedGroup)
    );
    let same = vec![adapted(&[50], 1, &[(&sql, 0.0)]), greedy(&[50], 1)];
    assert_eq!(engine.submit_group(same).unwrap().len(), 2);
}

#[test]
fn embeddings_run_with_adapters() {
    let engine = plain(64);
    let sql = attach(&engine, SQL).unwrap();
    let texts = vec![vec![50, 51, 52]];
    let embed = |adapters| block_on(engine.embed(texts.clone(), Pooling::Last, adapters)).unwrap();
    let (base, with) = (embed(Vec::new()), embed(vec![(sql.clone(), 1.0)]));
    assert_eq!(base[0], fake::hidden(&texts[0]));
    assert_ne!(base, with);
    assert_eq!(base, embed(vec![(sql, 0.0)]));
}

#[test]
fn an_adapter_does_not_keep_the_engine_running() {
    let engine = plain(64);
    let sql = attach(&engine, SQL).unwrap();
    let died = engine.died();
    drop(engine);
    assert_eq!(block_on(died), "the engine has stopped");
    drop(sql);
}
