//! The worker's server inside this program.

use clap::{ArgMatches, Command, FromArgMatches};
use hyprstream_openai::Provenance;
use hyprstream_worker::{
    ServeArgs, TlsArgs,
    serve::{self, End, ListenError},
    server::{Identity, Places},
};
use tokio::{
    runtime::Runtime,
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::failure::{Context as _, Failure, chain};

/// The options of the worker's `serve`, with defaults for a terminal in place of a pod's: it
/// listens on loopback and ends at once.
#[derive(Clone, Debug)]
pub(crate) struct WorkerOptions(ServeArgs);

/// A model to serve.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// Its folder.
    pub(crate) folder: std::path::PathBuf,
    /// By what name.
    pub(crate) name: String,
    /// What it is, if it is a commit.
    pub(crate) provenance: Option<Provenance>,
}

impl clap::Args for WorkerOptions {
    fn augment_args(command: Command) -> Command {
        settle(ServeArgs::augment_args(command))
    }

    fn augment_args_for_update(command: Command) -> Command {
        settle(ServeArgs::augment_args_for_update(command))
    }
}

/// What a pod is told and a person is not asked for.
fn settle(command: Command) -> Command {
    command
        // The positional reference says it.
        .mut_arg("model", |arg| {
            arg.required(false)
                .hide(true)
                .env(None::<&str>)
                .default_value(".")
        })
        .mut_arg("host", |arg| arg.default_value("127.0.0.1"))
        .mut_arg("drain_timeout", |arg| arg.default_value("10s"))
        .mut_arg("drain_delay", |arg| arg.default_value("0s"))
        .mut_arg("termination_log", |arg| {
            arg.hide(true).default_value("/dev/null")
        })
        .mut_arg("log", |arg| arg.default_value("warn"))
        .mut_args(|arg| {
            let heading = arg.get_help_heading().is_none()
                && !matches!(arg.get_id().as_str(), "help" | "version");
            if heading {
                arg.help_heading("Options of the worker")
            } else {
                arg
            }
        })
}

impl FromArgMatches for WorkerOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        ServeArgs::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl WorkerOptions {
    /// The name by which clients are to call the model, if one was given.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Begins with logs.
    pub(crate) fn init_logs(&self) -> Result<(), Failure> {
        let logs = &self.0.logs;
        hyprstream_telemetry::init_logs(&logs.log, logs.log_format)
            .map_err(|why| Failure::usage(format!("--log: {why}")))
    }

    #[cfg(test)]
    pub(crate) fn is_on_loopback(&self) -> bool {
        self.0.host.is_loopback()
    }

    /// For a server that only this program talks to.
    pub(crate) fn on_any_port(mut self) -> Self {
        self.0.host = std::net::Ipv4Addr::LOCALHOST.into();
        self.0.port = 0;
        self.0.tls = TlsArgs::default();
        self
    }

    /// The first key that opens the server, if it has any.
    pub(crate) fn key(&self) -> Option<String> {
        if let Some(key) = &self.0.api.api_key {
            return Some(key.clone());
        }
        let file = self.0.api.api_key_file.as_ref()?;
        let keys = std::fs::read_to_string(file).ok()?;
        keys.lines().find(|key| !key.is_empty()).map(str::to_owned)
    }
}

/// A server that runs in this process until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Option<Runtime>,
    endpoint: String,
    ready: Option<oneshot::Receiver<()>>,
    stop: watch::Sender<bool>,
    ended: Option<JoinHandle<Result<End, String>>>,
}

impl Server {
    /// Listens, and begins to load.
    pub(crate) fn start(options: WorkerOptions, served: &Served) -> Result<Self, Failure> {
        let mut args = options.0;
        args.model.model.clone_from(&served.folder);
        let identity = Identity {
            name: served.name.clone(),
            namespace: args.namespace.clone(),
            provenance: served.provenance.clone(),
        };
        let runtime = serve::runtime().context("the server's threads cannot be started")?;
        let listeners = runtime
            .block_on(serve::listen(&args))
            .map_err(|error| not_listening(&error))?;
        let places = listeners.places().context("no address")?;
        let (tell_ready, ready) = oneshot::channel();
        let (stop, mut stopped) = watch::channel(false);
        let ended = runtime.spawn(async move {
            let stop = async move {
                // An error is the end of whoever could say it.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            let ready = move || {
                let _ = tell_ready.send(());
            };
            serve::serve(args, identity, listeners, stop, ready)
                .await
                .map_err(|error| format!("{error:#}"))
        });
        Ok(Self {
            runtime: Some(runtime),
            endpoint: endpoint(places),
            ready: Some(ready),
            stop,
            ended: Some(ended),
        })
    }

    /// Where it answers, with `/v1`.
    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Runs a future on the server's threads until it ends or the user interrupts it: `None`.
    pub(crate) fn until_interrupted<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, Failure> {
        crate::runtime::until_interrupted(self.runtime(), work)
    }

    /// Waits until the model is loaded. `false` where the user interrupted it.
    pub(crate) fn wait_ready(&mut self) -> Result<bool, Failure> {
        let Some(ready) = self.ready.take() else {
            return Ok(true);
        };
        match self.until_interrupted(ready)? {
            Some(Ok(())) => Ok(true),
            None => Ok(false),
            // It ended before.
            Some(Err(_)) => Err(self
                .wait_end()
                .err()
                .unwrap_or_else(|| Failure::failed("the server ended before it was ready"))),
        }
    }

    /// Waits until SIGINT or SIGTERM, drains, and tells how it ended.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let signals = {
            let _inside = self.runtime().enter();
            serve::signals().map_err(|error| Failure::failed(format!("{error:#}")))?
        };
        let stop = self.stop.clone();
        self.runtime().spawn(async move {
            signals.await;
            let _ = stop.send(true);
        });
        self.wait_end()
    }

    fn wait_end(&mut self) -> Result<(), Failure> {
        let Some(ended) = self.ended.take() else {
            return Ok(());
        };
        match self.runtime().block_on(ended) {
            Ok(Ok(End::Drained)) => Ok(()),
            Ok(Ok(End::Refused(failure))) => Err(Failure::failed(format!(
                "the model cannot be loaded: {}",
                failure.chain()
            ))),
            Ok(Ok(End::EngineDied(cause))) => {
                Err(Failure::failed(format!("the engine has ended: {cause}")))
            }
            Ok(Err(message)) => Err(Failure::failed(message)),
            Err(error) => Err(Failure::failed(format!("the server failed: {error}"))),
        }
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is taken on drop only")
    }
}

/// By TLS, where it speaks that.
fn endpoint(places: Places) -> String {
    let tls = places.tls.map(|address| format!("https://{address}/v1"));
    let plain = places.plain.map(|address| format!("http://{address}/v1"));
    tls.or(plain).unwrap_or_default()
}

fn not_listening(error: &ListenError) -> Failure {
    let failure = Failure::failed(chain(error));
    match error {
        ListenError::Bind { .. } => failure.hint("choose another port with --port"),
        ListenError::Certificate(_) => {
            failure.hint("--tls-cert and --tls-key name a certificate and its key, both in PEM")
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What a thread still computes is of no use to anybody.
            runtime.shutdown_background();
        }
    }
}
