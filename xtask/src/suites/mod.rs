//! Clients that people use, against a running worker: `worker/suites`.
//!
//! Suites about answers run against SmolLM2 on the real program; suites about requests run
//! against `fake-worker`, the same HTTP side on a model that computes nothing.

mod environment;
mod soak;
mod worker;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

pub(crate) use self::soak::{SoakArgs, run as soak};
use self::worker::Worker;
use crate::{
    paths::{Cache, Checkout},
    proc,
    programs::{self, WORKER},
    ui::Step,
    weights,
};

/// What the suites are made of.
const FOLDER: &str = "worker/suites";

/// Which suites to run, and against what.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct SuitesArgs {
    /// Only these, by name.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Takes the programs as they were built last.
    #[arg(long)]
    no_build: bool,
    #[arg(skip)]
    tested_with: Option<PathBuf>,
}

impl SuitesArgs {
    /// All suites, after unit tests that have built `fake-worker` with these libraries of libtorch:
    /// it is not compiled again without them.
    pub(crate) fn after_tests(libraries: PathBuf) -> Self {
        Self {
            tested_with: Some(libraries),
            ..Self::default()
        }
    }
}

/// What answers a suite's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// SmolLM2 on the real program.
    Model,
    /// The HTTP side on a model that computes nothing.
    Fake,
}

/// How a suite is run, in `worker/suites`.
enum Runner {
    /// A file of tests for pytest, with more variables of the environment.
    Pytest(&'static str, &'static [(&'static str, &'static str)]),
    /// The same in the environment of the agent frameworks.
    Agents(&'static str),
    /// A file for node's own test runner.
    Node(&'static str),
    /// A Python script with arguments.
    Script(&'static [&'static str]),
    /// schemathesis on `/openapi.json`.
    Schemathesis,
}

struct Suite {
    name: &'static str,
    target: Target,
    runner: Runner,
}

const fn suite(name: &'static str, target: Target, runner: Runner) -> Suite {
    Suite {
        name,
        target,
        runner,
    }
}

const SUITES: &[Suite] = &[
    suite(
        "openai-python",
        Target::Model,
        Runner::Pytest("test_openai.py", &[]),
    ),
    suite("openai-npm", Target::Model, Runner::Node("openai.test.mjs")),
    suite(
        "langchain",
        Target::Model,
        Runner::Pytest("test_langchain.py", &[]),
    ),
    suite("litellm", Target::Model, Runner::Agents("test_litellm.py")),
    suite(
        "instructor",
        Target::Model,
        Runner::Agents("test_instructor.py"),
    ),
    suite(
        "pydantic-ai",
        Target::Model,
        Runner::Agents("test_pydantic_ai.py"),
    ),
    suite(
        "openai-agents",
        Target::Model,
        Runner::Agents("test_openai_agents.py"),
    ),
    suite("dspy", Target::Model, Runner::Agents("test_dspy.py")),
    suite(
        "comply-chat",
        Target::Model,
        Runner::Script(&["comply.py", "openai-chat"]),
    ),
    suite(
        "comply-responses",
        Target::Model,
        Runner::Script(&["comply.py", "open-responses"]),
    ),
    suite(
        "lm-eval",
        Target::Model,
        Runner::Pytest("test_lm_eval.py", &[]),
    ),
    suite(
        "robust",
        Target::Model,
        Runner::Pytest("test_robust.py", &[]),
    ),
    suite(
        "nonsense-model",
        Target::Model,
        Runner::Pytest("test_nonsense.py", &[("SUITE_NONSENSE_ROUNDS", "100")]),
    ),
    suite(
        "robust-fake",
        Target::Fake,
        Runner::Pytest("test_robust.py", &[]),
    ),
    suite(
        "nonsense",
        Target::Fake,
        Runner::Pytest("test_nonsense.py", &[]),
    ),
    suite("schemathesis", Target::Fake, Runner::Schemathesis),
];

/// Name of the served model.
const MODEL_NAME: &str = "smollm2";
const FAKE_NAME: &str = "fake";

/// Runs the suites, all of them even when some fail.
pub(crate) fn run(checkout: &Checkout, cache: &Cache, args: &SuitesArgs) -> Result<()> {
    let chosen: Vec<&Suite> = SUITES
        .iter()
        .filter(|suite| args.only.is_empty() || args.only.iter().any(|name| name == suite.name))
        .collect();
    if let Some(name) = args
        .only
        .iter()
        .find(|n| !SUITES.iter().any(|s| s.name == **n))
    {
        let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        bail!(
            "there is no suite {name:?}; there are: {}",
            names.join(", ")
        );
    }
    let stage = Stage::prepare(checkout, cache, !args.no_build, args.tested_with.clone())?;
    let started = Instant::now();
    let mut failed = Vec::new();
    for target in [Target::Model, Target::Fake] {
        let of_target: Vec<&&Suite> = chosen.iter().filter(|s| s.target == target).collect();
        if of_target.is_empty() {
            continue;
        }
        let worker = stage.start(target, &[])?;
        for suite in of_target {
            let begun = Instant::now();
            println!("\n-- suite {}", suite.name);
            let outcome = stage.run(suite, &worker);
            worker
                .check()
                .with_context(|| format!("after the suite {}", suite.name))?;
            let word = if let Err(error) = outcome {
                println!("{error:#}");
                failed.push(suite.name);
                "failed"
            } else {
                "passed"
            };
            let seconds = begun.elapsed().as_secs_f64();
            println!("-- suite {} {word} in {seconds:.1} s", suite.name);
        }
        worker.stop()?;
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} suites failed: cargo xtask suites --only {}",
            failed.len(),
            chosen.len(),
            failed.join(",")
        );
    }
    println!(
        "\n{} suites passed in {:.0} s.",
        chosen.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Programs, environments and weights that suites need.
struct Stage<'a> {
    cache: &'a Cache,
    folder: PathBuf,
    python: PathBuf,
    agents: PathBuf,
    node: PathBuf,
    model: PathBuf,
    target: PathBuf,
    /// Of libtorch, where `fake-worker` needs them.
    libraries: Option<PathBuf>,
}

