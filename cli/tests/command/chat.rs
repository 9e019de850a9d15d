//! Serving and talking, on SmolLM2.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::Stdio,
};

use serde_json::Value;

use crate::support::{Place, Ran};

const QUESTION: &str = "What is the capital of France?";

/// The folder of SmolLM2, which the whole run of tests provides.
fn smollm2() -> Option<PathBuf> {
    let folder = std::env::var_os("HYPRSTREAM_SMOLLM2").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("not run: HYPRSTREAM_SMOLLM2 names no folder");
    }
    folder
}

#[test]
fn a_model_is_cloned_served_and_asked_by_its_url_its_name_and_its_folder() {
    let Some(folder) = smollm2() else { return };
    let place = Place::new();
    std::fs::create_dir(place.path("model")).unwrap();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), place.path("model").join(entry.file_name())).unwrap();
    }
    place.git("model", &["init", "--quiet", "--initial-branch=main"]);
    place.git("model", &["lfs", "install", "--local"]);
    place.git("model", &["lfs", "track", "*.safetensors"]);
    place.git("model", &["add", "--all"]);
    place.git("model", &["commit", "--quiet", "--message", "SmolLM2"]);
    let commit = place.git("model", &["rev-parse", "HEAD"]);
    let url = format!("file://{}", place.path("model/.git").display());

    for reference in [
        url.as_str(),
        "model",
        "model:main",
        &format!("model:main:{}", &commit[..8]),
        "./model",
    ] {
        let told = place.json(
            ".",
            &[
                "chat",
                reference,
                "--prompt",
                QUESTION,
                "--temperature",
                "0",
            ],
        );
        assert_eq!(told["content"], "The capital of France is Paris.", "{told}");
    }
    assert_eq!(place.json(".", &["list"]).as_array().unwrap().len(), 1);

    let mut server = place
        .command(env!("CARGO_BIN_EXE_hyprstream"))
        .args(["serve", "model", "--port", "0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap());
    let mut told = String::new();
    while !told.trim_end().ends_with('}') {
        assert!(lines.read_line(&mut told).unwrap() > 0, "{told}");
    }
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["commit"], commit);
    let endpoint = told["endpoint"].as_str().unwrap();
    let address = endpoint
        .trim_start_matches("http://")
        .trim_end_matches("/v1");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /v1/models HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&commit), "{answer}");

    // Another program of the same kind talks with it.
    let told = place.json(
        ".",
        &[
            "chat",
            "model",
            "--endpoint",
            endpoint,
            "-p",
            QUESTION,
            "--temperature",
            "0",
        ],
    );
    assert_eq!(told["content"], "The capital of France is Paris.");
    let ran = place.run(&["chat", "other", "--endpoint", endpoint, "-p", QUESTION]);
    assert_eq!(ran.code, 3, "{ran:?}");

    rustix::process::kill_process(
        rustix::process::Pid::from_child(&server),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_question_may_come_through_a_pipe_and_an_adapter_that_is_missing_is_named() {
    let Some(folder) = smollm2() else { return };
    let place = Place::new();
    let folder = folder.to_str().unwrap();
    let mut chat = place
        .command(env!("CARGO_BIN_EXE_hyprstream"))
        .args(["chat", folder, "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    write!(chat.stdin.take().unwrap(), "{QUESTION}").unwrap();
    let ran = Ran::of(&chat.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "The capital of France is Paris.\n");

    let ran = place.run(&["chat", &format!("{folder}+sql@0.5"), "-p", QUESTION]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("sql"), "{ran:?}");
}
