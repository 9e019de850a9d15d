use serde_json::{Value, json};

use super::*;
use crate::ApiError;

fn read(body: &Value) -> Result<CompletionRequest, ApiError> {
    CompletionRequest::from_json(&serde_json::to_vec(body).unwrap())
}

#[test]
fn every_form_of_a_prompt_is_read() {
    let text = |t: &str| Prompt::Text(t.to_owned());
    for (prompt, expected) in [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (
            json!([[1], [2, 3]]),
            vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
        ),
    ] {
        let request = read(&json!({"model": "m", "prompt": prompt})).unwrap();
        assert_eq!(request.prompts, expected);
        assert_eq!(request.max_tokens, 16);
    }
}

#[test]
fn what_is_no_prompt_is_refused() {
    for prompt in [
        json!([]),
        json!({}),
        json!(1),
        json!([1, "a"]),
        json!([-1]),
        json!([[1.5]]),
    ] {
        let error = read(&json!({"model": "m", "prompt": prompt})).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("prompt"), "{prompt}");
    }
    let error = read(&json!({"model": "m"})).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("prompt"));
}

#[test]
fn cve_2026_34756_fan_out_is_capped_before_it_fans_out() {
    for (extra, param) in [
        (json!({"prompt": vec!["a"; 65]}), "prompt"),
        (json!({"prompt": vec!["a"; 64], "n": 8}), "n"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 2, "stream": true}), "best_of"),
        (json!({"best_of": 2, "n": 3}), "best_of"),
        (json!({"best_of": 9}), "best_of"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs"),
        (
            json!({"prompt_logprobs": 1, "stream": true}),
            "prompt_logprobs",
        ),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"bad_words": [""]}), "bad_words"),
        (json!({"adapters": [{"scale": 1}]}), "adapters[0].name"),
        (json!({"priority": 1e12}), "priority"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"messages": []}), "messages"),
    ] {
        let mut body = json!({"model": "m", "prompt": "a"});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let error = read(&body).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{extra}: {error}");
    }
}
