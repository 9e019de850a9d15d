//! The errors that clients get of a gateway, as they are recorded for the suites of clients
//! (`worker/suites/recorded/gateway.json`). With `HYPRSTREAM_RECORD` set they are recorded anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{collections::BTreeMap, path::Path, time::Duration};

use axum::response::IntoResponse;
use common::{BODY, CHAT, Running, Worker, facts, raw_worker, table};
use http::StatusCode;
use hyprstream_gateway::{
    Config,
    table::{Hope, Table},
};
use serde_json::{Value, json};

/// A gateway with this configuration, in front of these models, asked with a body.
async fn error(config: Config, models: Table, body: &str) -> Value {
    let gateway = Running::start(config, models).await;
    let answer = gateway.post(CHAT, body.to_owned()).await;
    json!({"status": answer.status, "body": answer.json()})
}

#[tokio::test]
async fn the_errors_of_a_gateway_are_as_the_suites_of_clients_have_them() {
    let soon = || Config {
        hold_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let empty = || table(vec![(facts("a", "m"), vec![])]);
    let mut stalled = facts("a", "m");
    (stalled.hope, stalled.commit) = (Hope::None, None);
    (stalled.reason, stalled.message) = ("UnsupportedArchitecture".into(), "it is a Mamba".into());
    let lost = raw_worker("").await;
    let refusing = Worker::start(|_| async { StatusCode::UNAUTHORIZED.into_response() }).await;
    let silent = Worker::start(|_| std::future::pending()).await;
    let of = |endpoint| table(vec![(facts("a", "m"), vec![endpoint])]);
    let none_held = Config {
        max_held: 0,
        ..Config::default()
    };
    let no_requests = Config {
        max_requests: 0,
        ..Config::default()
    };
    let small = Config {
        max_body_bytes: 8,
        ..Config::default()
    };
    let hasty = Config {
        silence_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let all = [
        error(soon(), Table::default(), BODY).await,
        error(soon(), empty(), r#"{"model":"other","messages":[]}"#).await,
        error(soon(), empty(), "{").await,
        error(soon(), empty(), BODY).await,
        error(soon(), table(vec![(stalled, vec![])]), BODY).await,
        error(soon(), of(&lost), BODY).await,
        error(soon(), of(&refusing.endpoint), BODY).await,
        error(hasty, of(&silent.endpoint), BODY).await,
        error(none_held, empty(), BODY).await,
        error(no_requests, empty(), BODY).await,
        error(small, empty(), BODY).await,
    ];
    let count = all.len();
    let by_code: BTreeMap<String, Value> = all
        .into_iter()
        .map(|one| {
            let code = one["body"]["error"]["code"].as_str();
            (code.unwrap_or_else(|| panic!("{one}")).to_owned(), one)
        })
        .collect();
    assert_eq!(by_code.len(), count, "each has its code: {by_code:?}");
    let text = serde_json::to_string_pretty(&by_code).unwrap() + "\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/suites/recorded/gateway.json");
    if std::env::var_os("HYPRSTREAM_RECORD").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
    }
    let recorded = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        recorded, text,
        "run this test with HYPRSTREAM_RECORD=1, and the suite `litellm`"
    );
}
