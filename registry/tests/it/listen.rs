//! Servers on a port and a thread of their own.

use std::{net::SocketAddr, thread::JoinHandle, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Any port of this machine.
pub(crate) const ANY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A server that runs until this is dropped.
pub(crate) struct Listening {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Serves `app` on any port; requests under way end with the server.
    pub(crate) fn app(app: axum::Router) -> Self {
        Self::app_at(ANY, app)
    }

    /// The same at a given address.
    pub(crate) fn app_at(address: SocketAddr, app: axum::Router) -> Self {
        Self::start(address, move |listener, stop| async move {
            tokio::select! {
                served = axum::serve(listener, app) => served.unwrap(),
                () = stop.cancelled() => {}
            }
        })
    }

    /// Runs `serve`, which ends when it is told to.
    pub(crate) fn start<F: Future<Output = ()>>(
        address: SocketAddr,
        serve: impl FnOnce(TcpListener, CancellationToken) -> F + Send + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let (sender, receiver) = std::sync::mpsc::channel();
        let end = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind(address).await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, end).await;
            });
            runtime.shutdown_timeout(Duration::from_secs(20));
        });
        Self {
            address: receiver.recv().unwrap(),
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it; what failed in it fails the test.
    pub(crate) fn end(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
