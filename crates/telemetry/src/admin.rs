//! `/healthz`, `/readyz` and `/metrics` on a port of their own.

use std::{future::Future, io, sync::Arc};

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
use prometheus::{Encoder, TextEncoder};
use tokio::net::TcpListener;

/// Says whether the program is healthy or ready, or why not.
pub type Probe = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The server of health and metrics.
pub struct AdminServer {
    /// Metrics to show.
    pub metrics: prometheus::Registry,
    /// Answers `/healthz`.
    pub health: Probe,
    /// Answers `/readyz`.
    pub ready: Probe,
}

impl AdminServer {
    /// Serves until `shutdown` ends.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let Self {
            metrics,
            health,
            ready,
        } = self;
        let app = Router::new()
            .route("/healthz", get(move || std::future::ready(answer(&health))))
            .route("/readyz", get(move || std::future::ready(answer(&ready))))
            .route(
                "/metrics",
                get(move || std::future::ready(render(&metrics))),
            );
        axum::serve(listener, app)
            .with_graceful_shutdown(shutdown)
            .await
    }
}

fn answer(probe: &Probe) -> (StatusCode, String) {
    match probe() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// The metrics of a registry in Prometheus' text form, as an HTTP answer.
pub fn render(metrics: &prometheus::Registry) -> axum::response::Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&metrics.gather(), &mut text) {
        Ok(()) => ([("content-type", prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
