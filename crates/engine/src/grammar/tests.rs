use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{fake, sampling::Allowed};

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(&fake::tokenizer(), fake::VOCAB_SIZE, &[fake::EOS]).unwrap()
}

fn compile(grammar: &Grammar) -> Result<Constraint, GrammarError> {
    compiler().compile_blocking(grammar, &GrammarLimits::default())
}

/// A text of the grammar: what `pick` chooses among the tokens that are possible, until the end.
fn walk(
    constraint: &Constraint,
    mut pick: impl FnMut(&[u32]) -> u32,
    most: usize,
) -> Option<String> {
    let mut matcher = constraint.start();
    let mut tokens = Vec::new();
    while tokens.len() < most {
        let one_by_one: Vec<_> = (0..fake::VOCAB_SIZE as u32)
            .filter(|token| matcher.allows(*token) == Ok(true))
            .collect();
        let allowed: Vec<u32> = match matcher.mask() {
            Ok(mask) => (0..fake::VOCAB_SIZE as u32)
                .filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1)
                .collect(),
            Err(MatcherError::Ended) => break,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(one_by_one, allowed, "after {tokens:?}");
        let token = pick(&allowed);
        assert!(allowed.contains(&token));
        if token == fake::EOS || matcher.accept(token).unwrap() {
            tokens.extend((token != fake::EOS).then_some(token));
            return Some(fake::tokenizer().decode(&tokens, false).unwrap());
        }
        tokens.push(token);
    }
    None
}

fn spell(constraint: &Constraint, text: &str) -> bool {
    let tokens = fake::tokenizer().encode(text, false).unwrap();
    let mut rest = tokens.iter().copied().chain([fake::EOS]);
    let mut matcher = constraint.start();
    rest.all(|token| {
        let Ok(mask) = matcher.mask() else {
            return token == fake::EOS;
        };
        mask[token as usize / 32] >> (token % 32) & 1 == 1 && matcher.accept(token).is_ok()
    })
}

fn person() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "b"]}},
        },
    })
}

#[test]
fn each_kind_of_grammar_allows_its_texts_and_no_others() {
    for (grammar, good, bad) in [
        (
            Grammar::JsonSchema(person()),
            vec![
                r#"{"name": "Ann", "age": 7}"#,
                r#"{"name":"é","age":150,"tags":["a","b"]}"#,
            ],
            vec![
                r#"{"name": "Ann"}"#,
                r#"{"name":"A","age":151}"#,
                "{}",
                r#"{"x":1}"#,
                "{ \n",
            ],
        ),
        (
            Grammar::JsonObject,
            vec!["{}", r#"{"a": [1, {"b": null}]}"#],
            vec!["[]", "1", "{} x"],
        ),
        (
            Grammar::Regex("[ab]{2}c?".into()),
            vec!["ab", "bac"],
            vec!["a", "abcc", "xab"],
        ),
        (
            Grammar::Choice(vec!["yes".into(), "no \"é\"\\".into()]),
            vec!["yes", "no \"é\"\\"],
            vec!["y", "yess", "no"],
        ),
        (
            Grammar::Lark("start: \"x\" start \"y\" | \"z\"".into()),
            vec!["z", "xxzyy"],
            vec!["xz", "xxzy", "y"],
        ),
    ] {
        let constraint = compile(&grammar).unwrap();
        for text in good {
            assert!(spell(&constraint, text), "{grammar:?} allows {text}");
        }
        for text in bad {
            assert!(!spell(&constraint, text), "{grammar:?} forbids {text}");
        }
    }
}

#[test]
fn special_tokens_are_no_text() {
    let constraint = compile(&Grammar::Regex("(.|\\n)*".into())).unwrap();
    let mut matcher = constraint.start();
    let mask = matcher.mask().unwrap();
    let allowed = |token: u32| mask[0] >> token & 1 == 1;
    assert!(!allowed(fake::BOS) && !allowed(2));
    assert!(allowed(fake::EOS), "an empty text is complete");
}

#[test]
fn mistakes_are_told_and_excess_is_refused() {
    let deep = (0..100).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "array", "items": inner}),
    );
    let limits = GrammarLimits {
        max_bytes: 1000,
        ..GrammarLimits::default()
    };
    for (grammar, what) in [
        (Grammar::JsonSchema(deep), "nesting"),
        (
            Grammar::Regex("(".repeat(100) + &")".repeat(100)),
            "nesting",
        ),
        (Grammar::Regex("a".repeat(1001)), "length in bytes"),
        (Grammar::Choice(vec!["a".repeat(600); 2]), "length in bytes"),
    ] {
        match compiler().compile_blocking(&grammar, &limits) {
            Err(GrammarError::TooLarge { what: told, .. }) => assert_eq!(told, what),
            other => panic!("{other:?}"),
        }
    }
    for grammar in [
        Grammar::Regex("a(".into()),
        Grammar::Lark("start: nothing".into()),
        Grammar::Lark(String::new()),
        Grammar::Choice(Vec::new()),
        Grammar::Choice(vec![String::new()]),
        Grammar::JsonSchema(json!({"type": "wrong"})),
        Grammar::JsonSchema(json!({"$ref": "https://example.com/x"})),
        Grammar::JsonSchema(json!({"not": {"type": "string"}})),
        Grammar::JsonSchema(json!(7)),
    ] {
        match compile(&grammar) {
            Err(GrammarError::Invalid(why)) => assert!(!why.is_empty() && why.len() <= 1200),
            other => panic!("{grammar:?}: {other:?}"),
        }
    }
}

