//! Chores of the project, above all the local cluster: `cargo xtask up`, `status`, `down`, `test`.

mod cluster;
mod components;
mod images;
mod paths;
mod proc;
mod ui;
mod versions;
mod wheels;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    cluster::{Cluster, DEFAULT_NAME, HoldArgs},
    paths::{Cache, Checkout},
    ui::Steps,
};

/// Chores of hyprstream.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a cluster and all that runs on it.
    Up(UpArgs),
    /// Ends a cluster.
    Down(DownArgs),
    /// Holds a cluster together; started by `up`.
    #[command(hide = true)]
    Supervise {
        /// Name of the cluster.
        #[arg(long)]
        name: String,
    },
    /// Sets up namespaces from the inside; started by the supervisor.
    #[command(hide = true)]
    Hold(HoldArgs),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// Port of the ingress on 127.0.0.1.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Name of the cluster.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Only Kubernetes, without the chart and the model.
    #[arg(long)]
    bare: bool,
}

#[derive(Debug, clap::Args)]
struct DownArgs {
    /// Name of the cluster.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Clears the caches too.
    #[arg(long)]
    purge: bool,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    if let Verb::Hold(args) = &verb {
        return cluster::hold(args);
    }
    let checkout = Checkout::find()?;
    let cache = Cache::open()?;
    match verb {
        Verb::Up(args) => {
            let cluster = Cluster::open(&checkout, &cache, &args.name)?;
            let _lock = cluster.lock()?;
            let mut steps = Steps::new(3);
            let log = cache.join("log/components.log");
            let step = steps.begin("Kubernetes components");
            components::ensure(&checkout, &cache, versions::CLUSTER, &log, &step)?;
            step.done("");
            let step = steps.begin("Envoy");
            wheels::ensure_envoy(&cache, &log)?;
            step.done("");
            let pause = images::ensure_pause(&checkout, &cache, &log)?;
            let debian = images::debian(&cache, &log)?;
            let step = steps.begin("cluster");
            let spec = cluster.start(args.nodes, args.port, &step)?;
            images::load(&cluster, &[pause, debian])?;
            step.done(&format!("{spec:?}"));
            Ok(())
        }
        Verb::Down(args) => {
            let cluster = Cluster::open(&checkout, &cache, &args.name)?;
            let _lock = cluster.lock()?;
            let (ended, left) = cluster::down(&cluster)?;
            println!("{ended} processes ended, left: {left:?}");
            Ok(())
        }
        Verb::Supervise { name } => {
            cluster::supervise(&Cluster::open(&checkout, &cache, &name)?)
        }
        Verb::Hold(_) => Ok(()),
    }
}
