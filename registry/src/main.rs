//! `hyprstream-registry`: the git and LFS origin of a cluster.

use std::{io::Write, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use hyprstream_contract::repositories::rbac::AUDIENCE;
use hyprstream_git2db::trust_server;
use hyprstream_registry::{
    CacheTimes, Clock, FetchLimits, GitLimits, KubernetesTokens, Limits, Namespace, OpenError,
    Registry, Settings, Tls, TokenFiles, read_signing_key,
};
use hyprstream_telemetry::{AdminServer, LogFormat, init_logs};
use hyprstream_tls::Trust;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// The git and LFS origin of a cluster.
#[derive(Parser)]
#[command(name = "hyprstream-registry", version)]
struct Cli {
    /// Log filter: a list of target=level.
    #[arg(long, env = "HYPRSTREAM_LOG", default_value = "info", global = true)]
    log: String,
    /// Form of the log lines: text or json.
    #[arg(long, env = "HYPRSTREAM_LOG_FORMAT", default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves git, LFS and the API.
    Serve(Box<ServeArgs>),
    /// Prints a signed token for git and LFS.
    Token(TokenArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// Address of git, LFS and the API.
    #[arg(long, env = "HYPRSTREAM_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "HYPRSTREAM_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    admin_listen: SocketAddr,
    /// File with the certificate (PEM) by which TLS is served at --listen. Read again when it
    /// changes. Without it, plain HTTP is served there.
    #[arg(long, env = "HYPRSTREAM_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// File with the certificate's key (PEM). Read again when it changes.
    #[arg(long, env = "HYPRSTREAM_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serves plain HTTP beside TLS on the same port, for clients of before.
    #[arg(long, env = "HYPRSTREAM_ACCEPT_PLAIN", requires = "tls_cert")]
    accept_plain: bool,
    /// URL (https) of this registry in the cluster, under which Models may name it as an upstream;
    /// it is believed by --ca-file alone.
    #[arg(long, env = "HYPRSTREAM_OWN_URL", requires = "ca_file")]
    own_url: Option<String>,
    /// File with the authorities (PEM) by which --own-url is trusted. Read again when it changes.
    #[arg(long, env = "HYPRSTREAM_CA_FILE", requires = "own_url")]
    ca_file: Option<PathBuf>,
    /// Folder of everything that is kept.
    #[arg(
        long,
        env = "HYPRSTREAM_ROOT",
        default_value = "/var/lib/hyprstream-registry"
    )]
    root: PathBuf,
    /// File with the token that may do everything; at least 16 bytes.
    #[arg(long, env = "HYPRSTREAM_ADMIN_TOKEN_FILE")]
    admin_token_file: PathBuf,
    /// File with the token by which one is a node; at least 16 bytes.
    #[arg(long, env = "HYPRSTREAM_NODE_TOKEN_FILE")]
    node_token_file: PathBuf,
    /// File with the key of signed tokens; at least 32 bytes.
    #[arg(long, env = "HYPRSTREAM_SIGNING_KEY_FILE")]
    signing_key_file: PathBuf,
    /// Lets the token of the nodes read every repository and the lists of adapters, for volumes that
    /// an earlier release made, which have no words of their own.
    #[arg(long, env = "HYPRSTREAM_NODE_TOKEN_READS_ALL")]
    node_token_reads_all: bool,
    /// Takes tokens of the cluster's API server as well, and asks it what they may do.
    #[arg(long, env = "HYPRSTREAM_KUBERNETES_TOKENS")]
    kubernetes_tokens: bool,
    /// Audience that these tokens must be for.
    #[arg(long, env = "HYPRSTREAM_KUBERNETES_AUDIENCE", default_value = AUDIENCE)]
    kubernetes_audience: String,
    /// Host of the API server. Pods have it in their environment.
    #[arg(
        long,
        env = "KUBERNETES_SERVICE_HOST",
        default_value = "kubernetes.default.svc"
    )]
    kubernetes_host: String,
    /// Port of the API server.
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    kubernetes_port: u16,
    /// File with the token by which the registry asks the API server.
    #[arg(
        long,
        env = "HYPRSTREAM_KUBERNETES_TOKEN_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    kubernetes_token_file: PathBuf,
    /// File with the certificates by which the API server is trusted.
    #[arg(
        long,
        env = "HYPRSTREAM_KUBERNETES_CA_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    kubernetes_ca_file: PathBuf,
    /// Bytes that stay free on the disk: what would leave less is refused.
    #[arg(long, env = "HYPRSTREAM_MIN_FREE_BYTES", default_value_t = Limits::default().min_free_bytes)]
    min_free_bytes: u64,
    /// Largest LFS object that is taken, in bytes.
    #[arg(long, env = "HYPRSTREAM_MAX_OBJECT_BYTES", default_value_t = Limits::default().max_object_bytes)]
    max_object_bytes: u64,
    /// Largest pack that a push may send, in bytes; LFS objects do not count.
    #[arg(long, env = "HYPRSTREAM_MAX_PUSH_BYTES", default_value_t = GitLimits::default().max_push_bytes)]
    max_push_bytes: u64,
    /// Git processes at the same time.
    #[arg(long, env = "HYPRSTREAM_MAX_GIT_PROCESSES", default_value_t = GitLimits::default().processes)]
    max_git_processes: usize,
    /// Time in which a client has to move bytes at --upload-min-rate, or its git process is ended.
    #[arg(long, env = "HYPRSTREAM_GIT_IDLE_TIMEOUT", default_value = "5m", value_parser = humantime::parse_duration)]
    git_idle_timeout: Duration,
    /// Connections at the same time.
    #[arg(long, env = "HYPRSTREAM_MAX_CONNECTIONS", default_value_t = Limits::default().max_connections)]
    max_connections: usize,
    /// Further connections on which only the API is served.
    #[arg(long, env = "HYPRSTREAM_API_CONNECTIONS", default_value_t = Limits::default().api_connections)]
    api_connections: usize,
    /// An upstream that is fetched from although its address is not on the internet: a network
    /// such as 10.1.0.0/16, an address, a host name, or *.DOMAIN. May be given several times; in
    /// the environment, with commas between.
    #[arg(
        long = "allow-upstream",
        env = "HYPRSTREAM_ALLOW_UPSTREAMS",
        value_delimiter = ','
    )]
    allow_upstreams: Vec<String>,
    /// Fewest bytes a second that an upstream has to send.
    #[arg(long, env = "HYPRSTREAM_FETCH_MIN_RATE", default_value_t = FetchLimits::default().least_bytes_per_second)]
    fetch_min_rate: u64,
    /// Time over which the rate of an upstream is measured.
    #[arg(long, env = "HYPRSTREAM_FETCH_RATE_WINDOW", default_value = "2m", value_parser = humantime::parse_duration)]
    fetch_rate_window: Duration,
    /// Longest that an upstream may take to send its git objects.
    #[arg(long, env = "HYPRSTREAM_FETCH_PACK_DEADLINE", default_value = "30m", value_parser = humantime::parse_duration)]
    fetch_pack_deadline: Duration,
    /// Time after which a fetch gives its place to those that wait, and goes on later.
    #[arg(long, env = "HYPRSTREAM_FETCH_TURN", default_value = "5m", value_parser = humantime::parse_duration)]
    fetch_turn: Duration,
    /// Fewest bytes a second of git objects that have come for --fetch-turn while others wait.
    /// They cannot be continued, and are fetched anew.
    #[arg(long, env = "HYPRSTREAM_FETCH_TURN_MIN_RATE", default_value_t = FetchLimits::default().turn_bytes_per_second)]
    fetch_turn_min_rate: u64,
    /// Time after which a fetch is ended that nobody asks for any more.
    #[arg(long, env = "HYPRSTREAM_FETCH_LEASE", default_value = "3m", value_parser = humantime::parse_duration)]
    fetch_lease: Duration,
    /// LFS uploads at the same time.
    #[arg(long, env = "HYPRSTREAM_MAX_UPLOADS", default_value_t = Limits::default().max_uploads)]
    max_uploads: usize,
    /// Bytes that are kept of LFS uploads that broke off, for each namespace, to go on from.
    #[arg(long, env = "HYPRSTREAM_MAX_UNFINISHED_BYTES", default_value_t = Limits::default().max_unfinished_bytes)]
    max_unfinished_bytes: u64,
    /// How long they are kept.
    #[arg(long, env = "HYPRSTREAM_KEEP_UNFINISHED", default_value = "24h", value_parser = humantime::parse_duration)]
    keep_unfinished: Duration,
    /// Fewest bytes a second of a client that pushes or uploads.
    #[arg(long, env = "HYPRSTREAM_UPLOAD_MIN_RATE", default_value_t = Limits::default().least_upload_bytes_per_second)]
    upload_min_rate: u64,
    /// Longest that the registry works on a push whose last byte has come.
    #[arg(long, env = "HYPRSTREAM_PUSH_WORK_TIMEOUT", default_value = "30m", value_parser = humantime::parse_duration)]
    push_work_timeout: Duration,
    /// Most memory of a process that takes a push, in bytes of address space.
    #[arg(long, env = "HYPRSTREAM_PUSH_MEMORY_BYTES", default_value_t = GitLimits::default().push_memory_bytes)]
    push_memory_bytes: u64,
    /// Bytes a second of what is kept that are read in the background, to find what went bad; 0
    /// for none.
    #[arg(long, env = "HYPRSTREAM_SCRUB_RATE", default_value_t = Limits::default().scrub_bytes_per_second)]
    scrub_rate: u64,
    /// Fetches from upstreams at the same time.
    #[arg(long, env = "HYPRSTREAM_MAX_FETCHES", default_value_t = Limits::default().max_fetches)]
    max_fetches: usize,
    /// Transfers of LFS objects at the same time within one fetch.
    #[arg(long, env = "HYPRSTREAM_PARALLEL_DOWNLOADS", default_value_t = Limits::default().parallel_downloads)]
    parallel_downloads: usize,
    /// First wait after a failed fetch; it doubles up to 30 seconds.
    #[arg(long, env = "HYPRSTREAM_MIN_BACKOFF", default_value = "2s", value_parser = humantime::parse_duration)]
    min_backoff: Duration,
    /// Removes mirrors that nobody used for this long, such as 30d, and the LFS objects that no
    /// repository has. Without it everything is kept.
    #[arg(long, env = "HYPRSTREAM_KEEP", value_parser = humantime::parse_duration)]
    keep: Option<Duration>,
}

