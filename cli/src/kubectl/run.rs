//! Calling `kubectl`.

use std::process::{Command, Stdio};

use hyprstream_contract::registry::{TRUST_CONFIG_MAP, TRUST_KEY};
use hyprstream_tls::Trust;
use serde_json::Value;

use crate::failure::{Failure, Kind, chain};

/// The user's `kubectl`, with the context and namespace that were asked for.
#[derive(Clone, Debug)]
pub(super) struct Kubectl {
    context: Option<String>,
    namespace: Option<String>,
    system: Option<String>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: u16,
    /// Whether it speaks TLS there.
    pub(super) is_https: bool,
}

impl Kubectl {
    pub(super) fn new(
        context: Option<String>,
        namespace: Option<String>,
        system: Option<String>,
    ) -> Self {
        Self {
            context,
            namespace,
            system,
        }
    }

    /// `kubectl` with the context.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        command
    }

    /// The namespace that was asked for, or that of the context.
    pub(super) fn namespace(&self) -> Result<String, Failure> {
        if let Some(namespace) = &self.namespace {
            return Ok(namespace.clone());
        }
        let shown = self.output(&[
            "config",
            "view",
            "--minify",
            "--output",
            "jsonpath={..namespace}",
        ])?;
        Ok(match shown.trim() {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        })
    }

    /// What `kubectl` prints.
    pub(super) fn output(&self, args: &[&str]) -> Result<String, Failure> {
        let output = self
            .command()
            .args(args)
            .stdin(Stdio::null())
            .output()
            .map_err(missing)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let kind = if said.contains("(NotFound)") {
            Kind::NotFound
        } else if said.contains("(Forbidden)") {
            Kind::Refused
        } else {
            Kind::Remote
        };
        let said = said.trim().trim_start_matches("Error from server ");
        Err(Failure::new(kind, format!("kubectl: {said}")))
    }

    /// The same as JSON.
    pub(super) fn json(&self, args: &[&str]) -> Result<Value, Failure> {
        let mut all = args.to_vec();
        all.extend(["--output", "json"]);
        serde_json::from_str(&self.output(&all)?)
            .map_err(|error| Failure::failed(format!("kubectl printed no JSON: {error}")))
    }

    /// By what the registry of the cluster is trusted, which is installed in `namespace`.
    pub(super) fn trust(&self, namespace: &str) -> Result<Trust, Failure> {
        let name = TRUST_CONFIG_MAP;
        let map = self.json(&["get", "configmap", name, "--namespace", namespace])?;
        let bundle = map["data"][TRUST_KEY].as_str().unwrap_or_default();
        let subject = format!("the ConfigMap {namespace}/{name}");
        Trust::fixed(bundle.as_bytes(), &subject).map_err(|error| Failure::failed(chain(&error)))
    }

    /// The Service of one of hyprstream's own parts.
    pub(super) fn system_service(&self, component: &str) -> Result<Service, Failure> {
        let selector =
            format!("app.kubernetes.io/name=hyprstream,app.kubernetes.io/component={component}");
        let mut args = vec!["get", "services", "--selector", &selector];
        match &self.system {
            Some(namespace) => args.extend(["--namespace", namespace]),
            None => args.push("--all-namespaces"),
        }
        let found = self.json(&args).map_err(|failure| {
            failure.hint("name the namespace that hyprstream is installed in: --system-namespace")
        })?;
        service(&found).ok_or_else(|| {
            Failure::not_found(format!("hyprstream's {component} is not on this cluster")).hint(
                "is it installed, and is the context right? See kubectl config current-context",
            )
        })
    }
}

fn service(list: &Value) -> Option<Service> {
    let found = list["items"].as_array()?.first()?;
    let ports = found["spec"]["ports"].as_array()?;
    let port = ports
        .iter()
        .find(|port| port["name"] == "https")
        .or_else(|| ports.iter().find(|port| port["name"] == "http"))
        .or_else(|| ports.first())?;
    Some(Service {
        namespace: found["metadata"]["namespace"].as_str()?.to_owned(),
        name: found["metadata"]["name"].as_str()?.to_owned(),
        port: u16::try_from(port["port"].as_u64()?).ok()?,
        is_https: port["name"] == "https",
    })
}

/// Why `kubectl` cannot be run.
pub(super) fn missing(error: std::io::Error) -> Failure {
    let failure = Failure::failed(format!("kubectl cannot be run: {error}"));
    match error.kind() {
        std::io::ErrorKind::NotFound => failure
            .hint("install it and put it on the PATH: https://kubernetes.io/docs/tasks/tools"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_port_for_http_is_taken_of_a_service_with_several() {
        let item = json!({
            "metadata": {"namespace": "system", "name": "gateway"},
            "spec": {"ports": [{"name": "metrics", "port": 9090}, {"name": "http", "port": 80}]},
        });
        let found = service(&json!({"items": [item]})).unwrap();
        assert_eq!((found.name.as_str(), found.port), ("gateway", 80));
        assert!(!found.is_https);
        assert_eq!(service(&json!({"items": []})), None);
        let item = json!({
            "metadata": {"namespace": "system", "name": "registry"},
            "spec": {"ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}]},
        });
        let found = service(&json!({"items": [item]})).unwrap();
        assert_eq!((found.port, found.is_https), (443, true));
    }
}
