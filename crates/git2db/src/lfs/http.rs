//! HTTP calls whose redirects do not take our credentials along.

use std::{
    io::Read as _,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::Engine as _;
use ureq::{
    Agent, Body, SendBody,
    http::{Method, Request, Response, header},
    tls::{Certificate, RootCerts, TlsConfig},
};
use url::Url;

use super::{Guard, LfsError, Options, batch, guarded_agent};
use crate::{
    Credentials, Pace,
    pace::{Meter, TooSlow},
    store::StoreError,
};

/// Most redirects that one call follows.
const MAX_REDIRECTS: usize = 5;
/// Most bytes of an error's body that are read.
const MAX_ERROR_BYTES: u64 = 64 << 10;

/// Makes HTTP calls for one endpoint.
pub(super) struct Http {
    agent: Agent,
    endpoint: Url,
    authorization: Option<String>,
    pace: Pace,
}

/// One call.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    /// Sent to the call's own origin only.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Payload<'a>,
}

/// What a call sends.
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A file.
    File {
        open: &'a Open<'a>,
        size: u64,
        chunked: bool,
    },
}

/// Opens what is sent, anew for every attempt.
pub(super) type Open<'a> = dyn Fn() -> std::io::Result<Box<dyn std::io::Read + 'a>> + 'a;

/// Why a call has no good answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// An answer with another status than 2xx.
    Status {
        status: u16,
        retry_after: Option<Duration>,
        message: String,
    },
    /// The host was not reached.
    Unreachable { host: String, detail: String },
    /// The connection failed or broke off, or the answer is against the protocol.
    Broken { detail: String, may_pass: bool },
    /// The other side is so slow that another attempt would only hold the work up.
    TooSlow(TooSlow),
    /// Reading the payload failed.
    Payload(std::io::Error),
    /// Storing what came failed.
    Store(StoreError),
}

impl Http {
    pub(super) fn new(
        endpoint: &str,
        credentials: &Credentials,
        options: &Options,
    ) -> Result<Self, LfsError> {
        let setup = |detail: String| LfsError::Setup { detail };
        let endpoint = Url::parse(endpoint).map_err(|e| setup(e.to_string()))?;
        let tls = tls_config(&endpoint);
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("hyprstream/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.stall_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            .timeout_per_write(Some(options.stall_timeout))
            .max_idle_connections_per_host(options.parallel.max(1))
            .build()
            .new_agent();
        let authorization = credentials.basic().map(|(user, password)| {
            let text = format!("{user}:{password}");
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(text)
            )
        });
        Ok(Self {
            agent,
            endpoint,
            authorization,
            pace: options.pace,
        })
    }

    /// From now on connects only where `guard` allows it.
    pub(super) fn guard(&mut self, guard: Guard) {
        self.agent = guarded_agent(self.agent.config().clone(), Some(guard));
    }

    /// Makes the call and follows redirects. The answer has a status of 2xx.
    pub(super) fn call(&self, call: &Call<'_>) -> Result<Response<Body>, Failure> {
        let protocol = |detail: String| Failure::Broken {
            detail,
            may_pass: false,
        };
        let first = parse(call.url).ok_or_else(|| protocol("a URL that is not HTTP".to_owned()))?;
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(call, &url, url.origin() == first.origin())?;
            let status = response.status().as_u16();
            let follow = match status {
                307 | 308 => true,
                301..=303 => matches!(call.method, Method::GET | Method::HEAD),
                200..=299 => return Ok(response),
                _ => return Err(self.status_failure(response)),
            };
            let location = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| url.join(value).ok())
                .and_then(|next| parse(next.as_str()));
            url = match location {
                Some(next) if follow => next,
                _ => return Err(self.status_failure(response)),
            };
        }
        Err(protocol(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// `own`: no redirect has led to another origin than the call's.
    fn send(&self, call: &Call<'_>, url: &Url, own: bool) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(url.as_str())
            .header(header::ACCEPT_ENCODING, "identity");
        let mut authorized = false;
        for (name, value) in &call.headers {
            if own || is_harmless(name) {
                authorized |= name.eq_ignore_ascii_case("authorization");
                request = request.header(name.as_str(), value.as_str());
            }
        }
        if let Some(ours) = &self.authorization
            && !authorized
            && url.origin() == self.endpoint.origin()
        {
            request = request.header(header::AUTHORIZATION, ours.as_str());
        }
        let bad = |e: ureq::http::Error| Failure::Broken {
            detail: e.to_string(),
            may_pass: false,
        };
        let result = match &call.body {
            Payload::None => self.agent.run(request.body(()).map_err(bad)?),
            Payload::Bytes(bytes) => self.agent.run(request.body(*bytes).map_err(bad)?),
            Payload::File {
                open,
                size,
                chunked,
            } => {
                let mut reader = open().map_err(Failure::Payload)?;
                if !chunked {
                    request = request.header(header::CONTENT_LENGTH, size.to_string());
                }
                let body = SendBody::from_reader(&mut reader);
                self.agent.run(request.body(body).map_err(bad)?)
            }
        };
        result.map_err(|error| transport_failure(url, &error))
    }

    fn status_failure(&self, response: Response<Body>) -> Failure {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse().ok())
            .map(Duration::from_secs);
        let body = read_body(response, MAX_ERROR_BYTES, &mut Meter::new(self.pace));
        let message = body
            .ok()
            .and_then(|text| serde_json::from_slice::<batch::ErrorBody>(&text).ok())
            .map(|body| {
                body.message
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(200)
                    .collect()
            })
            .unwrap_or_default();
        Failure::Status {
            status,
            retry_after,
            message,
        }
    }
}

