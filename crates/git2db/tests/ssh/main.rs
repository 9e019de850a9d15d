//! Private repositories over ssh, against a server of our own on the loopback interface.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod server;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use hyprstream_git2db::{
    Credentials, Reference, RemoteUrl,
    commit::{self, Author, Change, Content},
    remote,
    repo::{self, Fetch, History},
    store::ObjectStore,
};
use server::SshServer;
use support::Work;

fn repository() -> (Work, PathBuf) {
    let work = Work::new();
    work.write("a", "1").commit();
    let origin = work.origin();
    (work, origin)
}

#[test]
fn a_private_repository_is_resolved_fetched_and_pushed_with_a_key() {
    let server = SshServer::start();
    let (work, origin) = repository();
    let tip = work.write("a", "2").commit();
    let url = server.url(&origin);
    let credentials = server.credentials("user", server.known_hosts("host_ed25519"));
    let head = remote::resolve(&url, &Reference::Head, &credentials);
    assert_eq!(head.unwrap(), tip);
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("b.git");
    repo::init_bare(&bare).unwrap();
    let reference = Reference::Branch("main".into());
    let fetch = Fetch {
        url: &url,
        reference: &reference,
        commit: &tip,
        history: History::None,
        credentials: &credentials,
    };
    repo::fetch_commit(&bare, &fetch, &()).unwrap();
    assert!(repo::has_commit(&bare, &tip).unwrap());

    repo::set_reference(&bare, &reference, &tip).unwrap();
    let store = ObjectStore::open(&dir.path().join("store")).unwrap();
    let change = Change::Put {
        path: "b".into(),
        content: Content::Bytes(b"3".to_vec()),
        executable: false,
    };
    let staged = commit::stage(&bare, Some(&tip), &[change], &store).unwrap();
    let author = Author {
        name: "T".into(),
        email: "t@example.org".into(),
    };
    let made = commit::commit(&bare, "main", &staged, &author, "x").unwrap();
    commit::push(&bare, "main", &url, &credentials, &store, &()).unwrap();
    assert_eq!(
        remote::resolve(&url, &reference, &credentials).unwrap(),
        made
    );
}

#[test]
fn keys_of_every_kind_are_taken() {
    let server = SshServer::start();
    let (_work, origin) = repository();
    let url = server.url(&origin);
    for host_key in ["host_ed25519", "host_ecdsa", "host_rsa"] {
        let known_hosts = server.known_hosts(host_key);
        let locked = Credentials::SshKey {
            private_key: server.read("user_locked"),
            passphrase: Some("open sesame".into()),
            known_hosts: known_hosts.clone(),
        };
        let rsa = server.credentials("user_rsa", known_hosts);
        for credentials in [locked, rsa] {
            let head = remote::resolve(&url, &Reference::Head, &credentials);
            assert!(head.is_ok(), "{host_key}: {head:?}");
        }
    }
}

#[test]
fn hashed_known_hosts_are_understood() {
    let server = SshServer::start();
    let (_work, origin) = repository();
    let file = server.dir().join("hashed");
    fs::write(&file, server.known_hosts("host_ed25519")).unwrap();
    let status = Command::new("ssh-keygen")
        .args(["-q", "-H", "-f"])
        .arg(&file)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let hashed = fs::read_to_string(&file).unwrap();
    assert!(hashed.starts_with("|1|"), "{hashed}");
    let credentials = server.credentials("user", hashed);
    remote::resolve(&server.url(&origin), &Reference::Head, &credentials).unwrap();
}

#[test]
fn an_unknown_or_another_host_key_is_refused_before_the_key_is_used() {
    let server = SshServer::start();
    let (_work, origin) = repository();
    let url = server.url(&origin);
    let stranger = format!(
        "[127.0.0.1]:{} {}",
        server.port(),
        server.read("stranger.pub")
    );
    let elsewhere = format!("example.org {}", server.read("host_ed25519.pub"));
    for known_hosts in [
        stranger,
        elsewhere,
        String::new(),
        "\n".into(),
        "# nothing".into(),
    ] {
        let credentials = server.credentials("user", known_hosts.clone());
        let error = remote::resolve(&url, &Reference::Head, &credentials).unwrap_err();
        assert_eq!(
            error.reason(),
            "HostUnreachable",
            "{known_hosts:?}: {error}"
        );
        assert!(error.to_string().contains("not trusted"), "{error}");
    }
    assert_eq!(server.accepted(), 0);
}

