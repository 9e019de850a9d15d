//! Answers that follow a grammar.

use serde_json::{Value, json};

use super::*;
use crate::{Grammar, GrammarCompiler, GrammarLimits};

fn constrained(grammar: &Grammar, max_tokens: usize) -> Request {
    let compiler =
        GrammarCompiler::new(&fake::tokenizer(), fake::VOCAB_SIZE, &[fake::EOS]).unwrap();
    let constraint = compiler
        .compile_blocking(grammar, &GrammarLimits::default())
        .unwrap();
    Request {
        constraint: Some(constraint),
        ..greedy(&[5, 6], max_tokens)
    }
}

fn engine() -> EngineHandle {
    let config = EngineConfig {
        eos: vec![fake::EOS],
        ..Default::default()
    };
    start(256, FakeOptions::default(), config)
}

fn schema() -> Grammar {
    Grammar::JsonSchema(json!({
        "type": "object", "additionalProperties": false, "required": ["id", "tag"],
        "properties": {
            "id": {"type": "integer", "minimum": 0, "maximum": 999},
            "tag": {"enum": ["x", "y"]},
        },
    }))
}

#[test]
fn the_answer_is_what_the_schema_says_beside_free_ones() {
    let engine = engine();
    let free = engine.submit(greedy(&[7], 100)).unwrap();
    let mut request = constrained(&schema(), 200);
    request.sampling.temperature = 1.5;
    let streams: Vec<_> = (0..20)
        .map(|seed| {
            let mut request = request.clone();
            request.sampling.seed = Some(seed);
            engine.submit(request).unwrap()
        })
        .collect();
    for stream in streams {
        let (text, _, error, stats) = collect(stream);
        assert_eq!(
            (error, stats.finish_reason),
            (None, Some(FinishReason::Stop))
        );
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["id"].as_u64().unwrap() < 1000, "{text}");
    }
    assert_eq!(collect(free).1, fake::greedy(&[7], 100));
    comes_to_rest(&engine);
}

#[test]
fn an_answer_that_is_cut_says_so_and_a_complete_one_of_the_same_length_does_not() {
    let engine = engine();
    let grammar = Grammar::Regex("[abc]{8}".into());
    let cut = collect(engine.submit(constrained(&grammar, 5)).unwrap());
    assert_eq!(
        (cut.0.len(), cut.3.finish_reason),
        (5, Some(FinishReason::Length))
    );
    let whole = collect(engine.submit(constrained(&grammar, 8)).unwrap());
    assert_eq!(
        (whole.0.len(), whole.3.finish_reason),
        (8, Some(FinishReason::Stop))
    );
}

#[test]
fn a_grammar_that_leaves_nothing_ends_the_answer() {
    let engine = engine();
    let mut request = constrained(&Grammar::Choice(vec!["ab".into()]), 50);
    let b = fake::tokenizer().encode("b", false).unwrap()[0];
    request.sampling.bad_words = vec![vec![b]];
    let (text, _, error, stats) = collect(engine.submit(request).unwrap());
    assert_eq!((text.as_str(), error), ("a", None));
    assert_eq!(
        (stats.finish_reason, stats.completion_tokens),
        (Some(FinishReason::Stop), 1)
    );
    // The ending is forbidden, and nothing else is allowed.
    let mut request = constrained(&Grammar::Regex("a*".into()), 50);
    let a = fake::tokenizer().encode("a", false).unwrap()[0];
    request.sampling.bad_words = vec![vec![a, a]];
    request.stop.min_tokens = 10;
    let (text, _, error, stats) = collect(engine.submit(request).unwrap());
    assert_eq!((text.as_str(), error), ("a", None));
    assert_eq!(stats.finish_reason, Some(FinishReason::Stop));
    comes_to_rest(&engine);
}

#[test]
fn stop_texts_and_grammars_go_together() {
    let engine = engine();
    let mut request = constrained(&Grammar::Choice(vec!["abcdef".into()]), 50);
    request.stop.strings = vec!["de".into()];
    assert_eq!(collect(engine.submit(request.clone()).unwrap()).0, "abc");
    request.stop.strings = vec!["fg".into()];
    let held = collect(engine.submit(request).unwrap());
    assert_eq!(
        held.0, "abcdef",
        "what was held back for a stop text comes at the end"
    );
}

#[test]
fn prompts_of_constrained_answers_are_shared_and_lost_blocks_do_not_matter() {
    let config = EngineConfig {
        max_batch: 8,
        max_step_tokens: 20,
        eos: vec![fake::EOS],
        ..Default::default()
    };
    let engine = start(12, FakeOptions::default(), config);
    let grammar = Grammar::Regex("[a-m ]{60}".into());
    let mut request = constrained(&grammar, 100);
    request.prompt = vec![50; 40];
    let alone = collect(engine.submit(request.clone()).unwrap()).1;
    let streams: Vec<_> = (0..8)
        .map(|_| engine.submit(request.clone()).unwrap())
        .collect();
    for stream in streams {
        assert_eq!(collect(stream).1, alone);
    }
    comes_to_rest(&engine);
}
