//! Servers and clients over loopback, and files that change under them.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn authority() -> Authority {
    Authority::generate("test", SystemTime::now(), 365 * DAY).unwrap()
}

fn names(hosts: &[&str]) -> Names {
    Names {
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        addresses: BTreeSet::from(["127.0.0.1".parse().unwrap()]),
    }
}

fn leaf(by: &Authority) -> Issued {
    by.issue(&names(&["registry"]), SystemTime::now(), 90 * DAY)
        .unwrap()
}

/// As the kubelet does: a folder aside, and a link that is renamed onto the one of before.
fn publish(folder: &Path, version: &str, files: &[(&str, &str)]) {
    let aside = folder.join(version);
    std::fs::create_dir(&aside).unwrap();
    for (name, text) in files {
        std::fs::write(aside.join(name), text).unwrap();
        let link = folder.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
    std::os::unix::fs::symlink(version, folder.join("..tmp")).unwrap();
    std::fs::rename(folder.join("..tmp"), folder.join("..data")).unwrap();
}

fn publish_leaf(folder: &Path, version: &str, leaf: &Issued) {
    let files = [("tls.crt", &*leaf.certificate), ("tls.key", &*leaf.key)];
    publish(folder, version, &files);
}

fn identity(folder: &Path) -> ServerIdentity {
    ServerIdentity::open(folder.join("tls.crt"), folder.join("tls.key"))
        .unwrap()
        .looking_every(Duration::ZERO)
}

fn handshakes(leaf: &Issued) -> Handshakes {
    let folder = tempfile::tempdir().unwrap();
    publish_leaf(folder.path(), "1", leaf);
    let identity =
        ServerIdentity::open(folder.path().join("tls.crt"), folder.path().join("tls.key"));
    Handshakes::new(&identity.unwrap(), 4, Duration::from_secs(5))
}

/// Serves one connection: says back what it hears.
async fn echo(
    handshakes: Handshakes,
) -> (
    std::net::SocketAddr,
    tokio::task::JoinHandle<Result<(), HandshakeError>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = handshakes.accept(stream).await?;
        let (mut from, mut to) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut from, &mut to).await;
        Ok(())
    });
    (address, served)
}

/// What a client that believes `trust` and calls the server `host` hears of it.
async fn call(handshakes: Handshakes, trust: &Trust, host: &str) -> Result<String, String> {
    let (address, _served) = echo(handshakes).await;
    let connector = TlsConnector::from(Arc::new(trust.client_config()));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| error.to_string())?;
    stream.write_all(b"hello").await.unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn trust(authority: &Authority) -> Trust {
    Trust::fixed(authority.issued().certificate.as_bytes(), "test").unwrap()
}

#[track_caller]
fn refused(answer: Result<String, String>, why: &str) {
    let error = answer.expect_err("it is believed");
    assert!(error.contains(why), "{error}");
}

#[tokio::test]
async fn who_trusts_the_authority_talks_to_the_server() {
    let by = authority();
    for host in ["registry", "127.0.0.1"] {
        let answer = call(handshakes(&leaf(&by)), &trust(&by), host).await;
        assert_eq!(answer.as_deref(), Ok("hello"), "{host}");
    }
}

#[tokio::test]
async fn another_authority_another_name_and_another_time_are_refused() {
    let by = authority();
    let other = trust(&authority());
    refused(
        call(handshakes(&leaf(&by)), &other, "registry").await,
        "UnknownIssuer",
    );
    let answer = call(handshakes(&leaf(&by)), &trust(&by), "gateway").await;
    refused(answer, "not valid for name");
    let before = SystemTime::now() - 3 * DAY;
    let old = by.issue(&names(&["registry"]), before, DAY).unwrap();
    let answer = call(handshakes(&old), &trust(&by), "registry").await;
    refused(answer, "expired");
    let later = SystemTime::now() + 3 * DAY;
    let early = by.issue(&names(&["registry"]), later, DAY).unwrap();
    let answer = call(handshakes(&early), &trust(&by), "registry").await;
    refused(answer, "not valid yet");
    let nobody = Trust::shared();
    refused(
        call(handshakes(&leaf(&by)), &nobody, "registry").await,
        "not known yet",
    );
}

#[tokio::test]
async fn what_was_issued_signs_nothing_itself() {
    let by = authority();
    let middle = leaf(&by);
    assert!(Authority::read(&middle.certificate, &middle.key, "a leaf").is_err());
}

#[tokio::test]
async fn a_server_shows_what_its_files_have_now() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (authority(), authority());
    publish_leaf(folder.path(), "1", &leaf(&first));
    let identity = identity(folder.path());
    let handshakes = Handshakes::new(&identity, 4, Duration::from_secs(5));
    let answer = call(handshakes.clone(), &trust(&first), "registry").await;
    assert!(answer.is_ok(), "{answer:?}");

    publish_leaf(folder.path(), "2", &leaf(&second));
    let answer = call(handshakes.clone(), &trust(&second), "registry").await;
    assert!(answer.is_ok(), "{answer:?}");

    // A key that is not the certificate's changes nothing, nor do files that are gone.
    let (a, b) = (leaf(&first), leaf(&first));
    let files = [("tls.crt", &*a.certificate), ("tls.key", &*b.key)];
    publish(folder.path(), "3", &files);
    let answer = call(handshakes.clone(), &trust(&second), "registry").await;
    assert!(answer.is_ok(), "{answer:?}");
    std::fs::remove_file(folder.path().join("..data")).unwrap();
    let answer = call(handshakes, &trust(&second), "registry").await;
    assert!(answer.is_ok(), "{answer:?}");
}

