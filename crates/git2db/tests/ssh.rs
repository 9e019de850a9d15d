//! Private repositories over ssh, against a real sshd on the loopback interface.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cloned_ref_to_slice_refs
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyprstream_git2db::{
    Credentials, Reference, RemoteUrl,
    commit::{self, Author, Change, Content},
    remote,
    repo::{self, Fetch, History},
    store::ObjectStore,
};
use support::Work;

struct Sshd {
    process: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn keygen(path: &Path, args: &[&str]) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-f"])
        .arg(path)
        .args(args)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

impl Sshd {
    /// `None`, said aloud, where there is no sshd.
    fn start() -> Option<Self> {
        let binary = Path::new("/usr/sbin/sshd");
        if !binary.exists() {
            eprintln!("skipped: sshd is not installed (apt-get install openssh-server)");
            return None;
        }
        // Its folder for separated privileges, which only its service makes.
        if rustix::process::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        keygen(&at("host_ed25519"), &["-t", "ed25519", "-N", ""]);
        keygen(&at("host_ecdsa"), &["-t", "ecdsa", "-N", ""]);
        keygen(&at("host_rsa"), &["-t", "rsa", "-b", "2048", "-N", ""]);
        keygen(&at("user"), &["-t", "ed25519", "-N", ""]);
        keygen(&at("user_locked"), &["-t", "ed25519", "-N", "open sesame"]);
        keygen(
            &at("user_rsa"),
            &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""],
        );
        keygen(&at("stranger"), &["-t", "ed25519", "-N", ""]);
        let allowed: String = ["user", "user_locked", "user_rsa"]
            .iter()
            .map(|name| fs::read_to_string(at(&format!("{name}.pub"))).unwrap())
            .collect();
        fs::write(at("authorized_keys"), allowed).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let show = |name: &str| at(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nHostKey {}\nHostKey {}\n\
             AuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin yes\nPasswordAuthentication no\nMaxStartups 100\n",
            show("host_ed25519"),
            show("host_ecdsa"),
            show("host_rsa"),
            show("authorized_keys"),
        );
        fs::write(at("config"), config).unwrap();
        let process = Command::new(binary)
            .args(["-D", "-e", "-f"])
            .arg(at("config"))
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let sshd = Self { process, dir, port };
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < until,
                "sshd does not start: {}",
                sshd.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(sshd)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    fn log(&self) -> String {
        self.read("log")
    }

    fn url(&self, repo: &Path) -> RemoteUrl {
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let text = format!(
            "ssh://{}@127.0.0.1:{}{}",
            user.trim(),
            self.port,
            repo.display()
        );
        RemoteUrl::parse(&text).unwrap()
    }

    fn known_hosts(&self, key: &str) -> String {
        format!(
            "[127.0.0.1]:{} {}",
            self.port,
            self.read(&format!("{key}.pub"))
        )
    }

    fn credentials(&self, key: &str, known_hosts: String) -> Credentials {
        Credentials::SshKey {
            private_key: self.read(key),
            passphrase: None,
            known_hosts,
        }
    }
}

fn repository() -> (Work, PathBuf) {
    let work = Work::new();
    work.write("a", "1").commit();
    let origin = work.origin();
    (work, origin)
}

#[test]
fn a_private_repository_is_resolved_fetched_and_pushed_with_a_key() {
    let Some(sshd) = Sshd::start() else { return };
    let (work, origin) = repository();
    let tip = work.write("a", "2").commit();
    let url = sshd.url(&origin);
    let credentials = sshd.credentials("user", sshd.known_hosts("host_ed25519"));
    let head = remote::resolve(&url, &Reference::Head, &credentials);
    assert_eq!(head.unwrap_or_else(|e| panic!("{e}: {}", sshd.log())), tip);
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
    let Some(sshd) = Sshd::start() else { return };
    let (_work, origin) = repository();
    let url = sshd.url(&origin);
    for host_key in ["host_ed25519", "host_ecdsa", "host_rsa"] {
        let known_hosts = sshd.known_hosts(host_key);
        let locked = Credentials::SshKey {
            private_key: sshd.read("user_locked"),
            passphrase: Some("open sesame".into()),
            known_hosts: known_hosts.clone(),
        };
        let rsa = sshd.credentials("user_rsa", known_hosts);
        for credentials in [locked, rsa] {
            let head = remote::resolve(&url, &Reference::Head, &credentials);
            assert!(head.is_ok(), "{host_key}: {head:?} {}", sshd.log());
        }
    }
}

#[test]
fn hashed_known_hosts_are_understood() {
    let Some(sshd) = Sshd::start() else { return };
    let (_work, origin) = repository();
    let file = sshd.dir.path().join("hashed");
    fs::write(&file, sshd.known_hosts("host_ed25519")).unwrap();
    let status = Command::new("ssh-keygen")
        .args(["-q", "-H", "-f"])
        .arg(&file)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let hashed = fs::read_to_string(&file).unwrap();
    assert!(hashed.starts_with("|1|"), "{hashed}");
    let credentials = sshd.credentials("user", hashed);
    remote::resolve(&sshd.url(&origin), &Reference::Head, &credentials).unwrap();
}

#[test]
fn an_unknown_or_another_host_key_is_refused_before_the_key_is_used() {
    let Some(sshd) = Sshd::start() else { return };
    let (_work, origin) = repository();
    let url = sshd.url(&origin);
    let stranger = format!("[127.0.0.1]:{} {}", sshd.port, sshd.read("stranger.pub"));
    let elsewhere = format!("example.org {}", sshd.read("host_ed25519.pub"));
    for known_hosts in [
        stranger,
        elsewhere,
        String::new(),
        "\n".into(),
        "# nothing".into(),
    ] {
        let credentials = sshd.credentials("user", known_hosts.clone());
        let error = remote::resolve(&url, &Reference::Head, &credentials).unwrap_err();
        assert_eq!(
            error.reason(),
            "HostUnreachable",
            "{known_hosts:?}: {error}"
        );
        assert!(error.to_string().contains("not trusted"), "{error}");
    }
    assert!(!sshd.log().contains("Accepted publickey"), "{}", sshd.log());
}

#[test]
fn wrong_keys_and_missing_repositories_are_told_apart() {
    let Some(sshd) = Sshd::start() else { return };
    let (_work, origin) = repository();
    let url = sshd.url(&origin);
    let known_hosts = sshd.known_hosts("host_ed25519");
    let refused = |credentials: &Credentials| {
        remote::resolve(&url, &Reference::Head, credentials).unwrap_err()
    };
    for key in ["stranger", "user_locked"] {
        let error = refused(&sshd.credentials(key, known_hosts.clone()));
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
    let missing = sshd.url(&origin.with_file_name("missing.git"));
    let credentials = sshd.credentials("user", known_hosts);
    let error = remote::resolve(&missing, &Reference::Head, &credentials).unwrap_err();
    assert_eq!(error.reason(), "RepositoryNotFound", "{error}");
}

#[test]
fn connections_at_once_each_have_their_own_known_hosts() {
    let Some(sshd) = Sshd::start() else { return };
    let (_work, origin) = repository();
    let url = sshd.url(&origin);
    let right = sshd.credentials("user", sshd.known_hosts("host_ed25519"));
    let wrong = format!("[127.0.0.1]:{} {}", sshd.port, sshd.read("stranger.pub"));
    let wrong = sshd.credentials("user", wrong);
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
