//! Builds the fuzz targets of `fuzz/` and runs them for a time.
//!
//! libFuzzer needs a compiler's coverage, which a stable one gives when asked for LLVM's pass by
//! name; `cargo fuzz run` does the same with `--sanitizer none`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    paths::{Cache, Checkout},
    proc,
};

/// How long to fuzz, and what.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Minutes for each target.
    #[arg(long, default_value = "10")]
    minutes: f64,
    /// Only these targets.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// What cargo-fuzz passes for coverage without a sanitizer.
const FLAGS: &[&str] = &[
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Longest time for one input, in seconds; inputs that take longer are crashes.
const SLOWEST_SECONDS: u32 = 30;
/// Most memory of a target, in megabytes.
const MEMORY_MB: u32 = 2048;
/// Longest input in bytes.
const LONGEST_BYTES: u32 = 16 << 10;

/// Runs the targets one after the other and stops at the first crash.
pub(crate) fn run(checkout: &Checkout, cache: &Cache, args: &FuzzArgs) -> Result<()> {
    let folder = checkout.join("fuzz");
    let targets = targets(&folder)?;
    if let Some(name) = args.only.iter().find(|name| !targets.contains(name)) {
        bail!(
            "there is no target {name:?}; there are: {}",
            targets.join(", ")
        );
    }
    let programs = build(checkout, &folder)?;
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    for target in targets {
        if args.only.is_empty() || args.only.contains(&target) {
            fuzz(&folder, cache, &programs.join(&target), &target, time)?;
        }
    }
    Ok(())
}

/// Names of the targets: the files in `fuzz_targets`.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let dir = folder.join("fuzz_targets");
    let mut names: Vec<String> = fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds all targets and returns the folder with their programs.
fn build(checkout: &Checkout, folder: &Path) -> Result<PathBuf> {
    // Its own folder: with other flags everything is compiled anew, and nothing is shared.
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| checkout.join("target"), |dir| checkout.join(dir))
        .join("fuzz");
    let triple = host()?;
    let mut cargo = proc::cargo(folder);
    // With a target given, the flags are not for build scripts and macros.
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "--target",
            &triple,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", FLAGS.join(" "));
    let status = cargo.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the fuzz targets cannot be built: cargo ended with {status}");
    }
    Ok(target.join(triple).join("release"))
}

/// The triple that rustc compiles for here.
fn host() -> Result<String> {
    let text = proc::output(Command::new("rustc").arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc does not say its host")?.to_owned())
}

fn fuzz(folder: &Path, cache: &Cache, program: &Path, name: &str, time: Duration) -> Result<()> {
    println!("\n-- {name} for {:.1} min", time.as_secs_f64() / 60.0);
    // What was found stays in the cache and is where the next run begins.
    let corpus = cache.join(format!("fuzz/{name}/corpus"));
    let crashes = cache.join(format!("fuzz/{name}/crashes"));
    let seeds = folder.join("seeds").join(name);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&crashes)?;
    let log = cache.join(format!("log/fuzz-{name}.log"));
    let mut command = Command::new(program);
    command
        .current_dir(cache.join(format!("fuzz/{name}")))
        .arg(&corpus)
        .args(seeds.is_dir().then_some(seeds))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg(format!("-max_total_time={}", time.as_secs().max(1)))
        .arg(format!("-timeout={SLOWEST_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-max_len={LONGEST_BYTES}"))
        .args(["-print_final_stats=1", "-verbosity=1"]);
    let dictionary = folder.join("dictionaries").join(name);
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    let started = Instant::now();
    let from = fs::metadata(&log).map_or(0, |log| log.len());
    proc::logged(&mut command, &log).with_context(|| {
        format!(
            "{name} found a crash; its input is in {}, and `{} FILE` runs it again",
            crashes.display(),
            program.display()
        )
    })?;
    let told = fs::read_to_string(&log).unwrap_or_default();
    let told = told.get(from as usize..).unwrap_or_default();
    let stat = |name: &str| {
        let line = told.lines().rev().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim).to_owned()
    };
    println!(
        "   clean: {} inputs in {:.0} s, {} new ones kept, at most {} MB",
        stat("stat::number_of_executed_units:"),
        started.elapsed().as_secs_f64(),
        stat("stat::new_units_added:"),
        stat("stat::peak_rss_mb:"),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuzz_target_is_a_program_of_the_manifest_and_has_seeds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for name in targets(&folder).unwrap() {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            assert!(folder.join("seeds").join(&name).is_dir(), "{name}");
        }
    }
}