#[tokio::test]
async fn a_client_believes_what_its_file_has_now() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (authority(), authority());
    let (of_old, of_new) = (&*old.issued().certificate, &*new.issued().certificate);
    publish(folder.path(), "1", &[("ca.crt", of_old)]);
    let trust = Trust::open(folder.path().join("ca.crt"))
        .unwrap()
        .looking_every(Duration::ZERO);
    let from_new = || call(handshakes(&leaf(&new)), &trust, "registry");
    refused(from_new().await, "UnknownIssuer");
    publish(
        folder.path(),
        "2",
        &[("ca.crt", &format!("{of_old}{of_new}"))],
    );
    assert!(from_new().await.is_ok());
    assert!(
        call(handshakes(&leaf(&old)), &trust, "registry")
            .await
            .is_ok()
    );
    publish(folder.path(), "3", &[("ca.crt", of_new)]);
    refused(
        call(handshakes(&leaf(&old)), &trust, "registry").await,
        "UnknownIssuer",
    );
    // A bundle of nothing would shut everybody out: it is not taken.
    publish(folder.path(), "4", &[("ca.crt", "")]);
    assert!(from_new().await.is_ok());
}

#[tokio::test]
async fn a_shared_trust_changes_for_all_who_have_it() {
    let by = authority();
    let trust = Trust::shared();
    let config = trust.client_config();
    assert!(trust.set("nonsense").is_err());
    trust.set(&by.issued().certificate).unwrap();
    let (address, _served) = echo(handshakes(&leaf(&by))).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("registry").unwrap();
    let connected = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    assert!(connected.is_ok(), "{connected:?}");
}

#[tokio::test]
async fn plain_http_is_told_to_use_https_or_is_served_where_that_is_accepted() {
    let by = authority();
    let (address, served) = echo(handshakes(&leaf(&by))).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    let body = said.split("\r\n\r\n").nth(1).unwrap();
    assert!(body.contains("https://"), "{said}");
    assert!(
        said.contains(&format!("Content-Length: {}\r\n", body.len())),
        "{said}"
    );
    assert!(matches!(served.await.unwrap(), Err(HandshakeError::Plain)));

    let both = handshakes(&leaf(&by)).accepting_plain(true);
    let (address, _served) = echo(both.clone()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /").await.unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"GET /");
    assert!(call(both, &trust(&by), "registry").await.is_ok());
}

#[tokio::test]
async fn a_client_that_says_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    publish_leaf(folder.path(), "1", &leaf(&authority()));
    let identity = identity(folder.path());
    let handshakes = Handshakes::new(&identity, 1, Duration::from_millis(50));
    let (address, served) = echo(handshakes).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    assert!(matches!(
        served.await.unwrap(),
        Err(HandshakeError::TooSlow(_))
    ));
}

#[test]
fn a_bundle_goes_with_https_and_with_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    publish(
        folder.path(),
        "1",
        &[("ca.crt", &*authority().issued().certificate)],
    );
    let bundle = Some(folder.path().join("ca.crt"));
    assert!(Trust::of_url("https://r", bundle.clone()).is_ok());
    assert!(Trust::of_url("http://r", None).is_ok());
    assert!(matches!(
        Trust::of_url("http://r", bundle),
        Err(TlsError::Useless { .. })
    ));
    assert!(matches!(
        Trust::of_url("HTTPS://r", None),
        Err(TlsError::Missing { .. })
    ));
}

#[test]
fn facts_are_what_was_asked_for() {
    let by = authority();
    let now = SystemTime::now();
    let made = by.issue(&names(&["b", "a.b"]), now, 90 * DAY).unwrap();
    let facts = made.check("it").unwrap();
    assert_eq!(facts.hosts, names(&["a.b", "b"]).hosts);
    assert_eq!(facts.addresses, names(&[]).addresses);
    assert!(!facts.is_authority && by.facts().is_authority);
    let life = facts.not_after.duration_since(now).unwrap();
    assert!(life > 89 * DAY && life <= 90 * DAY, "{life:?}");
    assert!(facts.renew_at() > now + 59 * DAY && facts.renew_at() < now + 61 * DAY);
    // Never longer than who signs it.
    let made = by.issue(&names(&["a"]), now, 4000 * DAY).unwrap();
    assert_eq!(made.check("it").unwrap().not_after, by.facts().not_after);
}

#[test]
fn who_signed_what_is_told_from_the_signature() {
    let (by, other) = (authority(), authority());
    let made = leaf(&by);
    assert!(made.is_signed_by(&by.issued().certificate));
    assert!(!made.is_signed_by(&other.issued().certificate));
    let again = Authority::read(&by.issued().certificate, &by.issued().key, "it").unwrap();
    assert!(leaf(&again).is_signed_by(&by.issued().certificate));
    let swapped = Authority::read(&by.issued().certificate, &other.issued().key, "it");
    assert!(swapped.is_err());
    let mixed = Issued {
        key: leaf(&by).key,
        ..made
    };
    assert!(mixed.check("it").is_err());
}

#[test]
fn a_certificate_is_verified_for_those_who_have_only_that() {
    let by = authority();
    let der = certificates(leaf(&by).certificate.as_bytes(), "it")
        .unwrap()
        .swap_remove(0);
    assert!(trust(&by).verify(&der, "registry").is_ok());
    assert!(trust(&by).verify(&der, "127.0.0.1").is_ok());
    assert!(trust(&by).verify(&der, "elsewhere").is_err());
    assert!(trust(&authority()).verify(&der, "registry").is_err());
}
