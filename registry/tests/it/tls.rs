//! TLS: the program itself, with stock git, and with the clients of our own parts.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant, SystemTime},
};

use hyprstream_git2db::{
    Credentials, Include, Reference, RemoteUrl, lfs, remote, repo, store::ObjectStore, tree,
    trust_only,
};
use hyprstream_tls::{Authority, Names, Trust};

use crate::{
    client::{Workspace, noise, oid},
    program::Program,
    server::ADMIN,
};

const DAY: Duration = Duration::from_hours(24);

fn authority() -> Authority {
    Authority::generate("test", SystemTime::now(), 100 * DAY).unwrap()
}

/// Writes what `by` signs for this machine, as the kubelet does: whole.
fn show(dir: &Path, by: &Authority) {
    let names = Names {
        hosts: BTreeSet::from(["localhost".to_owned()]),
        addresses: BTreeSet::from(["127.0.0.1".parse().unwrap()]),
    };
    let issued = by.issue(&names, SystemTime::now(), 10 * DAY).unwrap();
    for (name, text) in [("tls.crt", issued.certificate), ("tls.key", issued.key)] {
        std::fs::write(dir.join("new"), text).unwrap();
        std::fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }
}

fn start(dir: &Path, more: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-registry"));
    command
        .env("HYPRSTREAM_TLS_CERT", dir.join("tls.crt"))
        .env("HYPRSTREAM_TLS_KEY", dir.join("tls.key"));
    let authorities = dir.join("ca.crt");
    if authorities.exists() {
        // As the chart does, without a repository.
        command
            .env("HYPRSTREAM_OWN_URL", "https://registry.system.svc")
            .env("HYPRSTREAM_CA_FILE", authorities);
    }
    for name in more {
        command.env(name, "true");
    }
    Program::run(command, dir, 0)
}

fn https(program: &Program, path: &str) -> String {
    format!("https://any:{ADMIN}@{}/{path}", program.address)
}

/// Runs git with a file of authorities.
fn git(workspace: &Workspace, folder: &str, ca: &Path, arguments: &[&str]) -> Output {
    let mut git = workspace.command(folder, arguments);
    git.env("GIT_SSL_CAINFO", ca).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file with the certificates of these authorities.
fn bundle(dir: &Path, name: &str, of: &[&Authority]) -> std::path::PathBuf {
    let path = dir.join(name);
    let text: String = of
        .iter()
        .map(|by| by.issued().certificate.as_str())
        .collect();
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn stock_git_and_our_own_client_push_and_clone_with_large_files_over_https() {
    let dir = tempfile::tempdir().unwrap();
    let by = authority();
    show(dir.path(), &by);
    let ca = bundle(dir.path(), "ca.crt", &[&by]);
    let program = start(dir.path(), &[]);
    let workspace = Workspace::new();
    let commit = workspace.model("m", 300_000, 3);
    let url = https(&program, "git/a/m.git");
    let pushed = git(&workspace, "m", &ca, &["push", &url, "main"]);
    assert!(pushed.status.success(), "{}", said(&pushed));

    std::fs::create_dir(workspace.path("there")).unwrap();
    let cloned = git(&workspace, "there", &ca, &["clone", "-q", &url, "m"]);
    assert!(cloned.status.success(), "{}", said(&cloned));
    assert_eq!(workspace.read("there/m/weights.bin"), noise(300_000, 3));

    let plain = RemoteUrl::parse(&format!("https://{}/git/a/m.git", program.address)).unwrap();
    trust_only(&plain, Trust::open(ca).unwrap());
    let credentials = Credentials::Token(ADMIN.to_owned());
    let store = ObjectStore::open(&dir.path().join("store")).unwrap();
    let bare = dir.path().join("bare");
    repo::init_bare(&bare).unwrap();
    let reference = Reference::Branch("main".to_owned());
    let found = remote::resolve(&plain, &reference, &credentials).unwrap();
    assert_eq!(found.to_string(), commit);
    let fetch = repo::Fetch {
        url: &plain,
        reference: &reference,
        commit: &found,
        history: repo::History::None,
        credentials: &credentials,
    };
    repo::fetch_commit(&bare, &fetch, &()).unwrap();
    let files = tree::walk(&bare, &found, &Include::all(), &tree::Limits::default()).unwrap();
    let objects = tree::pointers(&files);
    let client = lfs::Client::new(&plain, &credentials, lfs::Options::default()).unwrap();
    client.download(&objects, &store, &()).unwrap();
    assert!(store.contains(&oid(&noise(300_000, 3)).parse().unwrap()));
}

#[test]
fn who_does_not_know_the_authority_goes_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let (by, other) = (authority(), authority());
    show(dir.path(), &by);
    let wrong = bundle(dir.path(), "wrong.crt", &[&other]);
    let program = start(dir.path(), &[]);
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.path("m")).unwrap();
    let url = https(&program, "git/a/m.git");
    let listed = git(&workspace, "m", &wrong, &["ls-remote", &url]);
    assert!(
        !listed.status.success() && said(&listed).contains("certificate"),
        "{}",
        said(&listed)
    );

    let plain = RemoteUrl::parse(&format!("https://{}/git/a/m.git", program.address)).unwrap();
    let credentials = Credentials::Token(ADMIN.to_owned());
    // By the system's authorities, and then by others that are not the right ones.
    let error = remote::list(&plain, &credentials, &()).unwrap_err();
    assert_eq!(error.reason(), "HostUnreachable", "{error:?}");
    trust_only(&plain, Trust::open(wrong).unwrap());
    let error = remote::list(&plain, &credentials, &()).unwrap_err();
    assert_eq!(error.reason(), "HostUnreachable", "{error:?}");
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        text.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(text.contains("certificate"), "{text}");
    trust_only(
        &plain,
        Trust::open(bundle(dir.path(), "ca.crt", &[&by])).unwrap(),
    );
    let error = remote::list(&plain, &credentials, &()).unwrap_err();
    assert_eq!(error.reason(), "RepositoryNotFound", "{error:?}");
}