/// By what a server is believed: the system's authorities, or what [`crate::trust_only`] said. The
/// objects of such a server lie with it.
pub fn tls_config(endpoint: &Url) -> TlsConfig {
    let roots = match crate::trusted::of_endpoint(endpoint) {
        None => RootCerts::PlatformVerifier,
        Some(trust) => {
            let all = trust.certificates();
            let all = all.iter().map(|one| Certificate::from_der(one).to_owned());
            RootCerts::Specific(Arc::new(all.collect()))
        }
    };
    TlsConfig::builder().root_certs(roots).build()
}

/// The whole body of an answer, of at most `limit` bytes.
pub(super) fn read_body(
    response: Response<Body>,
    limit: u64,
    meter: &mut Meter,
) -> Result<Vec<u8>, Failure> {
    let broken = |detail: String| Failure::Broken {
        detail,
        may_pass: true,
    };
    let mut reader = response
        .into_body()
        .into_with_config()
        .limit(limit)
        .reader();
    meter.flows();
    let mut text = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let begin = Instant::now();
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(text),
            Ok(read) => {
                text.extend_from_slice(&buffer[..read]);
                meter
                    .waited(begin.elapsed(), read as u64)
                    .map_err(Failure::TooSlow)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error.to_string())),
        }
    }
}

/// Whether a header is no secret, and the target of a redirect must know it.
fn is_harmless(name: &str) -> bool {
    let harmless = ["range", "content-type", "tus-resumable", "upload-offset"];
    harmless
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

/// The URL, if it is one that may be called.
fn parse(text: &str) -> Option<Url> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn transport_failure(url: &Url, error: &ureq::Error) -> Failure {
    use ureq::Error as E;
    let host = url.host_str().unwrap_or_default().to_owned();
    let detail = error.to_string();
    let refused = |kind| {
        use std::io::ErrorKind as K;
        matches!(
            kind,
            K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable
        )
    };
    match error {
        E::HostNotFound
        | E::ConnectionFailed
        | E::Tls(_)
        | E::Rustls(_)
        | E::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            Failure::Unreachable { host, detail }
        }
        E::Io(error) if refused(error.kind()) => Failure::Unreachable { host, detail },
        // What TLS refuses, such as a certificate that is not trusted.
        E::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Failure::Unreachable { host, detail }
        }
        // The standard library has no kind for a failed name resolution.
        E::Io(error) if error.to_string().contains("failed to lookup address") => {
            Failure::Unreachable { host, detail }
        }
        E::Io(_) | E::Timeout(_) | E::Protocol(_) | E::ConnectProxyFailed(_) => Failure::Broken {
            detail,
            may_pass: true,
        },
        _ => Failure::Broken {
            detail,
            may_pass: false,
        },
    }
}

impl Failure {
    /// Whether the same call may succeed soon.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500..=599) && *status != 501
            }
            Self::Unreachable { .. } => true,
            Self::Broken { may_pass, .. } => *may_pass,
            Self::TooSlow(_) | Self::Payload(_) | Self::Store(_) => false,
        }
    }

    /// For people.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Status {
                status, message, ..
            } if message.is_empty() => format!("HTTP {status}"),
            Self::Status {
                status, message, ..
            } => format!("HTTP {status}: {message}"),
            Self::Unreachable { detail, .. } | Self::Broken { detail, .. } => detail.clone(),
            Self::TooSlow(slow) => slow.to_string(),
            Self::Payload(error) => error.to_string(),
            Self::Store(error) => error.to_string(),
        }
    }

    /// The error of a call to `url` that is not tried again.
    pub(super) fn into_error(self, url: &str) -> LfsError {
        let detail = self.detail();
        let url = url.split('?').next().unwrap_or_default().to_owned();
        match self {
            Self::Status {
                status: status @ (401 | 403),
                ..
            } => LfsError::AuthenticationFailed { url, status },
            Self::Status {
                status: 429,
                retry_after,
                ..
            } => LfsError::RateLimited { url, retry_after },
            Self::Unreachable { host, detail } => LfsError::HostUnreachable { host, detail },
            Self::Store(error) => LfsError::Store(error),
            Self::Status { .. } | Self::Broken { .. } | Self::TooSlow(_) | Self::Payload(_) => {
                LfsError::Upstream { url, detail }
            }
        }
    }
}
