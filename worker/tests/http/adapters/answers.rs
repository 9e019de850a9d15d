//! Which answer a request gets.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    COMPLETIONS, EMBEDDINGS, Worker, ask, bodies, expected, header, slow, streamed_words, told,
    words,
};
use crate::server::parse;

#[tokio::test]
async fn each_way_to_name_adapters_answers_with_them_and_says_which() {
    let worker = Worker::start().await;
    let fields = |value: Value| json!({ "adapters": value });
    for (model, more, stack) in [
        ("fake", json!({}), &[][..]),
        ("fake", fields(Value::Null), &[]),
        ("fake", fields(json!([])), &[]),
        ("fake+sql", json!({}), &[("sql", 1.0)]),
        ("default/fake:main+sql@0.5", json!({}), &[("sql", 0.5)]),
        ("fake", fields(json!([{"name": "sql"}])), &[("sql", 1.0)]),
        (
            "fake",
            fields(json!([{"name": "sql", "scale": 0.8}])),
            &[("sql", 0.8)],
        ),
        ("sql", json!({}), &[("sql", 1.0)]),
        ("Tone_1.b", json!({}), &[("Tone_1.b", 1.0)]),
        (
            "fake+sql@2+Tone_1.b",
            fields(json!([{"name": "tone", "scale": -1}])),
            &[("sql", 2.0), ("Tone_1.b", 1.0), ("tone", -1.0)],
        ),
        ("fake+sql@0", json!({}), &[("sql", 0.0)]),
        (
            "fake",
            fields(json!([{"name": "sql", "scale": 0}])),
            &[("sql", 0.0)],
        ),
    ] {
        let ask = ask(model, &more);
        let (text, told) = worker.completion(&ask).await;
        assert_eq!(text, expected(stack, 12), "{ask}");
        assert_eq!(told, header(stack), "{ask}");
        let mut streamed = ask.clone();
        streamed["stream"] = true.into();
        let response = worker.server.post(COMPLETIONS, &streamed).await;
        assert_eq!(self::told(&response), header(stack), "{streamed}");
        let events = parse(&response.text().await.unwrap());
        let pieces = events
            .iter()
            .map(|event| event["choices"][0]["text"].as_str().unwrap());
        assert_eq!(pieces.collect::<String>(), text, "{streamed}");
        assert_eq!(events[0]["model"], model);
    }
}

#[tokio::test]
async fn every_endpoint_honours_adapters_also_in_a_stream() {
    let worker = Worker::start().await;
    let base = bodies("fake");
    let ways = [bodies("fake+sql"), bodies("sql"), bodies("fake")];
    for (at, (path, base)) in base.iter().enumerate() {
        let response = worker.server.post(path, base).await;
        assert_eq!(told(&response), None, "{path}");
        let without = words(path, &response.json().await.unwrap());
        let mut with = Vec::new();
        for (way, asks) in ways.iter().enumerate() {
            let mut ask = asks[at].1.clone();
            if way == 2 {
                ask["adapters"] = json!([{"name": "sql"}]);
            }
            let response = worker.server.post(path, &ask).await;
            assert_eq!(told(&response), header(&[("sql", 1.0)]), "{path}: {ask}");
            let json: Value = response.json().await.unwrap();
            assert_eq!(json["model"], ask["model"], "{path}");
            with.push(words(path, &json));
            if *path == EMBEDDINGS {
                continue;
            }
            ask["stream"] = true.into();
            let response = worker.server.post(path, &ask).await;
            assert_eq!(told(&response), header(&[("sql", 1.0)]), "{path}: {ask}");
            with.push(streamed_words(path, &response.text().await.unwrap()));
        }
        assert!(
            with.iter()
                .all(|words| *words == with[0] && *words != without),
            "{path}: {with:?}"
        );
    }
}

#[tokio::test]
async fn kinds_of_answers_mix_in_one_batch() {
    let setup = slow(Duration::from_millis(3));
    let steps = Arc::clone(&setup.fake.steps);
    let worker = Worker::with(setup).await;
    let kinds: [(&str, &[(&str, f32)]); 6] = [
        ("fake", &[]),
        ("sql", &[("sql", 1.0)]),
        ("fake+sql@0.5", &[("sql", 0.5)]),
        ("fake+tone", &[("tone", 1.0)]),
        ("fake+sql+tone@0.25", &[("sql", 1.0), ("tone", 0.25)]),
        ("fake+tone@0.25+sql", &[("tone", 0.25), ("sql", 1.0)]),
    ];
    let more = json!({"max_tokens": 64});
    let asks = kinds.iter().cycle().take(18);
    let answers = asks.map(async |(model, stack)| {
        let (text, told) = worker.completion(&ask(model, &more)).await;
        assert_eq!(text, expected(stack, 64), "{model}");
        assert_eq!(told, header(stack));
    });
    futures::future::join_all(answers).await;
    // One after the other they would have taken 18 times 64.
    let steps = steps.load(std::sync::atomic::Ordering::Acquire);
    assert!(steps < 6 * 64, "{steps}");
}

#[tokio::test]
async fn prompts_are_shared_under_the_same_adapters_and_under_no_others() {
    let worker = Worker::start().await;
    let cached = async |model: &str| {
        let json = worker
            .server
            .ask(COMPLETIONS, &ask(model, &json!({})))
            .await;
        json["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let kinds = [
        "fake",
        "sql",
        "fake+sql@0.5",
        "tone",
        "fake+sql+tone",
        "fake+tone+sql",
    ];
    for model in kinds {
        assert_eq!(cached(model).await, 0, "{model}");
    }
    for model in kinds
        .into_iter()
        .chain(["fake+sql", "fake+sql@1", "fake+sql@0"])
    {
        assert_eq!(cached(model).await, 32, "{model}");
    }
    // By another name it is the same, as its digest is.
    worker.load("again", "sql").await;
    assert_eq!(cached("again").await, 32);
}
