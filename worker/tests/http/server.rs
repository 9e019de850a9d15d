//! A worker on a port of its own.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::parrot::Parrot;
use hyprstream_engine::{
    Backend, ChatTemplate, GenerationDefaults, ModelFiles,
    fake::{self, FakeBackend, FakeOptions},
};
use hyprstream_openai::Provenance;
use hyprstream_tls::Trust;
use hyprstream_worker::{
    ModelArgs,
    adapters::{Adapters, Options, fake::FakePacker},
    backend,
    server::{ApiOptions, App, Identity, Listeners, ServerOptions, run},
};
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\
    {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    address: SocketAddr,
    pub(crate) app: Arc<App>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

pub(crate) struct Setup {
    pub(crate) fake: FakeOptions,
    pub(crate) max_queue: usize,
    pub(crate) api: ApiOptions,
    pub(crate) template: &'static str,
    /// Answer with what the user says after `say `, instead of noise.
    pub(crate) parrot: bool,
    pub(crate) drain_timeout: Duration,
    pub(crate) manifest: bool,
    pub(crate) loaded: bool,
    /// How adapters are made ready, and which there are.
    pub(crate) adapters: Option<(Arc<FakePacker>, Options)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            fake: FakeOptions::default(),
            max_queue: 512,
            api: ApiOptions {
                max_body_bytes: 1 << 20,
                ..ApiOptions::default()
            },
            template: TEMPLATE,
            parrot: false,
            drain_timeout: Duration::from_secs(30),
            manifest: true,
            loaded: true,
            adapters: None,
        }
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener.into(), setup)
    }

    /// The same on these listeners; the client is one for plain HTTP.
    pub(crate) fn on(listeners: Listeners, setup: Setup) -> Self {
        let provenance = setup.manifest.then(|| Provenance {
            repository: "https://example.org/m.git".into(),
            reference: Some("main".into()),
            commit: COMMIT.into(),
            ..Provenance::default()
        });
        let identity = Identity {
            name: "fake".into(),
            namespace: Some("default".into()),
            provenance,
        };
        let app = Arc::new(App::new(identity, setup.api).unwrap());
        let places = listeners.places().unwrap();
        let address = places.plain.or(places.tls).unwrap();
        let url = format!("http://{address}");
        let (stop, stopped) = oneshot::channel();
        let options = ServerOptions {
            drain_timeout: setup.drain_timeout,
            drain_delay: Duration::from_millis(300),
        };
        let serving = Arc::clone(&app);
        let task = tokio::spawn(async move {
            run(listeners, serving, options, async { drop(stopped.await) }).await
        });
        let client = plain_client();
        let server = Self {
            url,
            client,
            address,
            app,
            stop,
            task,
        };
        if setup.loaded {
            let model: Box<dyn Backend> = if setup.parrot {
                Box::new(Parrot::new())
            } else {
                Box::new(FakeBackend::new(4096, 12_000, setup.fake))
            };
            server.load_model(model, setup.max_queue, setup.template, setup.adapters);
        }
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn load(&self, fake: FakeOptions, max_queue: usize) {
        let model = Box::new(FakeBackend::new(4096, 12_000, fake));
        self.load_model(model, max_queue, TEMPLATE, None);
    }

    fn load_model(
        &self,
        model: Box<dyn Backend>,
        max_queue: usize,
        template: &str,
        adapters: Option<(Arc<FakePacker>, Options)>,
    ) {
        let files = ModelFiles {
            tokenizer: fake::tokenizer(),
            template: Some(ChatTemplate::new(template, vec![]).unwrap()),
            defaults: GenerationDefaults {
                eos: vec![fake::EOS],
                ..Default::default()
            },
        };
        let args = ModelArgs {
            model: PathBuf::new(),
            device: "cpu".into(),
            dtype: "auto".into(),
            max_model_len: None,
            max_batch: 32,
            threads: None,
            kv_cache_bytes: None,
            max_step_tokens: 512,
            quantization: hyprstream_worker::Quantization::None,
            kernels: hyprstream_worker::Kernels::Auto,
            no_prefix_cache: false,
        };
        let observer = self.app.observer();
        let mut loaded = backend::start(model, files, &args, max_queue, observer).unwrap();
        if let Some((packer, options)) = adapters {
            loaded.adapters = Adapters::new(loaded.engine.clone(), packer, options);
        }
        self.app.set_ready(loaded);
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client
            .get(format!("{}{path}", self.url))
            .send()
            .await
            .unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        self.client
            .post(format!("{}{path}", self.url))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    /// The JSON of a successful answer.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let json: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{json}");
        json
    }

    /// Checks that a request is refused as the API refuses, and returns the error.
    pub(crate) async fn refused(&self, path: &str, body: &Value, status: u16) -> Value {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), status, "{body}");
        assert_eq!(response.headers()["x-hyprstream-commit"], COMMIT);
        let mut json: Value = response.json().await.unwrap();
        let error = json["error"].take();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        error
    }

    /// The data of every event of a streamed answer, the last being `[DONE]`.
    pub(crate) async fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        parse(&response.text().await.unwrap())
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| {
                panic!("no metric {name} in\n{text}");
            });
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric is as wanted: the engine tells of a step after its tokens.
    pub(crate) async fn metric_becomes(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let value = self.metric(name).await;
            if wanted(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The status of an answer to a request with an `authorization`.
    pub(crate) async fn status_with_key(&self, path: &str, key: Option<&str>) -> StatusCode {
        let mut request = self.client.get(format!("{}{path}", self.url));
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        request.send().await.unwrap().status()
    }

    pub(crate) fn begin_shutdown(&mut self) {
        let (unused, _) = oneshot::channel();
        let _ = std::mem::replace(&mut self.stop, unused).send(());
    }

    pub(crate) async fn ended(self) {
        self.task.await.unwrap().unwrap();
    }
}

/// A client for plain HTTP.
pub(crate) fn plain_client() -> reqwest::Client {
    let nobody = Trust::shared().client_config();
    let builder = reqwest::Client::builder().no_proxy();
    builder.tls_backend_preconfigured(nobody).build().unwrap()
}

pub(crate) fn parse(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> = text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{text}");
    events
        .into_iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}
