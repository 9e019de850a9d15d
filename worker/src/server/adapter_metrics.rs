//! Metrics of adapters, under the names by which routers of vLLM find the worker that has one.
//!
//! There a running adapter is one that a request runs with, and whoever has been idle for a moment
//! is told of nowhere, so that its next request goes to a worker that has to load it. Here it is one
//! that requests can run with at once.

use hyprstream_contract::worker_adapters::{LoadState, Origin, WorkerAdapters};
use prometheus::{GaugeVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::adapters::Facts;

/// Most adapters that are told by name, those that are in use first: whoever scrapes keeps a series
/// for each name that there ever was.
const MAX_NAMES: usize = 256;

/// Gauges that are set before each scrape.
pub(super) struct AdapterGauges {
    requests: GaugeVec,
    loaded: IntGaugeVec,
    resident: IntGauge,
    max_resident: IntGauge,
    states: IntGaugeVec,
    bytes: IntGauge,
}

impl AdapterGauges {
    /// Of a worker of the model `name`, registered in `registry`.
    pub(super) fn new(name: &str, registry: &Registry) -> Result<Self, prometheus::Error> {
        let of = |metric: &str, help: &str| Opts::new(metric, help).const_label("model_name", name);
        let gauge = |metric, help| {
            let gauge = IntGauge::with_opts(of(metric, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let gauges = |metric, help, labels: &[&str]| {
            let gauges = IntGaugeVec::new(of(metric, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let requests = GaugeVec::new(
            of(
                "vllm:lora_requests_info",
                "Adapters that requests run with or can at once, and those that requests wait for; \
                 the value is the time.",
            ),
            &["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        Ok(Self {
            requests,
            loaded: gauges(
                "vllm:lora_adapter_loaded",
                "Adapters that are ready to compute with.",
                &["adapter_name", "level", "pinned", "rank"],
            )?,
            resident: gauge(
                "vllm:num_gpu_loaded_lora_adapters",
                "How many adapters are ready to compute with.",
            )?,
            max_resident: gauge(
                "vllm:max_gpu_lora_adapters",
                "How many adapters may be ready to compute with.",
            )?,
            states: gauges(
                "hyprstream_adapters",
                "Adapters that are served or asked for.",
                &["origin", "state"],
            )?,
            bytes: gauge(
                "hyprstream_adapter_memory_bytes",
                "Memory of adapters that are ready to compute with.",
            )?,
        })
    }

    /// Tells what there is at `now`, in seconds since 1970. Names that were told before are gone.
    pub(super) fn set(&self, facts: &Facts, list: &WorkerAdapters, now: u64) {
        self.loaded.reset();
        for (name, rank) in &facts.resident[..facts.resident.len().min(MAX_NAMES)] {
            let labels = [name.as_str(), "gpu", "false", &rank.to_string()];
            self.loaded.with_label_values(&labels).set(1);
        }
        self.resident.set(facts.resident.len() as i64);
        self.max_resident.set(facts.max_resident as i64);
        self.requests.reset();
        let idle = facts.resident.iter().map(|(name, _)| name);
        let idle = idle.filter(|name| !facts.running.contains_key(*name));
        let labels = [
            facts.max_resident.to_string(),
            joined(facts.running.keys().chain(idle)),
            joined(facts.waiting.keys()),
        ];
        let labels: [&str; 3] = std::array::from_fn(|at| labels[at].as_str());
        self.requests.with_label_values(&labels).set(now as f64);
        self.set_states(list);
    }

    fn set_states(&self, list: &WorkerAdapters) {
        self.states.reset();
        for origin in ["followed", "repository", "request"] {
            for state in ["loading", "loaded", "failed"] {
                self.states.with_label_values(&[origin, state]).set(0);
            }
        }
        let mut bytes = 0;
        for adapter in &list.data {
            let origin = match adapter.origin {
                Origin::Followed => "followed",
                Origin::Repository => "repository",
                Origin::Request => "request",
            };
            let state = match adapter.state {
                LoadState::Loading => "loading",
                LoadState::Loaded => "loaded",
                LoadState::Failed { .. } => "failed",
            };
            self.states.with_label_values(&[origin, state]).inc();
            let resident = adapter.serving.iter().filter(|serving| serving.resident);
            bytes += resident.map(|serving| serving.bytes).sum::<u64>();
        }
        self.bytes.set(bytes as i64);
    }
}

/// The first of `names`, parted by commas, which no name holds.
fn joined<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.take(MAX_NAMES).map(String::as_str).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[track_caller]
    fn check(facts: &Facts, lines: &[&str]) {
        let registry = Registry::new();
        let gauges = AdapterGauges::new("m", &registry).unwrap();
        gauges.set(&Facts::default(), &WorkerAdapters::default(), 6);
        gauges.set(facts, &WorkerAdapters::default(), 7);
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        let count = |name| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(count("vllm:lora_requests_info"), 1, "{text}");
        assert!(count("vllm:lora_adapter_loaded") <= MAX_NAMES);
        for line in lines {
            assert!(
                text.lines().any(|found| found == *line),
                "{line} in\n{text}"
            );
        }
    }

    #[test]
    fn an_idle_adapter_is_told_of_as_well() {
        let facts = Facts {
            resident: vec![("a".into(), 8), ("b".into(), 16)],
            max_resident: 4,
            running: [("b".to_owned(), 2)].into(),
            waiting: [("c".to_owned(), 1)].into(),
        };
        check(
            &facts,
            &[
                "vllm:lora_requests_info{max_lora=\"4\",model_name=\"m\",\
                 running_lora_adapters=\"b,a\",waiting_lora_adapters=\"c\"} 7",
                "vllm:lora_adapter_loaded{adapter_name=\"b\",level=\"gpu\",model_name=\"m\",\
                 pinned=\"false\",rank=\"16\"} 1",
                "vllm:num_gpu_loaded_lora_adapters{model_name=\"m\"} 2",
                "vllm:max_gpu_lora_adapters{model_name=\"m\"} 4",
                "hyprstream_adapters{model_name=\"m\",origin=\"request\",state=\"failed\"} 0",
            ],
        );
    }

    #[test]
    fn however_many_adapters_there_are_few_are_told_by_name() {
        let resident = (0..3000).map(|at| (format!("a{at:04}"), 8));
        let facts = Facts {
            resident: resident.collect(),
            max_resident: 4000,
            ..Facts::default()
        };
        check(
            &facts,
            &["vllm:num_gpu_loaded_lora_adapters{model_name=\"m\"} 3000"],
        );
        assert_eq!(
            joined(facts.resident.iter().map(|(name, _)| name)).len(),
            MAX_NAMES * 6 - 1
        );
    }
}
