//! What the gateway adds: latency of an unloaded gateway, and of one with many streams at once.
//!
//! ```text
//! cargo run --release -p hyprstream-gateway --example load -- --streams 2000 --adapters 1000
//! ```
//!
//! Worker, gateway and client are threads of this process, joined by loopback; the gateway's is its
//! only one. A second gateway knows many adapters, a third speaks TLS with its worker. Every event carries the time at which the worker made it, so that its way to
//! the client can be measured.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use axum::{Router, body::Body, response::IntoResponse, routing::post};
use bytes::Bytes;
use clap::Parser;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use hyprstream_contract::worker_tls;
use hyprstream_gateway::{
    Config, Gateway, Metrics,
    endpoint::Endpoint,
    rlimit,
    table::{AdapterFacts, Hope, ModelFacts, ModelKey, Reference, Table},
};
use hyprstream_tls::{Authority, Names, Trust};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::watch,
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

#[derive(Clone, Copy, Debug, Parser)]
struct Args {
    /// Streams at the same time.
    #[arg(long, default_value_t = 2000)]
    streams: usize,
    /// Events of each stream.
    #[arg(long, default_value_t = 60)]
    events: u32,
    /// Time between the events of a stream, in milliseconds.
    #[arg(long, default_value_t = 200)]
    interval: u64,
    /// Requests one after the other, for the latency without load.
    #[arg(long, default_value_t = 5000)]
    requests: usize,
    /// Adapters of the Model that the second gateway knows.
    #[arg(long, default_value_t = 1000)]
    adapters: usize,
}

/// How often the ways of a request take turns, so that what else the machine does hits all alike.
const TURNS: usize = 20;

fn main() -> Result<()> {
    let args = Args::parse();
    rlimit::raise_open_files()?;
    epoch();
    let worker = serve("worker", move |listener| answer(listener, None, args))?;
    let (acceptor, trust) = certificate()?;
    let secure = serve("secure", move |listener| {
        answer(listener, Some(acceptor), args)
    })?;
    let gateway = gateway("gateway", table(Endpoint::new(worker)))?;
    let endpoint = Endpoint::secured(secure, &worker_tls::name("default", "m"), &trust);
    let by_tls = self::gateway("by-tls", table(endpoint))?;
    let adapters = (0..args.adapters).map(|index| Arc::new(adapter(index)));
    let with_adapters = self::gateway(
        "with-adapters",
        table(Endpoint::new(worker)).with_adapters(adapters),
    )?;
    let name = adapter(args.adapters / 2).served;
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        println!("{} requests one after the other, microseconds:", args.requests);
        let stacked = format!("m+{name}");
        let ways = [
            ("direct", worker, "m"),
            ("gateway", gateway, "m"),
            ("gateway, TLS to the worker", by_tls, "m"),
            ("gateway that knows adapters", with_adapters, "m"),
            ("the same, MODEL+ADAPTER", with_adapters, &*stacked),
            ("the same, ADAPTER", with_adapters, &*name),
        ];
        let mut times = ways.map(|_| Vec::new());
        for _ in 0..TURNS {
            for ((_, address, model), times) in ways.iter().zip(&mut times) {
                times.extend(one_by_one(*address, model, args.requests / TURNS).await?);
            }
        }
        for ((what, ..), times) in ways.iter().zip(times) {
            print_times(what, times);
        }
        println!(
            "{} streams at once, {} events each, one every {} ms; way of an event, microseconds:",
            args.streams, args.events, args.interval
        );
        print_times("direct", at_once(worker, args).await?);
        for (what, thread, address) in [
            ("gateway", "gateway", gateway),
            ("gateway, TLS to the worker", "by-tls", by_tls),
        ] {
            let before = cpu_seconds(thread)?;
            let began = Instant::now();
            print_times(what, at_once(address, args).await?);
            let used = cpu_seconds(thread)? - before;
            let share = 100.0 * used / began.elapsed().as_secs_f64();
            println!("its one thread was busy for {share:.0} % of the time");
        }
        println!("resident memory of this process: {}", resident()?);
        Ok(())
    })
}

fn gateway(name: &str, table: Table) -> Result<SocketAddr> {
    serve(name, move |listener| async move {
        let (_tables, receiver) = watch::channel(Arc::new(table));
        let metrics = Metrics::new(&prometheus::Registry::new()).map_err(std::io::Error::other)?;
        let gateway = Gateway::new(Config::default(), receiver, metrics);
        gateway
            .run(listener, std::future::pending())
            .await
            .map(drop)
    })
}

/// Runs a server on a thread of its own and returns where it listens.
fn serve<F, Fut>(name: &str, server: F) -> Result<SocketAddr>
where
    F: FnOnce(TcpListener) -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<()>>,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || -> Result<()> {
            Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    server(TcpListener::from_std(listener)?).await?;
                    Ok(())
                })
        })?;
    Ok(address)
}

fn worker(args: Args) -> Router {
    let answer = || async { ([("content-type", "application/json")], "{}").into_response() };
    let streamed = move || async move {
        let events = stream::unfold((0, None), move |(sent, timer)| async move {
            if sent == args.events {
                return None;
            }
            let mut timer = timer.unwrap_or_else(|| interval(Duration::from_millis(args.interval)));
            timer.tick().await;
            let event = Bytes::from(format!("data: {}\n\n", now()));
            Some((Ok::<_, Infallible>(event), (sent + 1, Some(timer))))
        });
        (
            [("content-type", "text/event-stream")],
            Body::from_stream(events),
        )
            .into_response()
    };
    Router::new()
        .route("/v1/completions", post(answer))
        .route("/v1/chat/completions", post(streamed))
}

