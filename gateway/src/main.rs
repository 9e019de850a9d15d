//! `hyprstream-gateway`: the cluster's one OpenAI endpoint.

mod args;

use std::{num::NonZeroUsize, process::ExitCode, sync::Arc, thread::available_parallelism};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use hyprstream_gateway::{
    Gateway, Metrics, check,
    fine_tuning::{self, ClientKeys, FineTuning, Registry},
    keys::KeyFile,
    rlimit,
    table::Table,
    watch,
};
use hyprstream_telemetry::{AdminServer, init_logs};
use hyprstream_tls::Trust;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch as channel,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::args::{Args, Command, FineTuningArgs, ServeArgs};

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = init_logs(&args.log, args.log_format) {
        eprintln!("hyprstream-gateway: {error}");
        return ExitCode::from(2);
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "hyprstream-gateway ends");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    // Knows the CPU quota of the container.
    let threads = available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        match args.command {
            Some(Command::Check { url, timeout }) => {
                let models = check::check(&url, timeout.into()).await?;
                println!("{url} is ready; models: {}", models.join(" "));
                Ok(())
            }
            None => serve(args.serve).await,
        }
    })
}

async fn serve(args: ServeArgs) -> Result<()> {
    match rlimit::raise_open_files() {
        Ok(limit) => info!(limit, "open files"),
        Err(error) => warn!(%error, "the limit of open files stays as it is"),
    }
    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry).context("make the metrics")?;
    let (sender, tables) = channel::channel(Arc::new(Table::default()));
    let client = kube::Client::try_default()
        .await
        .context("find the API server")?;
    let mut gateway = Gateway::new(args.config(), tables, metrics.clone());
    if let Some(api) = fine_tuning_api(&args.fine_tuning, client.clone()).await? {
        gateway = gateway.with_fine_tuning(api);
    }

    if let Some(path) = &args.worker_master_key_file {
        let file = KeyFile::open(path, &gateway).await?;
        tokio::spawn(file.follow(gateway.clone()));
    }
    let trust = args
        .worker_ca_file
        .map(Trust::open)
        .transpose()
        .context("read the authorities of the workers")?;
    let shutdown = on_signal()?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let admin_listener = TcpListener::bind(args.admin_listen)
        .await
        .with_context(|| format!("listen on {}", args.admin_listen))?;
    let probed = gateway.clone();
    let admin = AdminServer {
        metrics: registry,
        health: Arc::new(|| Ok(())),
        ready: Arc::new(move || probed.ready()),
    };
    // The admin server outlives the drain, so that its metrics can be read to the end.
    let admin = tokio::spawn(admin.run(admin_listener, std::future::pending()));

    let namespaces = args.watch_namespaces;
    let watching =
        tokio::spawn(async move { watch::run(client, &namespaces, trust, sender, metrics).await });
    let cut = tokio::select! {
        cut = gateway.run(listener, shutdown.cancelled_owned()) => cut.context("serve")?,
        ended = admin => return Err(anyhow!("the admin server ended: {ended:?}")),
        ended = watching => return Err(anyhow!("the watch ended: {ended:?}")),
    };
    info!(connections_cut = cut, "stopped");
    Ok(())
}

/// The fine-tuning API, if there are keys for it.
async fn fine_tuning_api(
    args: &FineTuningArgs,
    client: kube::Client,
) -> Result<Option<Arc<FineTuning>>> {
    let FineTuningArgs {
        fine_tuning_keys_dir: Some(folder),
        registry_url: Some(url),
        registry_token_file: Some(token),
        registry_ca_file,
        ..
    } = args
    else {
        return Ok(None);
    };
    let keys = ClientKeys::read(folder)
        .await
        .context("read the keys of clients")?;
    if keys.is_empty() {
        warn!("there is no key yet: nobody can upload files or fine-tune");
    }
    let trust =
        Trust::of_url(url.as_str(), registry_ca_file.clone()).context("trust the registry")?;
    let registry =
        Registry::new(url.clone(), token.clone(), &trust).context("reach the registry")?;
    let api = Arc::new(FineTuning::new(args.config(), registry, client, keys));
    tokio::spawn(fine_tuning::keys::follow(folder.clone(), Arc::clone(&api)));
    tokio::spawn(fine_tuning::sweep(Arc::clone(&api)));
    Ok(Some(api))
}

/// Cancelled on SIGTERM or SIGINT.
fn on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(token)
}
