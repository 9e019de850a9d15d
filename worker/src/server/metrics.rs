//! Metrics under the names that vLLM's dashboards and inference gateways know.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::response::Response;
use hyprstream_contract::worker_adapters::WorkerAdapters;
use hyprstream_engine::{ModelSpec, Observer, Stats, StepReport};
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry,
};

use super::{adapter_metrics::AdapterGauges, identity::Identity};
use crate::adapters::{Adapters, Facts};
use crate::clock::now;

/// The worker's metrics; fed by the engine's thread.
pub(super) struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    cache_usage: Gauge,
    cache_config: GaugeVec,
    model_info: GaugeVec,
    total_blocks: IntGauge,
    preemptions: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    finished: IntCounterVec,
    first_token: Histogram,
    next_token: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_size: Histogram,
    answer_size: Histogram,
    step_tokens: Histogram,
    provenance: [String; 3],
    /// Answers by path and status.
    responses: CounterVec,
    /// Locked from setting to telling, as other scrapes set them too.
    adapters: Mutex<AdapterGauges>,
}

impl Metrics {
    pub(super) fn new(identity: &Identity) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let of = |name: &str, help: &str| {
            Opts::new(name, help).const_label("model_name", identity.name.as_str())
        };
        let gauge = |name, help| {
            let gauge = IntGauge::with_opts(of(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name, help| {
            let counter = IntCounter::with_opts(of(name, help))?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let info = |name, help, labels: &[&str]| {
            let gauge = GaugeVec::new(of(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help)
                .const_label("model_name", identity.name.as_str())
                .buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let seconds = [
            0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0,
            120.0, 300.0,
        ];
        let sizes: Vec<f64> = (0..18).map(|power| f64::from(1 << power)).collect();
        let cache_usage = Gauge::with_opts(of(
            "vllm:kv_cache_usage_perc",
            "Share of the cache in use, 0 to 1.",
        ))?;
        registry.register(Box::new(cache_usage.clone()))?;
        let finished = IntCounterVec::new(
            of(
                "vllm:request_success_total",
                "Requests that ended, by reason.",
            ),
            &["finished_reason"],
        )?;
        registry.register(Box::new(finished.clone()))?;
        for reason in ["stop", "length", "abort", "error"] {
            finished.with_label_values(&[reason]);
        }
        let responses = CounterVec::new(
            of(
                "hyprstream_http_responses_total",
                "Answers, by route and status.",
            ),
            &["route", "status"],
        )?;
        registry.register(Box::new(responses.clone()))?;
        let adapters = Mutex::new(AdapterGauges::new(&identity.name, &registry)?);
        let provenance = match &identity.provenance {
            Some(p) => [
                p.repository.clone(),
                p.reference.clone().unwrap_or_default(),
                p.commit.clone(),
            ],
            None => [String::new(), String::new(), String::new()],
        };
        Ok(Self {
            running: gauge("vllm:num_requests_running", "Requests that run.")?,
            waiting: gauge("vllm:num_requests_waiting", "Requests that wait.")?,
            total_blocks: gauge("hyprstream_kv_cache_blocks", "Cache blocks in all.")?,
            cache_usage,
            cache_config: info(
                "vllm:cache_config_info",
                "Sizes of the cache.",
                &["block_size", "num_gpu_blocks"],
            )?,
            model_info: info(
                "hyprstream_model_info",
                "What is served.",
                &[
                    "repository",
                    "ref",
                    "commit",
                    "architecture",
                    "dtype",
                    "device",
                ],
            )?,
            preemptions: counter(
                "vllm:num_preemptions_total",
                "Requests that lost their cache.",
            )?,
            prefix_queries: counter(
                "vllm:prefix_cache_queries_total",
                "Tokens looked for in the prefix cache.",
            )?,
            prefix_hits: counter(
                "vllm:prefix_cache_hits_total",
                "Tokens found in the prefix cache.",
            )?,
            prompt_tokens: counter("vllm:prompt_tokens_total", "Tokens of prompts.")?,
            generation_tokens: counter("vllm:generation_tokens_total", "Tokens generated.")?,
            finished,
            first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "From submission to the first token.",
                &seconds,
            )?,
            next_token: histogram(
                "vllm:inter_token_latency_seconds",
                "From one token to the next.",
                &seconds,
            )?,
            whole: histogram(
                "vllm:e2e_request_latency_seconds",
                "From submission to the last token.",
                &seconds,
            )?,
            queue: histogram(
                "vllm:request_queue_time_seconds",
                "From submission to the first step.",
                &seconds,
            )?,
            prefill: histogram(
                "vllm:request_prefill_time_seconds",
                "From the first step to the first token.",
                &seconds,
            )?,
            decode: histogram(
                "vllm:request_decode_time_seconds",
                "From the first token to the last.",
                &seconds,
            )?,
            prompt_size: histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", &sizes)?,
            answer_size: histogram(
                "vllm:request_generation_tokens",
                "Tokens of an answer.",
                &sizes,
            )?,
            step_tokens: histogram(
                "vllm:iteration_tokens_total",
                "Tokens of an engine step.",
                &sizes,
            )?,
            provenance,
            responses,
            adapters,
            registry,
        })
    }

    /// Notes what the engine runs, and how long loads of its adapters take.
    pub(super) fn set_model(&self, spec: &ModelSpec, adapter_loads: Option<Histogram>) {
        // Only a second model's would be there already, and that is not taken.
        if let Some(seconds) = adapter_loads {
            let _ = self.registry.register(Box::new(seconds));
        }
        let [repository, reference, commit] = &self.provenance;
        let values = [
            repository.as_str(),
            reference,
            commit,
            &spec.architecture,
            &spec.dtype,
            &spec.device,
        ];
        self.model_info.with_label_values(&values).set(1.0);
        let (size, count) = (spec.block_size.to_string(), spec.num_blocks.to_string());
        self.cache_config
            .with_label_values(&[&size, &count])
            .set(1.0);
        self.total_blocks.set(spec.num_blocks as i64);
    }

    pub(super) fn count_response(&self, route: &str, status: u16) {
        self.responses
            .with_label_values(&[route, &status.to_string()])
            .inc();
    }

    /// All of them, with what the model's adapters are now. They are asked for and not kept, since
    /// they keep the engine, which keeps these.
    pub(super) fn render(&self, adapters: Option<&Adapters>) -> Response {
        let (facts, list) = match adapters {
            Some(adapters) => (adapters.facts(), adapters.list()),
            None => (Facts::default(), WorkerAdapters::default()),
        };
        let gauges = self.adapters.lock();
        let gauges = gauges.unwrap_or_else(PoisonError::into_inner);
        gauges.set(&facts, &list, now());
        hyprstream_telemetry::render(&self.registry)
    }
}

impl Observer for Metrics {
    fn step(&self, report: &StepReport) {
        self.running.set(report.running as i64);
        self.waiting.set(report.waiting as i64);
        let total = self.total_blocks.get().max(1) as f64;
        self.cache_usage.set(report.used_blocks as f64 / total);
        self.preemptions.inc_by(report.preempted as u64);
        self.prefix_queries.inc_by(report.prefix_queries as u64);
        self.prefix_hits.inc_by(report.prefix_hits as u64);
        if report.tokens > 0 {
            self.step_tokens.observe(report.tokens as f64);
        }
    }

    fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
        self.generation_tokens.inc();
    }

    fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
        self.generation_tokens.inc();
    }

    fn finished(&self, stats: &Stats, reason: &'static str) {
        self.finished.with_label_values(&[reason]).inc();
        self.prompt_tokens.inc_by(stats.prompt_tokens as u64);
        self.prompt_size.observe(stats.prompt_tokens as f64);
        self.answer_size.observe(stats.completion_tokens as f64);
        if stats.completion_tokens > 0 {
            self.queue.observe(stats.queue_time.as_secs_f64());
            self.prefill.observe(stats.prefill_time.as_secs_f64());
            self.decode.observe(stats.decode_time.as_secs_f64());
            self.whole.observe(stats.elapsed().as_secs_f64());
        }
    }
}