/// A folder whose `node_modules` has OpenAI's client.
pub(crate) fn node_packages(checkout: &Checkout, cache: &Cache) -> Result<PathBuf> {
    environment::node(cache, &checkout.join(FOLDER))
}

impl<'a> Stage<'a> {
    /// `build` builds the programs; not the fake worker where it is there already, linked to
    /// `libraries`.
    fn prepare(
        checkout: &Checkout,
        cache: &'a Cache,
        build: bool,
        libraries: Option<PathBuf>,
    ) -> Result<Self> {
        let step = Step::new("the suites' clients, weights and programs".to_owned());
        let folder = checkout.join(FOLDER);
        let python = environment::python(cache, &folder.join("requirements.txt"))?;
        // instructor wants older versions of what openai brings.
        let agents = environment::python(cache, &folder.join("requirements-agents.txt"))?;
        let node = environment::node(cache, &folder)?;
        let weights = weights::ensure_smollm2(cache, &cache.join("log/sample.log"), &step)?;
        if build {
            let log = cache.join("log/suites-build.log");
            let targets = [["--bin", WORKER[0]], ["--example", "fake-worker"]];
            for more in &targets[..if libraries.is_none() { 2 } else { 1 }] {
                step.amount(more[1]);
                proc::logged(programs::compile(checkout).args(more), &log)?;
            }
        }
        step.done("");
        Ok(Self {
            cache,
            folder,
            python,
            agents,
            node,
            model: greedy_model(cache, &weights)?,
            target: programs::target(checkout),
            libraries,
        })
    }

