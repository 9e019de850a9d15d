//! Chores of the project, above all the local cluster: `cargo xtask up`, `status`, `down`, `test`.

mod ask;
mod bench;
mod chaos;
mod chart;
mod cluster;
mod codegen;
mod components;
mod deps;
mod forward;
mod fuzz;
mod images;
mod libtorch;
mod paths;
mod proc;
mod programs;
mod sample;
mod status;
mod suites;
mod target;
mod test;
mod ui;
mod up;
mod versions;
mod weights;
mod wheels;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::{
    bench::BenchArgs,
    chaos::Chaos,
    cluster::{Cluster, DEFAULT_NAME, HoldArgs},
    fuzz::FuzzArgs,
    paths::{Cache, Checkout, remove_all},
    suites::{SoakArgs, SuitesArgs},
    test::TestArgs,
    ui::{Step, say},
    up::{Up, UpArgs},
};

/// Chores of hyprstream.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a cluster with a model on it and asks it a question.
    Up(UpArgs),
    /// Tells what runs, with versions and addresses.
    Status {
        /// Only the cluster of this name.
        #[arg(long)]
        name: Option<String>,
    },
    /// Ends everything that `up` started, also after a crash.
    Down {
        /// Only the cluster of this name; without it all of the checkout.
        #[arg(long)]
        name: Option<String>,
        /// Clears the caches too.
        #[arg(long)]
        purge: bool,
    },
    /// Runs all tests.
    Test(TestArgs),
    /// Measures the worker, also beside llama.cpp and vLLM.
    Bench(BenchArgs),
    /// Runs clients that people use against a worker.
    Suites(SuitesArgs),
    /// Puts mixed load on a worker for a long time and looks for what grows.
    Soak(SoakArgs),
    /// Runs the fuzz targets, and stops at the first crash.
    Fuzz(FuzzArgs),
    /// Builds the images.
    Images {
        /// Builds the CUDA worker's image too, some gigabytes.
        #[arg(long)]
        cuda: bool,
        /// Takes our programs as they were built last.
        #[arg(long)]
        no_build: bool,
        /// Runs the Dockerfiles from their first line on instead, stages that compile included,
        /// and keeps nothing of it.
        #[arg(long, conflicts_with_all = ["cuda", "no_build"])]
        compile_stages: bool,
    },
    /// Puts image archives (docker or OCI) on every node.
    Load {
        /// Name of the cluster.
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// The archives.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Writes the generated files.
    Codegen {
        /// Only says whether they are current.
        #[arg(long)]
        check: bool,
    },
    /// Fetches libtorch and prints its folder, which holds `torch` (the value of LIBTORCH) and
    /// `nvidia`.
    Libtorch {
        /// Makes this folder a copy of it.
        #[arg(long)]
        link: Option<PathBuf>,
    },
    /// Makes the Hugging Face folders of SmolLM2-135M-Instruct and Gemma-3-270m and prints them.
    Weights,
    /// Hurts a running cluster, for tests.
    Chaos {
        /// Name of the cluster.
        #[arg(long, default_value = DEFAULT_NAME, global = true)]
        name: String,
        #[command(subcommand)]
        chaos: Chaos,
    },
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

fn main() -> ExitCode {
    match run(Args::parse().verb) {
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
    let checkout = &Checkout::find()?;
    let cache = &Cache::open()?;
    let open = |name: &str| Cluster::open(checkout, cache, name);
    match verb {
        Verb::Up(args) => Up {
            checkout,
            cache,
            args: &args,
        }
        .run(),
        Verb::Status { name } => {
            if !status::print(checkout, cache, name.as_deref()) {
                bail!("not all of it runs");
            }
            Ok(())
        }
        Verb::Down { name, purge } => down(checkout, cache, name.as_deref(), purge),
        Verb::Test(args) => test::run(checkout, cache, &args),
        Verb::Images {
            compile_stages: true,
            ..
        } => compile_stages(checkout, cache),
        Verb::Images { cuda, no_build, .. } => build_images(checkout, cache, cuda, no_build),
        Verb::Bench(args) => bench::run(checkout, cache, &args),
        Verb::Suites(args) => suites::run(checkout, cache, &args),
        Verb::Soak(args) => suites::soak(checkout, cache, &args),
        Verb::Fuzz(args) => fuzz::run(checkout, cache, &args),
        Verb::Load { name, archives } => {
            let cluster = open(&name)?;
            archives
                .iter()
                .try_for_each(|archive| images::load_archive(&cluster, archive))
        }
        Verb::Codegen { check } => codegen::run(checkout, check),
        Verb::Libtorch { link } => {
            if let Some(link) = link {
                return programs::place_libtorch(cache, &link);
            }
            let torch = libtorch::ensure(cache.root())?;
            say(format_args!(
                "{}",
                torch.parent().unwrap_or(&torch).display()
            ));
            Ok(())
        }
        Verb::Weights => {
            let log = cache.join("log/sample.log");
            let step = Step::new("weights of SmolLM2-135M-Instruct".to_owned());
            let smollm2 = weights::ensure_smollm2(cache, &log, &step)?;
            step.done("");
            let step = Step::new("weights of Gemma-3-270m".to_owned());
            let gemma3 = weights::ensure_gemma3(cache, &log, &step)?;
            step.done("");
            say(format_args!("{}\n{}", smollm2.display(), gemma3.display()));
            Ok(())
        }
        Verb::Chaos { name, chaos } => chaos::run(checkout, cache, &open(&name)?, &chaos),
        Verb::Supervise { name } => cluster::supervise(&open(&name)?),
        Verb::Hold(_) => Ok(()),
    }
}

fn down(checkout: &Checkout, cache: &Cache, name: Option<&str>, purge: bool) -> Result<()> {
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => Cluster::all(checkout)?,
    };
    let mut left = Vec::new();
    for name in names {
        let cluster = Cluster::open(checkout, cache, &name)?;
        let lock = cluster.lock()?;
        let (ended, leftovers) = cluster::down(&cluster)?;
        say(format_args!("cluster {name}: {ended} processes ended"));
        left.extend(leftovers);
        cluster.unlock(lock)?;
    }
    if !left.is_empty() {
        bail!("these are left, run it again:\n  {}", left.join("\n  "));
    }
    let mounts = images::unmount_leftovers(cache)?;
    if mounts > 0 {
        say(format_args!(
            "{mounts} mounts of a build of images that was killed are taken away"
        ));
    }
    say("Nothing of it is left on this machine but the cache.");
    if purge {
        images::purge(cache)?;
        remove_all(cache.root())?;
        say(format_args!(
            "The cache {} is removed.",
            cache.root().display()
        ));
    }
    Ok(())
}

fn compile_stages(checkout: &Checkout, cache: &Cache) -> Result<()> {
    deps::require_root()?;
    let step = Step::new("the Dockerfiles from their first line on".to_owned());
    deps::ensure(cache, false, &step)?;
    let log = cache.join("log/compile-stages.log");
    images::compile(checkout, cache, &log, &|stage| step.note(stage))?;
    step.done("all stages were run, all programs start");
    Ok(())
}

fn build_images(checkout: &Checkout, cache: &Cache, cuda: bool, no_build: bool) -> Result<()> {
    deps::require_root()?;
    let step = Step::new("images".to_owned());
    deps::ensure(cache, false, &step)?;
    let programs = programs::build(
        checkout,
        &cache.join("log/programs.log"),
        (!no_build).then_some(&step),
    )?;
    let log = cache.join("log/images.log");
    let built = images::project(checkout, cache, &programs, &log, &|name| step.amount(name))?;
    let mut all = built.all().to_vec();
    if cuda {
        step.amount("worker-cuda");
        let build_log = cache.join("log/programs.log");
        let programs = programs::gpu_worker(checkout, cache, &build_log, &step)?;
        all.push(images::cuda(checkout, cache, &programs, &log)?);
    }
    step.done("");
    for image in all {
        say(format_args!(
            "{}\n  {}",
            image.reference,
            image.archive.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Args::command().debug_assert();
    }
}
