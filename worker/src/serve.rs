//! `serve`: load a model and answer until told to stop.

use std::{
    future::Future, io, net::SocketAddr, process::ExitCode, sync::Arc, thread, time::Duration,
};

use anyhow::Context;
use hyprstream_contract::worker::EXIT_MODEL_REFUSED;
use hyprstream_tls::{ServerIdentity, TlsError};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::{error, info};

use crate::{
    ServeArgs, TlsArgs,
    adapters::{Adapters, Packer},
    backend::{self, LoadFailure, Loaded},
    last_words,
    server::{self, App, Identity, Listeners, ServerOptions, Tls},
};

/// Threads that move bytes. The model's own threads are what the processor is for.
const HTTP_THREADS: usize = 2;
/// Threads that render and tokenize prompts.
const TOKENIZE_THREADS: usize = 4;

/// Time for the last answers after the engine has died.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How a server ended.
#[derive(Debug)]
pub enum End {
    /// It was told to stop, and has answered what it had taken.
    Drained,
    /// The model cannot be loaded.
    Refused(LoadFailure),
    /// The engine ended, for this cause.
    EngineDied(String),
}

/// Serves until SIGTERM or SIGINT, and drains then.
pub fn run(args: ServeArgs) -> ExitCode {
    let termination_log = args.termination_log.clone();
    let ended = runtime()
        .context("the runtime cannot be started")
        .and_then(|runtime| {
            let end = runtime.block_on(async {
                let listeners = listen(&args).await?;
                let (name, namespace) = (args.name.clone(), args.namespace.clone());
                let identity = Identity::read(&args.model.model, name, namespace)?;
                serve(args, identity, listeners, signals()?, || {}).await
            });
            // What a thread still computes is of no use to anybody.
            runtime.shutdown_background();
            end
        });
    match ended {
        Ok(End::Drained) => ExitCode::SUCCESS,
        Ok(End::Refused(failure)) => {
            let (reason, message) = (failure.reason(), failure.chain());
            error!(reason, message, "the model cannot be loaded");
            last_words::leave(&termination_log, reason, &message);
            if failure.is_final() {
                ExitCode::from(EXIT_MODEL_REFUSED as u8)
            } else {
                ExitCode::FAILURE
            }
        }
        Ok(End::EngineDied(cause)) => {
            error!(cause, "the engine has ended, and this worker with it");
            last_words::leave(&termination_log, "EngineDied", &cause);
            ExitCode::FAILURE
        }
        Err(error) => {
            let message = format!("{error:#}");
            error!(message, "the worker cannot run");
            last_words::leave(&termination_log, "InternalError", &message);
            ExitCode::FAILURE
        }
    }
}

/// The threads that a server needs beside those of the model.
///
/// # Errors
/// They cannot be started.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(TOKENIZE_THREADS)
        .enable_all()
        .build()
}

/// Ends with the first SIGTERM or SIGINT.
///
/// # Errors
/// They cannot be waited for.
pub fn signals() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("no signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signal handler")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A server cannot be reached as it was told to be.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address and port.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to speak TLS with.
    #[error("the certificate to show cannot be used")]
    Certificate(#[source] TlsError),
}

/// Listens where `args` say, for plain HTTP, TLS, or both.
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(args: &ServeArgs) -> Result<Listeners, ListenError> {
    let bind = async |port| {
        let address = SocketAddr::new(args.host, port);
        let listener = TcpListener::bind(address).await;
        listener.map_err(|source| ListenError::Bind { address, source })
    };
    let TlsArgs {
        tls_cert: Some(certificate),
        tls_key: Some(key),
        tls_port,
    } = &args.tls
    else {
        return Ok(bind(args.port).await?.into());
    };
    let identity =
        ServerIdentity::open(certificate.clone(), key.clone()).map_err(ListenError::Certificate)?;
    let (plain, tls) = match tls_port {
        None => (None, bind(args.port).await?),
        Some(port) => (Some(bind(args.port).await?), bind(*port).await?),
    };
    Ok(Listeners {
        plain,
        tls: Some((tls, Tls::new(&identity))),
    })
}

