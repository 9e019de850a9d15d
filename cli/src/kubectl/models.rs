//! `models` and `logs`.

use serde_json::Value;

use super::run::{Kubectl, missing};
use crate::{
    failure::{Failure, Kind},
    output::{Output, short, table},
};

#[derive(Debug, clap::Args)]
pub(super) struct ModelsArgs {
    /// Of all namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// The Model.
    #[arg(value_name = "MODEL")]
    model: String,
    /// Goes on with what comes.
    #[arg(long, short)]
    follow: bool,
    /// Last lines of each worker.
    #[arg(long, default_value_t = 100)]
    tail: i64,
}

/// Lists Models.
pub(super) fn models(kubectl: &Kubectl, args: &ModelsArgs, output: Output) -> Result<(), Failure> {
    let namespace = kubectl.namespace()?;
    let mut call = vec!["get", "models.hyprstream.io"];
    if args.all_namespaces {
        call.push("--all-namespaces");
    } else {
        call.extend(["--namespace", &namespace]);
    }
    let found = kubectl.json(&call)?;
    let items = found["items"].as_array().cloned().unwrap_or_default();
    if items.is_empty() && !output.json {
        eprintln!("there is no Model; kubectl hyprstream push DIR NAME makes a repository for one");
        return Ok(());
    }
    output.print(&items, |items| {
        let rows: Vec<_> = items.iter().map(row).collect();
        table(
            ["NAMESPACE", "NAME", "READY", "COMMIT", "WORKERS", "SOURCE"],
            &rows,
        )
    })
}

fn row(model: &Value) -> [String; 6] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = &model["status"];
    let condition = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    let ready = match condition {
        Some(condition) if condition["status"] == "True" => "True".to_owned(),
        Some(condition) => text(&condition["reason"]),
        None => "Unknown".to_owned(),
    };
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    [
        text(&model["metadata"]["namespace"]),
        text(&model["metadata"]["name"]),
        ready,
        short(status["commit"].as_str().unwrap_or("-")).to_owned(),
        format!(
            "{}/{}",
            count(&status["readyReplicas"]),
            count(&status["replicas"])
        ),
        text(&model["spec"]["source"]["url"]),
    ]
}

/// Shows logs, as `kubectl logs` does.
pub(super) fn logs(kubectl: &Kubectl, args: &LogsArgs) -> Result<(), Failure> {
    let namespace = kubectl.namespace()?;
    // Says that there is no such Model, where a selector would find nothing in silence.
    kubectl.output(&[
        "get",
        "models.hyprstream.io",
        &args.model,
        "--namespace",
        &namespace,
    ])?;
    let mut command = kubectl.command();
    command
        .args(["logs", "--namespace", &namespace, "--prefix"])
        .args(["--max-log-requests", "100", "--container", "worker"])
        .arg(format!(
            "--selector={}={}",
            hyprstream_contract::label::MODEL,
            args.model
        ))
        .arg(format!("--tail={}", args.tail));
    if args.follow {
        command.arg("--follow");
    }
    let status = command.status().map_err(missing)?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(Kind::Remote, "kubectl logs failed"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_model_that_is_not_ready_shows_why() {
        let mut model = json!({
            "metadata": {"namespace": "d", "name": "m"},
            "spec": {"source": {"url": "https://example.org/m"}},
        });
        assert_eq!(row(&model)[2], "Unknown");
        model["status"] = json!({
            "conditions": [{"type": "Ready", "status": "False", "reason": "Fetching"}],
            "commit": "0123456789abcdef",
            "replicas": 2,
            "readyReplicas": 1,
        });
        assert_eq!(
            row(&model),
            [
                "d",
                "m",
                "Fetching",
                "0123456789",
                "1/2",
                "https://example.org/m"
            ]
        );
    }
}
