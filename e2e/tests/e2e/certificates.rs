//! TLS to the registry: nothing else is spoken, and nobody notices when certificates change.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Chat, Cluster, Load, wait_until};

use crate::{PATIENCE, Tiny};

/// How old the authorities of a client are at most.
const REFRESH: Duration = Duration::from_secs(10);
/// The overlap of the local cluster, two minutes, and the time that the kubelet takes to show a
/// changed Secret.
const ROTATION: Duration = Duration::from_mins(8);

#[test]
fn s10_the_registry_refuses_plain_http_and_says_what_it_speaks() -> Result<()> {
    let cluster = Cluster::from_env()?;
    cluster.wait_registry(PATIENCE)?;
    let plain = cluster.registry.replacen("https://", "http://", 1);
    ensure!(plain != cluster.registry, "the registry's URL is https");
    let agent = cluster.registry_agent()?;
    let mut answer = agent.get(format!("{plain}/healthz")).call()?;
    let said = answer.body_mut().read_to_string()?;
    ensure!(
        answer.status() == 400 && said.contains("https://"),
        "{answer:?}: {said}"
    );
    Ok(())
}

#[test]
#[ignore = "takes minutes: cargo xtask test --e2e --soak s10"]
fn s10_certificates_and_their_authority_are_lost_and_no_request_fails() -> Result<()> {
    let tiny = Tiny::serve("rotation")?;
    let cluster = &tiny.cluster;
    cluster.wait_registry(PATIENCE)?;
    let question = Chat::new(&cluster.ingress, &tiny.model.id(), "go on", 16);
    let load = Load::start(2, &question);
    let callers = Callers::start(&tiny);

    let first = secret(cluster, "hyprstream-registry-tls", "tls.crt")?;
    delete(cluster, "hyprstream-registry-tls")?;
    let second = wait_until(PATIENCE, || {
        let found = secret(cluster, "hyprstream-registry-tls", "tls.crt").unwrap_or_default();
        Ok((!found.is_empty() && found != first).then_some(found))
    })
    .context("the certificate does not come back")?;

    delete(cluster, "hyprstream-ca")?;
    let authority = wait_until(PATIENCE, || {
        let found = secret(cluster, "hyprstream-ca", "tls.crt").unwrap_or_default();
        Ok((!found.is_empty()).then_some(found))
    })
    .context("no authority follows the one that was lost")?;
    let kept = secret(cluster, "hyprstream-registry-tls", "tls.crt")?;
    ensure!(
        kept == second,
        "a certificate of an authority that nobody trusts yet is served"
    );
    wait_until(ROTATION, || {
        let by = secret(cluster, "hyprstream-registry-tls", "ca.crt").unwrap_or_default();
        Ok((by.trim() == authority.trim()).then_some(()))
    })
    .context("the new authority never signs")?;
    wait_until(ROTATION, || {
        let agent = Cluster::agent_that_trusts(authority.as_bytes());
        let url = format!("{}/healthz", cluster.registry);
        Ok(agent.get(&url).call().is_ok().then_some(()))
    })
    .context("the registry never shows the new certificate")?;

    // Operator and node plugin go on.
    let next = tiny.push_seed(2)?;
    tiny.model.wait_ready_on(&next, PATIENCE)?;
    let calls = callers.stop()?;
    let report = load.stop()?;
    println!("{calls} calls of the registry, {} answers", report.total());
    ensure!(calls >= 100, "only {calls} calls were made");
    ensure!(report.failures.is_empty(), "{:?}", report.causes());
    Ok(())
}

/// Clients of the registry that shake hands anew for every call.
struct Callers {
    stop: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<String>>>,
    client: JoinHandle<u64>,
}

impl Callers {
    fn start(tiny: &Tiny) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let (cluster, remote) = (tiny.cluster.clone(), tiny.repository.remote.clone());
        let (ends, missed) = (stop.clone(), failures.clone());
        let client = std::thread::spawn(move || {
            let mut calls = 0;
            let mut refreshed = Instant::now();
            while !ends.load(Ordering::Relaxed) {
                if refreshed.elapsed() > REFRESH {
                    // While its ConfigMap is looked at, the authorities of before count.
                    let _ = cluster.write_ca();
                    refreshed = Instant::now();
                }
                for outcome in [healthy(&cluster), listed(&remote)] {
                    calls += 1;
                    if let Err(error) = outcome {
                        let mut missed = missed.lock().expect("nobody panics with it");
                        missed.push(format!("{error:#}"));
                    }
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            calls
        });
        Self {
            stop,
            failures,
            client,
        }
    }

    /// How many calls were made; an error if one failed.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let calls = self.client.join().ok().context("a client panicked")?;
        let failures = self.failures.lock().expect("nobody panics with it");
        ensure!(
            failures.is_empty(),
            "{} of {calls} failed: {failures:?}",
            failures.len()
        );
        Ok(calls)
    }
}

fn healthy(cluster: &Cluster) -> Result<()> {
    let url = format!("{}/healthz", cluster.registry);
    let answer = cluster.registry_agent()?.get(&url).call()?;
    ensure!(answer.status().is_success(), "{answer:?}");
    Ok(())
}

/// With stock git.
fn listed(remote: &str) -> Result<()> {
    let mut git = std::process::Command::new("git");
    hyprstream_e2e::run(
        git.args(["ls-remote", remote])
            .env("GIT_TERMINAL_PROMPT", "0"),
    )
    .map(drop)
}

fn secret(cluster: &Cluster, name: &str, key: &str) -> Result<String> {
    let template = format!("go-template={{{{index .data {key:?} | base64decode}}}}");
    cluster.kubectl(&[
        "-n",
        &cluster.system,
        "get",
        "secret",
        name,
        "-o",
        &template,
    ])
}

fn delete(cluster: &Cluster, name: &str) -> Result<()> {
    cluster
        .kubectl(&["-n", &cluster.system, "delete", "secret", name])
        .map(drop)
}