/// What a worker shows, and whom its gateway believes.
fn certificate() -> Result<(TlsAcceptor, Trust)> {
    let now = SystemTime::now();
    let day = Duration::from_hours(24);
    let authority = Authority::generate("load", now, 2 * day)?;
    let names = Names {
        hosts: worker_tls::names("default", "m").into_iter().collect(),
        ..Names::default()
    };
    let issued = authority.issue(&names, now, day)?;
    let chain = hyprstream_tls::certificates(issued.certificate.as_bytes(), "the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let bundle = authority.issued().certificate.as_bytes();
    let trust = Trust::fixed(bundle, "the authority")?;
    Ok((TlsAcceptor::from(Arc::new(config)), trust))
}

/// Serves a worker's answers, in the same way with and without TLS.
async fn answer(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    args: Args,
) -> std::io::Result<()> {
    async fn over<S>(stream: S, router: Router)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = TowerToHyperService::new(router);
        // A client that goes away is none of its matter.
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
    let router = worker(args);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            match tls {
                None => over(stream, router).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => over(stream, router).await,
                    Err(error) => eprintln!("no handshake: {error}"),
                },
            }
        });
    }
}

fn table(worker: Endpoint) -> Table {
    let facts = ModelFacts {
        key: ModelKey::new("default", "m"),
        reference: Reference::Head,
        commit: None,
        replicas: 1,
        suspended: false,
        hope: Hope::Good,
        reason: String::new(),
        message: String::new(),
        created: 0,
    };
    let endpoints = HashMap::from([(facts.key.clone(), vec![Arc::new(worker)])]);
    Table::new([facts], endpoints, true)
}

fn adapter(index: usize) -> AdapterFacts {
    let name: Arc<str> = format!("adapter-{index}").into();
    AdapterFacts {
        model: ModelKey::new("default", "m"),
        name: Arc::clone(&name),
        served: name,
        commit: None,
        digest: None,
        loaded: 1,
        hope: Hope::Good,
        reason: String::new(),
        message: String::new(),
        created: 0,
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(path: &str, model: &str) -> Result<Request<Full<Bytes>>> {
    let body = format!(
        r#"{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"Hello there"}}]}}"#
    );
    let request = Request::post(path)
        .header("host", "m")
        .header("content-type", "application/json");
    Ok(request.body(Full::from(body))?)
}

/// Times from a request to the end of its answer.
async fn one_by_one(address: SocketAddr, model: &str, count: usize) -> Result<Vec<f64>> {
    let mut sender = connect(address).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count + 100 {
        let began = Instant::now();
        let response = sender
            .send_request(request("/v1/completions", model)?)
            .await?;
        ensure!(response.status() == 200, "status {}", response.status());
        response.into_body().collect().await?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        sender.ready().await?;
    }
    // The first ones warm up.
    Ok(times.split_off(100))
}

/// Times from the worker to here of all events of all streams.
async fn at_once(address: SocketAddr, args: Args) -> Result<Vec<f64>> {
    let mut streams = JoinSet::new();
    for i in 0..args.streams {
        // Spread over one interval, so that events do not come in bursts.
        let delay = Duration::from_millis(args.interval).mul_f64(i as f64 / args.streams as f64);
        streams.spawn(async move {
            sleep(delay).await;
            timeout(Duration::from_mins(2), one_stream(address, args)).await?
        });
    }
    let (mut times, mut errors) = (Vec::new(), 0);
    while let Some(ended) = streams.join_next().await {
        match ended? {
            Ok(of_one) => times.extend(of_one),
            Err(error) => {
                errors += 1;
                if errors <= 3 {
                    eprintln!("a stream failed: {error:#}");
                }
            }
        }
    }
    println!("  {errors} errors");
    Ok(times)
}

async fn one_stream(address: SocketAddr, args: Args) -> Result<Vec<f64>> {
    let mut sender = connect(address).await?;
    let response = sender
        .send_request(request("/v1/chat/completions", "m")?)
        .await?;
    ensure!(response.status() == 200, "status {}", response.status());
    let mut body = response.into_body().into_data_stream();
    let mut times = Vec::with_capacity(args.events as usize);
    while let Some(data) = body.next().await {
        let (data, at) = (data?, now());
        for event in std::str::from_utf8(&data)?.split_terminator("\n\n") {
            let sent: u64 = event.strip_prefix("data: ").context("an event")?.parse()?;
            times.push(at.saturating_sub(sent) as f64 / 1e3);
        }
    }
    ensure!(
        times.len() == args.events as usize,
        "{} events",
        times.len()
    );
    Ok(times)
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Nanoseconds since the program's start.
fn now() -> u64 {
    epoch().elapsed().as_nanos() as u64
}

fn print_times(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
    };
    if let (Some(p50), Some(p90), Some(p99)) = (at(0.5), at(0.9), at(0.99)) {
        println!(
            "  {what:28} p50 {p50:8.0}  p90 {p90:8.0}  p99 {p99:8.0}  ({} values)",
            times.len()
        );
    }
}

/// Processor time of the thread of that name.
fn cpu_seconds(name: &str) -> Result<f64> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if std::fs::read_to_string(path.join("comm"))?.trim() == name {
            let stat = std::fs::read_to_string(path.join("stat"))?;
            let fields: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            let ticks = |i: usize| -> Result<f64> { Ok(fields.get(i).context("stat")?.parse()?) };
            // utime and stime in USER_HZ, which is 100.
            return Ok((ticks(11)? + ticks(12)?) / 100.0);
        }
    }
    anyhow::bail!("no thread {name}")
}

fn resident() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().to_owned())
}
