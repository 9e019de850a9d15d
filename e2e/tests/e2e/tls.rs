//! TLS between the gateway and workers.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hyprstream_e2e::{Chat, Load, Model, wait_until};
use hyprstream_tls::Trust;
use rustls::{ClientConnection, pki_types::CertificateDer};

use crate::{PATIENCE, Tiny, forward::Forward};

/// The kubelet looks at a pod's Secrets every minute and a half at most, and is told late of one that
/// was deleted.
const KUBELET: Duration = Duration::from_mins(5);
/// Where workers speak TLS.
pub(crate) const PORT: u16 = 8443;

/// Whether workers speak TLS and nothing else here, as their Model's URL says.
pub(crate) fn is_spoken(model: &Model) -> Result<bool> {
    let url = model.get()?["status"]["url"].clone();
    Ok(url.as_str().context("no URL")?.starts_with("https://"))
}

/// The Secret with the certificate of the workers.
pub(crate) fn secret(tiny: &Tiny, key: &str) -> Result<String> {
    let template = format!("go-template={{{{index .data {key:?} | base64decode}}}}");
    let namespace = tiny.namespace.name.as_str();
    let arguments = ["-n", namespace, "get", "secret", "tiny-worker-tls", "-o"];
    tiny.cluster
        .kubectl(&[&arguments[..], &[template.as_str()]].concat())
}

/// The certificate that a worker shows who asks for the name of its Model, and believes the release's
/// authorities.
fn shown(tiny: &Tiny, forward: &Forward, authorities: &str) -> Result<CertificateDer<'static>> {
    let name = format!("tiny.{}.workers.hyprstream.internal", tiny.namespace.name);
    let trust = Trust::fixed(authorities.as_bytes(), "the bundle")?;
    let config = Arc::new(trust.client_config());
    let mut tls = ClientConnection::new(config, name.try_into()?)?;
    let mut socket = TcpStream::connect(forward.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    let chain = tls.peer_certificates().context("no certificate")?;
    Ok(chain
        .first()
        .context("no certificate")?
        .clone()
        .into_owned())
}

fn first(pem: &str) -> Result<CertificateDer<'static>> {
    let chain = hyprstream_tls::certificates(pem.as_bytes(), "the Secret")?;
    chain.into_iter().next().context("no certificate")
}

/// UIDs of the pods and how often they were started.
fn pods(tiny: &Tiny) -> Result<Vec<String>> {
    let pods = tiny.model.pods()?;
    let of = |pod: &serde_json::Value| {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        format!("{} {restarts}", pod["metadata"]["uid"])
    };
    Ok(pods.iter().map(of).collect())
}

#[test]
fn s01_a_worker_shows_another_certificate_under_streams_and_no_request_fails() -> Result<()> {
    let tiny = Tiny::serve("tls")?;
    ensure!(
        is_spoken(&tiny.model)?,
        "workers speak no TLS on this cluster"
    );
    let made = pods(&tiny)?;
    let pod = tiny.model.pods()?[0]["metadata"]["name"].clone();
    let forward = Forward::to(&tiny, pod.as_str().context("no name")?, PORT)?;
    let authorities = secret(&tiny, "ca.crt")?;
    let before = secret(&tiny, "tls.crt")?;
    assert_eq!(shown(&tiny, &forward, &authorities)?, first(&before)?);

    let question = Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "go on", 64);
    let load = Load::start(4, &question);
    wait_until(PATIENCE, || Ok((load.report().total() >= 10).then_some(())))?;
    let here = ["-n", tiny.namespace.name.as_str()];
    let delete = ["delete", "secret", "tiny-worker-tls"];
    tiny.cluster.kubectl(&[&here[..], &delete].concat())?;
    // The operator watches no Secrets: it sees when it next looks at the Model.
    tiny.model
        .patch(r#"{"metadata":{"annotations":{"hyprstream.io/reconcile-at":"tls"}}}"#)?;
    let after = wait_until(PATIENCE, || {
        Ok(secret(&tiny, "tls.crt").ok().filter(|now| *now != before))
    })?;
    let after = first(&after)?;
    wait_until(KUBELET, || {
        Ok((shown(&tiny, &forward, &authorities)? == after).then_some(()))
    })
    .context("the worker never showed the new certificate")?;
    let seen = load.report().total();
    wait_until(PATIENCE, || {
        Ok((load.report().total() >= seen + 20).then_some(()))
    })?;
    let report = load.stop()?;
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!(pods(&tiny)?, made, "no pod was made or started anew");
    Ok(())
}

#[test]
fn s01_a_worker_tells_who_speaks_plain_http_to_its_port_for_tls() -> Result<()> {
    let tiny = Tiny::serve("plain")?;
    ensure!(
        is_spoken(&tiny.model)?,
        "workers speak no TLS on this cluster"
    );
    let pod = tiny.model.pods()?[0]["metadata"]["name"].clone();
    let forward = Forward::to(&tiny, pod.as_str().context("no name")?, PORT)?;
    let mut socket = TcpStream::connect(forward.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.write_all(b"GET /v1/models HTTP/1.1\r\nhost: worker\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 400 ") || !answer.contains("tls_required") {
        bail!("the worker said {answer:?}");
    }
    // By the Service too.
    let path = format!(
        "/api/v1/namespaces/{}/services/http:tiny:{PORT}/proxy/health",
        tiny.namespace.name
    );
    let output = tiny.cluster.try_kubectl(&["get", "--raw", &path])?;
    assert!(!output.success, "{}", output.stdout);
    // The gateway speaks TLS with it.
    Chat::new(&tiny.cluster.ingress, &tiny.model.id(), "hello", 4).ask()?;
    Ok(())
}