/// vLLM's CVE-2025-48944: a pattern or a type of a tool took the server down.
#[test]
fn cve_2025_48944_a_hostile_pattern_is_an_error_in_bounded_time() {
    for grammar in [
        Grammar::JsonSchema(json!({"type": "string", "pattern": "((a{0,999}){0,999}){0,999}"})),
        Grammar::Regex("(((a{999}){999}){999}){999}".into()),
        Grammar::Regex("(x+x+)+y".into()),
        // Small until they are walked: every position of the text is another state.
        Grammar::Regex("(a{1,9999}){1,9999}".into()),
        Grammar::Regex("(.{0,100}a){0,50}b".into()),
        Grammar::JsonSchema(json!({"type": "object", "properties": {"a": {"type": []}}})),
    ] {
        let started = std::time::Instant::now();
        let limits = GrammarLimits {
            timeout: Duration::from_secs(2),
            ..GrammarLimits::default()
        };
        if let Ok(constraint) = compiler().compile_blocking(&grammar, &limits) {
            let mut matcher = constraint.start();
            let a = fake::tokenizer().encode("a", false).unwrap()[0];
            // It may fail, with an error that ends this answer alone.
            (0..100).all(|_| matcher.mask().is_ok() && matcher.accept(a).is_ok());
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{grammar:?}");
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(future)
}

#[test]
fn who_leaves_while_waiting_for_a_turn_leaves_nothing_behind() {
    let compiler = compiler();
    let turns = compiler.turns();
    let most = turns.available_permits();
    let limits = GrammarLimits {
        timeout: Duration::from_millis(50),
        ..GrammarLimits::default()
    };
    run(async {
        // As slow grammars would do, whose clients left.
        let slow = turns.acquire_many(most as u32).await.unwrap();
        let waiting: Vec<_> = (0..100)
            .map(|i| {
                let grammar = Grammar::Regex(format!("x{{{i}}}"));
                let compiler = compiler.clone();
                let mut future = async move { compiler.compile(&grammar, &limits).await }.boxed();
                assert!(future.as_mut().now_or_never().is_none(), "it waits");
                future
            })
            .collect();
        drop(waiting);
        let late = compiler
            .compile(&Grammar::Regex("late".into()), &limits)
            .await;
        assert_eq!(late.unwrap_err(), GrammarError::Busy);
        drop(slow);
        assert_eq!(turns.available_permits(), most, "no one took a turn");
        let limits = GrammarLimits::default();
        compiler
            .compile(&Grammar::Regex("x".into()), &limits)
            .await
            .unwrap();
    });
}

#[test]
fn the_same_grammar_is_compiled_once_for_all_who_wait() {
    let compiler = compiler();
    let (grammar, limits) = (Grammar::JsonSchema(person()), GrammarLimits::default());
    let all = run(futures::future::join_all(
        (0..10).map(|_| compiler.compile(&grammar, &limits)),
    ));
    let first = all[0].clone().unwrap();
    for other in all {
        assert!(first.is_same(&other.unwrap()));
    }
}

#[test]
fn what_was_compiled_is_kept_and_only_so_much() {
    let compiler = compiler();
    let limits = GrammarLimits::default();
    let grammar = |i: usize| Grammar::Regex(format!("x{{{i}}}"));
    let first = compiler.compile_blocking(&grammar(1), &limits).unwrap();
    let again = compiler.compile_blocking(&grammar(1), &limits).unwrap();
    assert!(first.is_same(&again));
    for i in 2..40 {
        compiler.compile_blocking(&grammar(i), &limits).unwrap();
    }
    let later = compiler.compile_blocking(&grammar(1), &limits).unwrap();
    assert!(!first.is_same(&later), "the oldest is gone");
    assert!(
        spell(&first, "x") && spell(&later, "x"),
        "and still works for who has it"
    );
}

#[test]
fn a_grammar_that_nothing_satisfies_ends() {
    // After "a" only a character could follow that no token can write.
    let constraint = compile(&Grammar::Lark("start: \"a\" <|im_end|>".into()));
    let Ok(constraint) = constraint else {
        return;
    };
    let mut matcher = constraint.start();
    let a = fake::tokenizer().encode("a", false).unwrap()[0];
    matcher.mask().unwrap();
    assert!(!matcher.accept(a).unwrap());
    let mask = matcher.mask().unwrap();
    assert_eq!(
        (mask[0], mask[1..].iter().max()),
        (1 << 2, Some(&0)),
        "the special token alone"
    );
    assert!(matcher.accept(2).unwrap());
    assert_eq!(matcher.mask(), Err(MatcherError::Ended));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn whatever_is_picked_the_json_is_what_the_schema_says(seed in any::<u64>()) {
        let constraint = compile(&Grammar::JsonSchema(person())).unwrap();
        let mut state = seed | 1;
        let pick = |allowed: &[u32]| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            allowed[(state >> 33) as usize % allowed.len()]
        };
        let text = walk(&constraint, pick, 2000);
        let text = text.expect("everything in it is bounded");
        let value: Value = serde_json::from_str(&text).unwrap();
        prop_assert!(value["name"].as_str().unwrap().chars().count() <= 8);
        prop_assert!(value["age"].as_u64().unwrap() <= 150);
    }
}
