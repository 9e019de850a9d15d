use hyprstream_engine::fake;
use serde_json::{Value, json};

use crate::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn prompt(server: &Server, body: &Value) -> String {
    let tokens = server.ask("/tokenize", body).await["tokens"].take();
    let text = server.ask("/detokenize", &json!({"tokens": tokens})).await;
    text["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_last_message_can_be_gone_on_with() {
    let server = Server::start().await;
    let ask = json!({"model": "fake", "continue_final_message": true, "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "The answer is "}]});
    assert_eq!(
        prompt(&server, &ask).await,
        "user: hi<|im_end|>assistant: The answer is "
    );
    let ask = json!({"model": "fake", "add_generation_prompt": false,
        "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(prompt(&server, &ask).await, "user: hi<|im_end|>");
}

#[tokio::test]
async fn variables_reach_a_template_that_knows_them_and_are_refused_by_others() {
    let server = Server::with(Setup {
        template: "{% if enable_thinking is defined and not enable_thinking %}quiet {% endif %}\
            {{ documents | length if documents else 'none' }}{{ messages[0].content }}",
        ..Setup::default()
    })
    .await;
    let ask = |extra: Value| {
        let mut ask = json!({"model": "fake", "messages": [{"role": "user", "content": "x"}]});
        for (name, value) in extra.as_object().unwrap() {
            ask[name] = value.clone();
        }
        ask
    };
    let quiet = ask(json!({"chat_template_kwargs": {"enable_thinking": false}}));
    assert_eq!(prompt(&server, &quiet).await, "quiet nonex");
    let quiet = ask(json!({"reasoning_effort": "none", "documents": [{"text": "d"}]}));
    assert_eq!(prompt(&server, &quiet).await, "quiet 1x");
    let plain = Server::start().await;
    for (extra, param) in [
        (
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            "chat_template_kwargs.enable_thinking",
        ),
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"documents": [{"text": "d"}]}), "documents"),
    ] {
        let error = plain.refused(CHAT, &ask(extra), 400).await;
        assert_eq!(error["param"], param);
    }
}

#[tokio::test]
async fn an_echo_with_logprobs_scores_the_prompt() {
    let server = Server::start().await;
    let tokens = fake::tokenizer().encode("hello there", true).unwrap();
    let count = tokens.len();
    for (max_tokens, stream) in [(0, false), (3, false), (3, true)] {
        let ask = json!({"model": "fake", "prompt": "hello there", "max_tokens": max_tokens,
            "echo": true, "logprobs": 1, "temperature": 0, "stream": stream});
        let mut columns: Vec<Vec<Value>> = vec![Vec::new(); 4];
        let mut text = String::new();
        let choices: Vec<Value> = if stream {
            server.events(COMPLETIONS, &ask).await
        } else {
            vec![server.ask(COMPLETIONS, &ask).await]
        };
        for choice in choices.iter().map(|answer| &answer["choices"][0]) {
            text.push_str(choice["text"].as_str().unwrap());
            let names = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
            for (column, name) in columns.iter_mut().zip(names) {
                column.extend(
                    choice["logprobs"][name]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .cloned(),
                );
            }
        }
        assert!(text.starts_with("hello there"), "{text}");
        for column in &columns {
            assert_eq!(column.len(), count + max_tokens, "{ask}");
        }
        assert_eq!(
            (&columns[1][0], &columns[2][0]),
            (&Value::Null, &Value::Null)
        );
        assert!(
            columns[1][1..]
                .iter()
                .all(|logprob| logprob.as_f64().unwrap() <= 0.0)
        );
        let joined: String = columns[0].iter().map(|t| t.as_str().unwrap()).collect();
        assert!(joined.starts_with("hello there"), "{joined}");
        assert_eq!(
            columns[3][1],
            columns[0][0].as_str().unwrap().chars().count()
        );
    }
    let ask = json!({"model": "fake", "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 2});
    let answer = server.ask(COMPLETIONS, &ask).await;
    let told = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (count, &Value::Null));
    assert!(told[1].as_object().unwrap().len() >= 2);
    let chat = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 1, "prompt_logprobs": 0});
    assert!(server.ask(CHAT, &chat).await["prompt_logprobs"].is_array());
}

#[tokio::test]
async fn the_best_of_several_are_told() {
    let server = Server::start().await;
    let ask = |best_of: usize| {
        json!({"model": "fake", "prompt": "a", "max_tokens": 4, "seed": 3,
        "temperature": 1.5, "n": 1, "best_of": best_of, "logprobs": 0})
    };
    let sum = |answer: &Value| -> f64 {
        let column = answer["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .clone();
        column.iter().map(|x| x.as_f64().unwrap()).sum()
    };
    let one = server.ask(COMPLETIONS, &ask(1)).await;
    let best = server.ask(COMPLETIONS, &ask(8)).await;
    assert_eq!(best["choices"].as_array().unwrap().len(), 1);
    assert_eq!(best["usage"]["completion_tokens"], 32);
    assert!(sum(&best) >= sum(&one));
}

#[tokio::test]
async fn what_steers_the_choice_of_tokens_is_honoured() {
    let server = Server::start().await;
    let base = json!({"model": "fake", "prompt": "a", "max_tokens": 12, "temperature": 0});
    let ask = |extra: Value| {
        let mut ask = base.clone();
        for (name, value) in extra.as_object().unwrap() {
            ask[name] = value.clone();
        }
        ask
    };
    let plain = server.ask(COMPLETIONS, &base).await["choices"][0]["text"].take();
    let plain = plain.as_str().unwrap();
    let allowed = ask(json!({"allowed_token_ids": [68, 69]}));
    let text = server.ask(COMPLETIONS, &allowed).await["choices"][0]["text"].take();
    assert!(
        text.as_str().unwrap().chars().all(|c| "AB".contains(c)),
        "{text}"
    );
    let word: String = plain.chars().take(1).collect();
    let without = ask(json!({"bad_words": [word]}));
    let text = server.ask(COMPLETIONS, &without).await["choices"][0]["text"].take();
    assert!(!text.as_str().unwrap().starts_with(&word), "{text}");
    for extra in [
        json!({"priority": -5}),
        json!({"cache_salt": "s"}),
        json!({"typical_p": 1.0}),
    ] {
        let text = server.ask(COMPLETIONS, &ask(extra)).await["choices"][0]["text"].take();
        assert_eq!(text, plain);
    }
    let timed = server
        .ask(COMPLETIONS, &ask(json!({"include_timings": true})))
        .await;
    assert!(
        timed["usage"]["timings"]["decode_seconds"].is_number(),
        "{timed}"
    );
}

#[tokio::test]
async fn counts_can_come_with_every_piece() {
    let server = Server::start().await;
    let ask = json!({"model": "fake", "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 5, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let events = server.events(CHAT, &ask).await;
    let counts: Vec<u64> = events
        .iter()
        .filter_map(|event| event["usage"]["completion_tokens"].as_u64())
        .collect();
    assert!(
        counts.is_sorted() && counts.last() == Some(&5),
        "{counts:?}"
    );
    let long = json!({"model": "fake", "prompt": vec![70; 200], "max_tokens": 1});
    server.ask(COMPLETIONS, &long).await;
    let again = server.ask(COMPLETIONS, &long).await;
    assert!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            >= 176
    );
    let hits = "vllm:prefix_cache_hits_total";
    server.metric_becomes(hits, |hits| hits >= 176.0).await;
}
