//! `bench --serve` against a server.

use std::process::Output;

use serde_json::Value;
use tokio::process::Command;

use crate::server::Server;

async fn bench(url: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hyprstream-worker"))
        .args(["bench", "--json", "--serve", url, "--prompt-tokens", "8"])
        .args(more)
        .kill_on_drop(true)
        .output()
        .await
        .expect("the program starts")
}

async fn report(url: &str, more: &[&str]) -> Value {
    let output = bench(url, more).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).expect("a report")
}

#[tokio::test]
async fn every_token_of_a_loaded_server_is_counted() {
    let server = Server::start().await;
    for arrivals in [["--concurrency", "4"], ["--rate", "200"]] {
        let mut flags = vec!["--requests", "12", "--gen-tokens", "7"];
        flags.extend(arrivals);
        let report = report(&server.url, &flags).await;
        assert_eq!(report["failed"], 0, "{report}");
        assert_eq!(report["requests"], 12);
        assert_eq!(report["completion_tokens"], 12 * 7);
        assert!(report["prompt_tokens_mean"].as_f64().unwrap() > 8.0);
        assert!(report["first_token_seconds"]["p99"].as_f64().unwrap() > 0.0);
    }
}

#[tokio::test]
async fn refused_requests_are_failures_with_their_reason() {
    let server = Server::start().await;
    let flags = ["--requests", "3", "--gen-tokens", "1000000"];
    let report = report(&server.url, &flags).await;
    assert_eq!(report["failed"], 3);
    assert!(report["errors"][0][0].as_str().unwrap().starts_with("400"));
}

#[tokio::test]
async fn another_machine_is_not_loaded() {
    let output = bench("http://192.0.2.1:1", &[]).await;
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--allow-remote"), "{errors}");
}
