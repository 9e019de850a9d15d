//! The sample model and its adapter: pushed to the registry, applied, asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    paths::{Cache, Checkout},
    proc,
    target::Target,
    ui::Step,
};

/// Name of the Model and of its repository.
pub(crate) const NAME: &str = "smollm2";
/// What is asked.
pub(crate) const QUESTION: &str = "What is the capital of France? Tell me one thing about it.";
/// Name of the Adapter and of its repository.
pub(crate) const ADAPTER: &str = "sql";
/// What is asked with the adapter.
pub(crate) const ADAPTER_QUESTION: &str =
    "Find the salary of all employees whose department is sales.";

/// Makes a git repository with LFS out of a folder of weights, once, and returns it.
pub(crate) fn repository(cache: &Cache, weights: &Path, log: &Path) -> Result<PathBuf> {
    let name = weights
        .file_name()
        .context("the weights have no name")?
        .to_string_lossy();
    cache.ensure(&format!("repositories/{name}"), |dir| {
        for entry in fs::read_dir(weights)?.flatten() {
            let to = dir.join(entry.file_name());
            if fs::hard_link(entry.path(), &to).is_err() {
                fs::copy(entry.path(), &to)?;
            }
        }
        fs::write(
            dir.join(".gitattributes"),
            "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        )?;
        let git = |args: &[&str]| proc::logged(git(dir).args(args), log);
        git(&["init", "--quiet", "--initial-branch=main"])?;
        git(&["lfs", "install", "--local"])?;
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", "SmolLM2-135M-Instruct"])
    })
}

/// Makes a git repository of the sample adapter's two files. The same files make the same commit,
/// so that pushing it again changes nothing.
pub(crate) fn adapter_repository(
    cache: &Cache,
    checkout: &Checkout,
    log: &Path,
) -> Result<PathBuf> {
    cache.replace("repositories/sample-adapter", |dir| {
        for file in ["adapter_model.safetensors", "adapter_config.json"] {
            let from = checkout.join("deploy/samples").join(ADAPTER).join(file);
            fs::copy(&from, dir.join(file))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let git = |args: &[&str]| {
            let mut git = git(dir);
            git.env("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z")
                .env("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z");
            proc::logged(git.args(args), log)
        };
        git(&["init", "--quiet", "--initial-branch=main"])?;
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", "Answers with SQL"])
    })
}

/// How the registry is reached.
pub(crate) struct Access {
    /// Its password.
    pub(crate) token: String,
    /// File with the authorities by which it is trusted.
    pub(crate) ca: Option<PathBuf>,
}

/// Pushes the repository to the registry at `https://address/git/default/NAME.git`, unless its
/// branch is there already with later commits, and returns the commit that is served then.
pub(crate) fn push(
    repository: &Path,
    name: &str,
    address: &str,
    access: &Access,
    log: &Path,
) -> Result<String> {
    let Access { token, ca } = access;
    let url = format!(
        "{}://{address}/git/default/{name}.git",
        crate::chart::registry().0
    );
    // In a header, so that neither a command line nor the repository's configuration has it.
    let header = format!(
        "Authorization: Basic {}",
        STANDARD.encode(format!("hyprstream:{token}"))
    );
    let with_token = || {
        let mut git = git(repository);
        if let Some(ca) = ca {
            git.env("GIT_SSL_CAINFO", ca);
        }
        git.env("GIT_CONFIG_COUNT", "2")
            .env("GIT_CONFIG_KEY_0", "http.extraHeader")
            .env("GIT_CONFIG_VALUE_0", &header)
            .env("GIT_CONFIG_KEY_1", "lfs.locksverify")
            .env("GIT_CONFIG_VALUE_1", "false");
        git
    };
    let head = proc::output(git(repository).args(["rev-parse", "HEAD"]))?
        .trim()
        .to_owned();
    let there =
        proc::output(with_token().args(["ls-remote", &url, "refs/heads/main"])).unwrap_or_default();
    if let Some(commit) = there.split_whitespace().next()
        && commit != head
    {
        // Somebody pushed their own since; that is what they want to have served.
        return Ok(commit.to_owned());
    }
    // The registry may just be on its way from one pod to the next.
    let mut attempts = 0;
    loop {
        let pushed = proc::logged(
            with_token().args(["push", "--quiet", &url, "HEAD:refs/heads/main"]),
            log,
        );
        attempts += 1;
        if pushed.is_ok() || attempts == 5 {
            break pushed;
        }
        std::thread::sleep(Duration::from_secs(3));
    }
    .with_context(|| format!("cannot push {name} to the registry"))?;
    Ok(head)
}

/// What the samples apply.
#[derive(Clone, Copy)]
pub(crate) enum Sample {
    /// The Model [`NAME`].
    Model,
    /// The Adapter [`ADAPTER`].
    Adapter,
}

impl Sample {
    fn kind(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Adapter => "adapter",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Model => NAME,
            Self::Adapter => ADAPTER,
        }
    }

    fn manifest(self) -> &'static str {
        match self {
            Self::Model => "deploy/samples/smollm2.yaml",
            Self::Adapter => "deploy/samples/adapter.yaml",
        }
    }

    /// Applies it and waits until it is ready.
    pub(crate) fn apply(
        self,
        checkout: &Checkout,
        target: &Target,
        step: &Step,
    ) -> Result<Duration> {
        let (kind, name) = (self.kind(), self.name());
        let started = Instant::now();
        let manifest = checkout.join(self.manifest());
        proc::output(target.kubectl().arg("apply").arg("-f").arg(&manifest))?;
        let limit = Duration::from_mins(3);
        loop {
            let (ready, told) = self.condition(target).unwrap_or_default();
            if ready {
                return Ok(started.elapsed());
            }
            step.amount(&told);
            if started.elapsed() > limit {
                let all = proc::output(target.kubectl().args(["describe", kind, name]))
                    .unwrap_or_default();
                let tail: Vec<&str> = all.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!(
                    "the {kind} is not ready after {} s: {told}\n{}\n    look at: kubectl \
                     describe {kind} {name}; kubectl get pods",
                    limit.as_secs(),
                    tail.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Whether it is ready on what its manifest asks for, and what it says.
    fn condition(self, target: &Target) -> Result<(bool, String)> {
        let get = ["get", self.kind(), self.name(), "-o", "json"];
        let text = proc::output(target.kubectl().args(get))?;
        let object: serde_json::Value = serde_json::from_str(&text)?;
        let generation = &object["metadata"]["generation"];
        let ready = object["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["type"] == "Ready");
        let Some(ready) = ready else {
            return Ok((false, "waits for the operator".to_owned()));
        };
        let told = format!(
            "{} {}",
            ready["reason"].as_str().unwrap_or_default(),
            ready["message"].as_str().unwrap_or_default()
        );
        Ok((
            ready["status"] == "True" && &ready["observedGeneration"] == generation,
            told,
        ))
    }
}

fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(dir)
        .args([
            "-c",
            "user.name=hyprstream",
            "-c",
            "user.email=hyprstream@localhost",
        ])
        .args([
            "-c",
            "commit.gpgsign=false",
            "-c",
            "core.hooksPath=.git/hooks",
        ])
        .env("GIT_TERMINAL_PROMPT", "0")
        .env_remove("GIT_DIR");
    command
}