#[test]
fn wrong_keys_and_missing_repositories_are_told_apart() {
    let server = SshServer::start();
    let (_work, origin) = repository();
    let url = server.url(&origin);
    let known_hosts = server.known_hosts("host_ed25519");
    let refused = |credentials: &Credentials| {
        remote::resolve(&url, &Reference::Head, credentials).unwrap_err()
    };
    for key in ["stranger", "user_locked"] {
        let error = refused(&server.credentials(key, known_hosts.clone()));
        assert_eq!(error.reason(), "AuthenticationFailed", "{key}: {error}");
    }
    let garbage = Credentials::SshKey {
        private_key: "garbage".into(),
        passphrase: None,
        known_hosts: known_hosts.clone(),
    };
    for credentials in [garbage, Credentials::None, Credentials::Token("t".into())] {
        let error = refused(&credentials);
        assert_eq!(error.reason(), "AuthenticationFailed", "{error}");
    }
    let missing = server.url(&origin.with_file_name("missing.git"));
    let credentials = server.credentials("user", known_hosts);
    let error = remote::resolve(&missing, &Reference::Head, &credentials).unwrap_err();
    assert_eq!(error.reason(), "RepositoryNotFound", "{error}");
}

#[test]
fn connections_at_once_each_have_their_own_known_hosts() {
    let server = SshServer::start();
    let (_work, origin) = repository();
    let url = server.url(&origin);
    let right = server.credentials("user", server.known_hosts("host_ed25519"));
    let wrong = format!(
        "[127.0.0.1]:{} {}",
        server.port(),
        server.read("stranger.pub")
    );
    let wrong = server.credentials("user", wrong);
    std::thread::scope(|scope| {
        for i in 0..12 {
            let (credentials, good) = if i % 2 == 0 {
                (&right, true)
            } else {
                (&wrong, false)
            };
            let url = &url;
            scope.spawn(move || {
                let head = remote::resolve(url, &Reference::Head, credentials);
                assert_eq!(head.is_ok(), good, "{head:?}");
            });
        }
    });
}

#[test]
fn a_server_that_says_nothing_keeps_no_other_from_being_asked() {
    let server = SshServer::start();
    let (_work, origin) = repository();
    let right = server.credentials("user", server.known_hosts("host_ed25519"));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let known = format!("[127.0.0.1]:{port} {}", server.read("stranger.pub"));
    let waiting = server.credentials("user", known);
    let nobody = RemoteUrl::parse(&format!("ssh://git@127.0.0.1:{port}/a")).unwrap();
    let is_answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let error = remote::resolve(&nobody, &Reference::Head, &waiting).unwrap_err();
                assert!(is_answered.load(Ordering::SeqCst), "ended before: {error}");
            });
        }
        // All of them have come as far as they ever will.
        let held: Vec<_> = silent.incoming().take(3).map(Result::unwrap).collect();
        let head = remote::resolve(&server.url(&origin), &Reference::Head, &right);
        is_answered.store(true, Ordering::SeqCst);
        drop(held);
        head.unwrap();
    });
}

#[test]
fn of_several_host_keys_the_one_that_is_known_is_asked_for() {
    let (_work, origin) = repository();
    for only in ["host_ed25519", "host_ecdsa", "host_rsa"] {
        let server = SshServer::with_host_keys(&[only]);
        let all: String = ["host_rsa", "host_ecdsa", "host_ed25519"]
            .map(|key| server.known_hosts(key))
            .concat();
        let credentials = server.credentials("user", all);
        remote::resolve(&server.url(&origin), &Reference::Head, &credentials).unwrap();
    }
}