#[test]
fn another_certificate_is_shown_without_a_restart_and_a_clone_goes_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    show(dir.path(), &old);
    let both = bundle(dir.path(), "both.crt", &[&old, &new]);
    let only_new = bundle(dir.path(), "new.crt", &[&new]);
    let program = start(dir.path(), &[]);
    let workspace = Workspace::new();
    workspace.model("m", 1000, 4);
    let url = https(&program, "git/a/m.git");
    let pushed = git(&workspace, "m", &both, &["push", &url, "main"]);
    assert!(pushed.status.success(), "{}", said(&pushed));
    show(dir.path(), &new);
    let begin = Instant::now();
    loop {
        let listed = git(&workspace, "m", &both, &["ls-remote", &url]);
        assert!(listed.status.success(), "{}", said(&listed));
        if git(&workspace, "m", &only_new, &["ls-remote", &url])
            .status
            .success()
        {
            break;
        }
        assert!(
            begin.elapsed() < Duration::from_mins(1),
            "it is never shown"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn plain_http_is_refused_with_the_reason_or_served_where_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let by = authority();
    show(dir.path(), &by);
    let program = start(dir.path(), &[]);
    let get = |program: &Program| {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let mut answer = agent.get(program.url("/healthz")).call().unwrap();
        let body = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), body)
    };
    let (status, body) = get(&program);
    assert!(
        status == 400 && body.contains("https://"),
        "{status} {body}"
    );
    drop(program);

    let program = start(dir.path(), &["HYPRSTREAM_ACCEPT_PLAIN"]);
    assert_eq!(get(&program).0, 200);
    let workspace = Workspace::new();
    workspace.model("m", 1000, 5);
    let ca = bundle(dir.path(), "ca.crt", &[&by]);
    // Large files go the way that the client came.
    for url in [
        https(&program, "git/a/m.git"),
        program.git_url("git/a/m.git"),
    ] {
        let pushed = git(&workspace, "m", &ca, &["push", &url, "main"]);
        assert!(pushed.status.success(), "{url}: {}", said(&pushed));
        std::fs::create_dir_all(workspace.path("there")).unwrap();
        let cloned = git(&workspace, "there", &ca, &["clone", "-q", &url, "m"]);
        assert!(cloned.status.success(), "{url}: {}", said(&cloned));
        std::fs::remove_dir_all(workspace.path("there")).unwrap();
    }
}