    /// Starts what a suite talks to, with `more` arguments.
    fn start(&self, target: Target, more: &[&str]) -> Result<Worker> {
        let (program, name, model) = match target {
            Target::Model => (
                "release/hyprstream-worker",
                MODEL_NAME,
                self.model.as_path(),
            ),
            Target::Fake => ("release/examples/fake-worker", FAKE_NAME, Path::new("none")),
        };
        let mut command = Command::new(self.target.join(program));
        if let Some(libraries) = self.libraries.as_ref().filter(|_| target == Target::Fake) {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
            .args(["serve", "--name", name, "--log", "warn", "--model"])
            .arg(model)
            .args(more);
        Worker::start(command, &self.cache.join(format!("log/suites-{name}.log")))
    }

    fn run(&self, suite: &Suite, worker: &Worker) -> Result<()> {
        let mut command = match suite.runner {
            Runner::Pytest(file, more) => pytest(&self.python, file, more),
            Runner::Agents(file) => pytest(&self.agents, file, &[]),
            Runner::Script(arguments) => {
                let mut python = Command::new(&self.python);
                python.args(arguments);
                python
            }
            Runner::Node(file) => {
                // Node looks for packages beside the file that asks for them.
                fs::copy(self.folder.join(file), self.node.join(file))?;
                let mut node = Command::new("node");
                node.args(["--test", "--test-reporter=spec"])
                    .arg(self.node.join(file));
                node
            }
            Runner::Schemathesis => {
                let mut st = Command::new(self.python.with_file_name("schemathesis"));
                st.args(["--config-file", "schemathesis.toml", "run"]);
                st.arg(format!("{}/openapi.json", worker.url()));
                st.args(["--url", &worker.url()]);
                st
            }
        };
        let name = match suite.target {
            Target::Model => MODEL_NAME,
            Target::Fake => FAKE_NAME,
        };
        let status = command
            .current_dir(&self.folder)
            .env("SUITE_URL", worker.url())
            .env("SUITE_MODEL", name)
            .env("SUITE_MODEL_DIR", &self.model)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("NO_COLOR", "1")
            .env("NO_PROXY", "127.0.0.1")
            .env("no_proxy", "127.0.0.1")
            .status()
            .with_context(|| format!("cannot start the suite {}", suite.name))?;
        if !status.success() {
            bail!(
                "the suite {} ended with {status}; alone: cargo xtask suites --only {}",
                suite.name,
                suite.name
            );
        }
        Ok(())
    }
}

fn pytest(python: &Path, file: &str, more: &[(&str, &str)]) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "--quiet", "-s", file]);
    command.envs(more.iter().copied());
    command
}

/// The model with greedy decoding as its makers' advice, for clients that cannot ask for it: what
/// they get is then the same each time.
fn greedy_model(cache: &Cache, weights: &Path) -> Result<PathBuf> {
    cache.replace("suites/model", |dir| {
        for entry in fs::read_dir(weights)?.flatten() {
            if entry.file_name() != "generation_config.json" {
                symlink(entry.path(), dir.join(entry.file_name()))?;
            }
        }
        let text = fs::read_to_string(weights.join("generation_config.json"))?;
        let mut advice: serde_json::Value = serde_json::from_str(&text)?;
        advice["temperature"] = 0.0.into();
        Ok(fs::write(
            dir.join("generation_config.json"),
            advice.to_string(),
        )?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_names_of_their_own_and_files() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/suites");
        for (index, suite) in SUITES.iter().enumerate() {
            assert!(
                SUITES[index + 1..]
                    .iter()
                    .all(|other| other.name != suite.name)
            );
            let file = match suite.runner {
                Runner::Pytest(file, _) | Runner::Agents(file) | Runner::Node(file) => file,
                Runner::Script(arguments) => arguments[0],
                Runner::Schemathesis => "schemathesis.toml",
            };
            assert!(folder.join(file).is_file(), "{file}");
        }
    }
}
