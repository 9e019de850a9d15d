//! `check`: asks a running gateway whether it works. For `helm test`, which needs no other image.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use hyprstream_openai::ModelList;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Why a gateway does not work.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The URL cannot be used.
    #[error("{0:?} is not a URL of the form http://HOST[:PORT]")]
    Url(String),
    /// No connection.
    #[error("connect to {authority}")]
    Connect {
        /// Host and port.
        authority: String,
        /// Why.
        source: std::io::Error,
    },
    /// No answer.
    #[error("get {path}")]
    Get {
        /// Path.
        path: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is an error.
    #[error("get {path}: status {status}: {body}")]
    Status {
        /// Path.
        path: &'static str,
        /// Status.
        status: StatusCode,
        /// Beginning of the body.
        body: String,
    },
    /// The list of models cannot be read.
    #[error("read the list of models")]
    List(#[source] serde_json::Error),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Pause between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// The ids of the models that the gateway at `url` lists, after it said that it is healthy and
/// ready. Tries until `limit` is over.
///
/// # Errors
/// It could not be reached in time, or one of the answers is not as it must be: the failure of the
/// last attempt.
pub async fn check(url: &str, limit: Duration) -> Result<Vec<String>, CheckError> {
    let deadline = Instant::now() + limit;
    loop {
        let attempt = timeout_at(deadline, check_all(url)).await;
        let result = attempt.map_err(|_| CheckError::Timeout(limit))?;
        let is_final = matches!(result, Ok(_) | Err(CheckError::Url(_)));
        if is_final || Instant::now() + PAUSE >= deadline {
            return result;
        }
        sleep(PAUSE).await;
    }
}

async fn check_all(url: &str) -> Result<Vec<String>, CheckError> {
    let bad_url = || CheckError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad_url())?;
    let host = uri
        .host()
        .filter(|_| uri.scheme_str() == Some("http"))
        .ok_or_else(bad_url)?;
    let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    get(&authority, "/health").await?;
    get(&authority, "/ready").await?;
    let list = get(&authority, "/v1/models").await?;
    let list: ModelList = serde_json::from_slice(&list).map_err(CheckError::List)?;
    Ok(list.data.into_iter().map(|model| model.id).collect())
}

async fn get(authority: &str, path: &'static str) -> Result<Bytes, CheckError> {
    let socket = TcpStream::connect(authority)
        .await
        .map_err(|source| CheckError::Connect {
            authority: authority.to_owned(),
            source,
        })?;
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| CheckError::Get { path, source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|e| failed(e.into()))?;
    // Its error also reaches the request.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, authority)
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(e.into()))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| failed(e.into()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(failed)?;
    let body = body.to_bytes();
    if status != StatusCode::OK {
        let body = String::from_utf8_lossy(&body).chars().take(500).collect();
        return Err(CheckError::Status { path, status, body });
    }
    Ok(body)
}
