//! `kubectl hyprstream`, with nothing but the rights of a user of one namespace.

use std::{
    env,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, Output, Repository, TinyModel, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::{PATIENCE, fresh_seed, tiny_spec};

/// RBAC of the API server follows its objects, and the registry's answers hold for seconds.
const FOLLOWS: Duration = Duration::from_mins(1);

/// The program under the name by which kubectl finds it, and kubectl beside it.
struct Plugin {
    folder: TempDir,
    namespace: String,
}

impl Plugin {
    fn new(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let program = env::var("HYPRSTREAM_E2E_COMMAND").context("HYPRSTREAM_E2E_COMMAND")?;
        let kubectl = cluster.kubectl_command(&[]);
        symlink(program, folder.path().join("kubectl-hyprstream"))?;
        symlink(kubectl.get_program(), folder.path().join("kubectl"))?;
        Ok(Self {
            folder,
            namespace: namespace.to_owned(),
        })
    }

    /// What `kubectl hyprstream` did.
    fn run(&self, args: &[&str]) -> Result<Output> {
        let path = env::var("PATH").unwrap_or_default();
        let mut command = Command::new(self.folder.path().join("kubectl"));
        command
            .arg("hyprstream")
            .args(["--namespace", &self.namespace])
            .args(args)
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env("GIT_AUTHOR_NAME", "e2e")
            .env("GIT_AUTHOR_EMAIL", "e2e@example.org")
            .stdin(Stdio::null());
        Output::of(&mut command)
    }

    /// The JSON that it printed; it must succeed.
    fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.run(&[args, &["--json"]].concat())?;
        ensure!(output.success, "{args:?}: {}", output.stderr);
        serde_json::from_str(&output.stdout).context("no JSON")
    }

    fn push(&self, folder: &Path) -> Result<Value> {
        let folder = folder.to_str().context("UTF-8")?;
        self.json(&["push", folder, "tiny", "--service-account", "pusher"])
    }
}

#[test]
fn s16_a_folder_is_pushed_served_and_talked_with_by_a_user_of_one_namespace() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let namespace = cluster.namespace("plugin")?;
    let name = namespace.name.as_str();
    let plugin = Plugin::new(&cluster, name)?;
    // Only its files are of use: nothing of it is pushed by git.
    let files = Repository::new(&cluster, name, "tiny")?;
    TinyModel::new(fresh_seed()).write(&files)?;
    let folder = files.path().to_str().context("UTF-8")?;

    cluster.kubectl(&["-n", name, "create", "serviceaccount", "pusher"])?;
    let refused = plugin.run(&["push", folder, "tiny", "--service-account", "pusher"])?;
    ensure!(!refused.success, "without a right: {}", refused.stdout);
    ensure!(refused.stderr.contains("hint:"), "{}", refused.stderr);
    cluster.kubectl(&[
        "-n",
        name,
        "create",
        "rolebinding",
        "pusher",
        "--clusterrole=edit",
        &format!("--serviceaccount={name}:pusher"),
    ])?;
    let pushed = wait_until(FOLLOWS, || Ok(plugin.push(files.path()).ok()))?;
    assert_eq!(pushed["changed"], true, "{pushed}");
    assert_eq!(pushed["source"], format!("hyprstream://{name}/tiny"));
    let first = pushed["commit"].as_str().context("commit")?.to_owned();
    let again = plugin.push(files.path())?;
    assert_eq!(again["changed"], false, "{again}");
    assert_eq!(again["commit"], first.as_str());

    let model = namespace.apply_model("tiny", &tiny_spec(&files.url, ""))?;
    model.wait_ready_on(&first, PATIENCE)?;
    let models = plugin.json(&["models"])?;
    assert_eq!(models[0]["status"]["commit"], first.as_str());
    let table = plugin.run(&["models"])?.stdout;
    ensure!(
        table.contains("True") && table.contains(&first[..10]),
        "{table}"
    );
    let logs = plugin.run(&["logs", "tiny"])?;
    ensure!(
        logs.success && logs.stdout.contains("ready"),
        "{}",
        logs.stderr
    );
    let ask = ["chat", "tiny", "--prompt", "hello", "--max-tokens", "4"];
    let answer = plugin.json(&ask)?;
    assert_eq!(answer["completion_tokens"], 4, "{answer}");

    // A push of what changed rolls the Model over.
    TinyModel::new(fresh_seed()).write(&files)?;
    let pushed = plugin.push(files.path())?;
    assert_eq!(pushed["changed"], true, "{pushed}");
    let second = pushed["commit"].as_str().context("commit")?;
    model.wait_ready_on(second, PATIENCE)?;
    assert_eq!(plugin.json(&ask)?["completion_tokens"], 4);

    let unknown = plugin.run(&["logs", "nosuch"])?;
    ensure!(!unknown.success, "{}", unknown.stdout);
    ensure!(unknown.stderr.contains("nosuch"), "{}", unknown.stderr);
    Ok(())
}