#[derive(Args)]
struct TokenArgs {
    /// File with the key of signed tokens.
    #[arg(long, env = "HYPRSTREAM_SIGNING_KEY_FILE")]
    signing_key_file: PathBuf,
    /// Namespace whose repositories the token opens.
    #[arg(long)]
    namespace: Namespace,
    /// Lets the token push as well.
    #[arg(long)]
    write: bool,
    /// How long the token is valid.
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    ttl: Duration,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Token(args) => print_token(&args),
        Command::Serve(args) => {
            init_logs(&cli.log, cli.log_format).map_err(anyhow::Error::msg)?;
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?
                .block_on(serve(*args))
        }
    }
}

fn print_token(args: &TokenArgs) -> anyhow::Result<()> {
    let key = read_signing_key(&args.signing_key_file)?;
    let token = key.sign(&args.namespace, args.write, args.ttl);
    writeln!(std::io::stdout(), "{token}").context("cannot print the token")
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    tokio::spawn(watch_signals(shutdown.clone())?);
    let defaults = Limits::default();
    let kubernetes = args.kubernetes_tokens.then(|| KubernetesTokens {
        url: url(&args.kubernetes_host, args.kubernetes_port),
        token_file: args.kubernetes_token_file,
        ca_file: Some(args.kubernetes_ca_file),
        audience: args.kubernetes_audience,
        cache: CacheTimes::default(),
    });
    if let Some(url) = &args.own_url {
        let trust = Trust::of_url(url, args.ca_file.clone()).context("cannot trust --own-url")?;
        trust_server(url, trust).with_context(|| format!("--own-url {url:?} is no URL"))?;
    }
    let tls = args
        .tls_cert
        .zip(args.tls_key)
        .map(|(certificate, key)| Tls {
            certificate,
            key,
            accepts_plain: args.accept_plain,
        });
    let settings = Settings {
        kubernetes,
        node_token_reads_all: args.node_token_reads_all,
        clock: Clock::default(),
        tls,
        root: args.root,
        tokens: TokenFiles {
            admin: args.admin_token_file,
            node: args.node_token_file,
            signing_key: args.signing_key_file,
        },
        limits: Limits {
            git: GitLimits {
                processes: args.max_git_processes,
                idle: args.git_idle_timeout,
                least_bytes_per_second: args.upload_min_rate,
                work: args.push_work_timeout,
                push_memory_bytes: args.push_memory_bytes,
                max_push_bytes: args.max_push_bytes,
            },
            min_free_bytes: args.min_free_bytes,
            max_object_bytes: args.max_object_bytes,
            max_connections: args.max_connections,
            api_connections: args.api_connections,
            max_fetches: args.max_fetches,
            fetch: FetchLimits {
                least_bytes_per_second: args.fetch_min_rate,
                rate_window: args.fetch_rate_window,
                pack_deadline: args.fetch_pack_deadline,
                turn: args.fetch_turn,
                turn_bytes_per_second: args.fetch_turn_min_rate,
                lease: args.fetch_lease,
                ..defaults.fetch
            },
            max_uploads: args.max_uploads,
            max_unfinished_bytes: args.max_unfinished_bytes,
            keep_unfinished: args.keep_unfinished,
            least_upload_bytes_per_second: args.upload_min_rate,
            scrub_bytes_per_second: args.scrub_rate,
            parallel_downloads: args.parallel_downloads,
            min_backoff: args.min_backoff,
            ..defaults
        },
        allowed_upstreams: args
            .allow_upstreams
            .iter()
            .filter(|text| !text.trim().is_empty())
            .map(|text| text.parse())
            .collect::<Result<_, _>>()?,
        keep: args.keep,
    };
    let Some(registry) = open(settings, &shutdown).await? else {
        return Ok(());
    };
    let admin = AdminServer {
        metrics: registry.metrics(),
        health: Arc::new(|| Ok(())),
        ready: registry.ready(),
    };
    let bind = |address: SocketAddr| async move {
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))
    };
    let (admin_listener, listener) = (bind(args.admin_listen).await?, bind(args.listen).await?);
    let admin_listen = admin_listener
        .local_addr()
        .context("cannot tell the admin address")?;
    let listen = listener.local_addr().context("cannot tell the address")?;
    let end = shutdown.clone();
    let admin = tokio::spawn(admin.run(admin_listener, async move { end.cancelled().await }));
    tracing::info!(listen = %listen, admin = %admin_listen, "serving");
    registry
        .run(listener, shutdown.cancelled())
        .await
        .context("cannot serve")?;
    admin.abort();
    Ok(())
}

/// The API server's URL. An address of IPv6 stands in brackets there.
fn url(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    }
}

/// Opens the registry, and waits while the process that it replaces still uses the root.
async fn open(
    settings: Settings,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Registry>> {
    loop {
        let attempt = settings.clone();
        match tokio::task::spawn_blocking(move || Registry::open(attempt)).await? {
            Err(OpenError::InUse { path }) => {
                tracing::info!(?path, "waiting for another registry to leave the root");
            }
            other => return other.map(Some).context("cannot open the registry"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = shutdown.cancelled() => return Ok(None),
        }
    }
}

fn watch_signals(
    shutdown: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
        tracing::info!("ending");
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_api_server_is_found_by_either_kind_of_address() {
        assert_eq!(url("10.0.0.1", 443), "https://10.0.0.1:443");
        assert_eq!(url("fd00::1", 6443), "https://[fd00::1]:6443");
    }
}
