//! Section by section, what must be seen to happen on a real cluster. Run by `cargo xtask test`,
//! one test at a time.
#![allow(clippy::expect_used)]

mod adapters;
mod bad_commits;
mod bad_sources;
mod bystanders;
mod certificates;
mod disks;
mod forward;
mod grants;
mod kills;
mod last_good;
mod lifecycle;
mod node_loss;
mod plugin;
mod rights;
mod rollout;
mod serving;
mod sharing;
mod tls;
mod training;
mod written;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hyprstream_e2e::{Cluster, Model, Namespace, Repository, TinyModel};

/// Long enough for a machine with two busy cores; nothing is waited for this long when it works.
const PATIENCE: Duration = Duration::from_mins(3);

/// A namespace with a tiny model `tiny` that serves the first commit of its repository.
struct Tiny {
    cluster: Cluster,
    namespace: Namespace,
    repository: Repository,
    model: Model,
    commit: String,
}

const ENGINE: &str = "  engine: {maxModelLen: 1024, maxBatch: 16, threads: 1}\n";

impl Tiny {
    fn serve(hint: &str) -> Result<Self> {
        Self::serve_with(hint, "")
    }

    /// `spec` is added to the Model's spec, indented by two.
    fn serve_with(hint: &str, spec: &str) -> Result<Self> {
        let cluster = Cluster::from_env()?;
        let namespace = cluster.namespace(hint)?;
        let repository = Repository::new(&cluster, &namespace.name, "tiny")?;
        TinyModel::new(fresh_seed()).write(&repository)?;
        let commit = repository.publish("first")?;
        let model = namespace.apply_model("tiny", &tiny_spec(&repository.url, spec))?;
        model.wait_ready_on(&commit, PATIENCE)?;
        Ok(Self {
            cluster,
            namespace,
            repository,
            model,
            commit,
        })
    }

    /// Pushes the weights of another seed; the commit.
    fn push_seed(&self, seed: u64) -> Result<String> {
        TinyModel::new(seed).write(&self.repository)?;
        self.repository.publish(&format!("seed {seed}"))
    }
}

/// A seed that no earlier test had: equal weights would be on the nodes already.
fn fresh_seed() -> u64 {
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is later than 1970");
    time.as_nanos() as u64
}

fn tiny_spec(url: &str, more: &str) -> String {
    format!("  source: {{url: {url:?}, ref: {{branch: main}}}}\n{ENGINE}{more}")
}
