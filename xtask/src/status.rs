//! Tells what runs.

use crate::{
    chart,
    cluster::{Cluster, State},
    paths::{Cache, Checkout},
    proc,
    target::Target,
    ui::say,
    versions,
};

/// Prints what there is of every cluster of the checkout; returns whether all that should run
/// does.
pub(crate) fn print(checkout: &Checkout, cache: &Cache, name: Option<&str>) -> bool {
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => Cluster::names(checkout),
    };
    let mut well = true;
    let mut any = false;
    for name in names {
        let Ok(cluster) = Cluster::open(checkout, cache, &name) else {
            continue;
        };
        if let Some(spec) = cluster.spec() {
            any = true;
            well &= one(cache, &cluster, &spec);
        }
    }
    if !any {
        say("Nothing runs. `cargo xtask up` starts it.");
    }
    well
}

fn one(cache: &Cache, cluster: &Cluster, spec: &crate::cluster::Spec) -> bool {
    let runs = cluster.is_supervised();
    let state = cluster.state().unwrap_or_default();
    say(format_args!(
        "cluster {}: {}",
        cluster.name(),
        if !runs {
            "does not run; `cargo xtask up` starts it again, `cargo xtask down` removes it"
        } else if state.ready {
            "runs"
        } else {
            &state.phase
        }
    ));
    say(format_args!(
        "  KUBECONFIG  {}",
        cluster.kubeconfig().display()
    ));
    say(format_args!(
        "  ingress     http://127.0.0.1:{}",
        spec.ingress_port
    ));
    say(format_args!(
        "  API server  https://127.0.0.1:{}",
        spec.api_port
    ));
    say(format_args!(
        "  registry    {}://127.0.0.1:{}",
        crate::chart::registry().0,
        spec.registry_port
    ));
    say(format_args!("  logs        {}", cluster.logs().display()));
    if !runs {
        return false;
    }
    say("\n  component                 version   pid      restarts");
    let mut well = state.ready;
    for (name, component) in &state.components {
        well &= component.pid.is_some();
        let pid = component.pid.map_or_else(
            || {
                format!(
                    "- ({})",
                    component.last_exit.as_deref().unwrap_or("not started")
                )
            },
            |pid| pid.to_string(),
        );
        say(format_args!(
            "  {name:<25} {:<9} {pid:<8} {}",
            version_of(name),
            component.restarts
        ));
    }
    say(format_args!(
        "  {:<25} {:<9} {}",
        "supervisor",
        env!("CARGO_PKG_VERSION"),
        state.supervisor
    ));
    well & objects(cache, cluster, &state)
}

fn objects(cache: &Cache, cluster: &Cluster, state: &State) -> bool {
    let target = Target::local(cache, cluster);
    let mut well = true;
    let mut show = |title: &str, args: &[&str], needed: bool| {
        let text = proc::output(target.kubectl().args(args));
        match text {
            Ok(text) if !text.trim().is_empty() => {
                say(format_args!("\n  {title}"));
                for line in text.lines() {
                    say(format_args!("    {line}"));
                }
            }
            Err(error) if needed => {
                say(format_args!("\n  {title}: {error:#}"));
                well = false;
            }
            _ => {}
        }
    };
    show(
        "nodes",
        &["get", "nodes", "--request-timeout=5s"],
        state.ready,
    );
    show(
        "hyprstream",
        &[
            "-n",
            chart::NAMESPACE,
            "get",
            "pods",
            "--request-timeout=5s",
        ],
        false,
    );
    show(
        "models",
        &["get", "models", "--all-namespaces", "--request-timeout=5s"],
        false,
    );
    well
}

fn version_of(name: &str) -> &'static str {
    let component = versions::CLUSTER.iter().find(|c| {
        name == c.name
            || name.starts_with(&format!("{}-node", c.name))
            || c.programs
                .iter()
                .any(|p| name == *p || name.starts_with(&format!("{p}-node")))
    });
    match component {
        Some(component) => component.version,
        None if name == "envoy" => versions::ENVOY.version,
        None => "",
    }
}