/// Answers on `listeners` at once, loads the model, calls `ready`, and drains after `stop`. What
/// `args` say of name, address and logs is the caller's matter.
///
/// # Errors
/// The API keys cannot be read, or the server fails. A model that cannot be loaded is
/// [`End::Refused`].
pub async fn serve(
    args: ServeArgs,
    identity: Identity,
    listeners: Listeners,
    stop: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce() + Send,
) -> anyhow::Result<End> {
    let options = args.api.options().context("the API keys cannot be read")?;
    let app = Arc::new(App::new(identity.clone(), options)?);
    let places = listeners.places().context("no address")?;
    let options = ServerOptions {
        drain_timeout: args.drain_timeout,
        drain_delay: args.drain_delay,
    };
    let mut server = Box::pin(server::run(listeners, Arc::clone(&app), options, stop));
    info!(address = %places, model = %args.model.model.display(), "listening, loading the model");

    let started = std::time::Instant::now();
    tokio::select! {
        ended = &mut server => ended.map(|()| End::Drained).context("the server failed"),
        loaded = load(&args, &app) => match loaded {
            Ok((mut loaded, packer)) => {
                let adapters = args.adapters.options(
                    &args.model.model,
                    &identity,
                    loaded.engine.spec(),
                    packer.gpu_free_bytes(),
                );
                loaded.adapters = Adapters::new(loaded.engine.clone(), packer, adapters);
                let spec = loaded.engine.spec().clone();
                let max_model_len = loaded.engine.max_model_len();
                let died = loaded.engine.died();
                app.set_ready(loaded);
                info!(
                    model = %spec, max_model_len, blocks = spec.num_blocks,
                    seconds = started.elapsed().as_secs_f64(), "ready"
                );
                ready();
                until_either(server, died, &app).await
            }
            Err(failure) => Ok(End::Refused(failure)),
        },
    }
}

/// Serves until `server` ends, or soon after the engine has `died`: another pod takes over earlier
/// than when a probe finds out. Requests in flight get their errors told before.
async fn until_either(
    mut server: impl Future<Output = io::Result<()>> + Unpin,
    died: impl Future<Output = String>,
    app: &App,
) -> anyhow::Result<End> {
    let cause = tokio::select! {
        // At the end of a drain the engine is stopped, which is no death.
        biased;
        ended = &mut server => return ended.map(|()| End::Drained).context("the server failed"),
        cause = died => cause,
    };
    tokio::select! {
        ended = server => ended.context("the server failed")?,
        () = app.abandon(LAST_ANSWERS) => {}
    }
    Ok(End::EngineDied(cause))
}

/// Loads on a thread of its own, so that the server answers meanwhile.
async fn load(args: &ServeArgs, app: &App) -> Result<(Loaded, Arc<dyn Packer>), LoadFailure> {
    let (sender, receiver) = oneshot::channel();
    let (model, max_queue, observer) = (args.model.clone(), args.max_queue, app.observer());
    let loading = thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            // Nobody waits any more when the worker was told to stop meanwhile.
            let _ = sender.send(backend::load(&model, max_queue, observer));
        });
    match loading {
        Ok(_) => receiver.await.unwrap_or(Err(LoadFailure::Panic)),
        Err(error) => Err(hyprstream_engine::StartError::Thread(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    #[tokio::test]
    async fn a_worker_ends_with_its_engine_and_says_why() {
        let identity = Identity {
            name: "m".to_owned(),
            namespace: None,
            provenance: None,
        };
        let app = App::new(identity, server::ApiOptions::default()).unwrap();
        let server = future::pending::<io::Result<()>>();
        let died = future::ready("the device is gone".to_owned());
        let started = std::time::Instant::now();
        let end = until_either(server, died, &app).await.unwrap();
        assert!(matches!(end, End::EngineDied(cause) if cause == "the device is gone"));
        assert!(started.elapsed() < LAST_ANSWERS);

        let ended = future::ready(Ok(()));
        let end = until_either(ended, future::ready(String::new()), &app).await;
        assert!(matches!(end.unwrap(), End::Drained));
    }
}
