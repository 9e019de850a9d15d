//! Builds the programs of the cluster from their Go modules, once per version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    paths::{Cache, Checkout, remove_all},
    proc,
    ui::Step,
    versions::Component,
};

/// Folder of a component in the cache.
pub(crate) fn folder(cache: &Cache, component: &Component) -> PathBuf {
    cache
        .join("bin")
        .join(format!("{}-{}", component.name, component.version))
}

/// Path of one of a component's programs.
pub(crate) fn program(cache: &Cache, component: &Component, program: &str) -> PathBuf {
    folder(cache, component).join(program)
}

/// Those of `wanted` that are not in the cache.
pub(crate) fn missing<'a>(cache: &Cache, wanted: &[&'a Component]) -> Vec<&'a Component> {
    wanted
        .iter()
        .copied()
        .filter(|component| {
            let folder = folder(cache, component);
            let files = component.files.iter().map(|(_, name)| *name);
            !component
                .programs
                .iter()
                .copied()
                .chain(files)
                .all(|p| folder.join(p).exists())
        })
        .collect()
}

/// Builds what is missing. Go's build cache, some 7 GB, lies in the cache only meanwhile.
pub(crate) fn ensure(
    checkout: &Checkout,
    cache: &Cache,
    wanted: &[&Component],
    log: &Path,
    step: &Step,
) -> Result<()> {
    sweep(cache);
    let missing = missing(cache, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    // One at a time, for they share the build cache and one throws it away.
    let _lock = cache.lock("components")?;
    let missing = self::missing(cache, wanted);
    let build_cache = cache.join("tmp/go-build");
    let module_cache = module_cache(cache)?;
    let count = missing.len();
    for (index, component) in missing.into_iter().enumerate() {
        step.amount(&format!("{}/{count} {}", index + 1, component.name));
        let done = |dir: &Path| {
            let ticker = Ticker::start(dir, &build_cache);
            ticker.run(
                step,
                &format!("{}/{count} {}", index + 1, component.name),
                || {
                    build(
                        checkout,
                        component,
                        dir,
                        &build_cache,
                        module_cache.as_deref(),
                        log,
                    )
                },
            )
        };
        cache
            .replace(
                &format!("bin/{}-{}", component.name, component.version),
                done,
            )
            .with_context(|| {
                format!(
                    "cannot build {} {}; run the same command again to continue",
                    component.name, component.version
                )
            })?;
        step.note(&format!(
            "{} {} is built",
            component.name, component.version
        ));
    }
    discard(cache, [Some(build_cache), module_cache])
}

/// Folders that are thrown away.
fn gone(cache: &Cache) -> PathBuf {
    cache.join("tmp/gone")
}

/// Throws folders away while other work goes on: a hundred thousand files and more take minutes.
fn discard(cache: &Cache, folders: [Option<PathBuf>; 2]) -> Result<()> {
    let gone = gone(cache);
    for folder in folders.into_iter().flatten().filter(|f| f.exists()) {
        let name = folder.file_name().context("a folder without a name")?;
        let to = gone.join(format!("{}-{}", std::process::id(), name.display()));
        fs::create_dir_all(&gone)
            .and_then(|()| fs::rename(&folder, to))
            .with_context(|| format!("cannot put {} away", folder.display()))?;
    }
    sweep(cache);
    Ok(())
}

/// Begins to remove what was thrown away. What is left when this process ends is the next one's.
fn sweep(cache: &Cache) {
    let gone = gone(cache);
    if gone.exists() {
        // Others may be at it, too.
        std::thread::spawn(move || remove_all(&gone));
    }
}

/// A module cache to throw away, when the user has none of their own to share.
fn module_cache(cache: &Cache) -> Result<Option<PathBuf>> {
    let own = proc::output(Command::new("go").args(["env", "GOMODCACHE"]))?;
    Ok(if Path::new(own.trim()).is_dir() {
        None
    } else {
        Some(cache.join("tmp/go-mod"))
    })
}

fn build(
    checkout: &Checkout,
    component: &Component,
    into: &Path,
    build_cache: &Path,
    module_cache: Option<&Path>,
    log: &Path,
) -> Result<()> {
    let source = checkout.join("deploy/local/go").join(component.name);
    let go = || {
        let mut go = Command::new("go");
        go.current_dir(&source)
            .env("GOCACHE", build_cache)
            .env("GOTOOLCHAIN", "auto")
            .env("GOFLAGS", "-modcacherw")
            .env("GOWORK", "off");
        if let Some(modules) = module_cache {
            go.env("GOMODCACHE", modules);
        }
        go
    };
    let mut install = go();
    install
        .env("CGO_ENABLED", if component.cgo { "1" } else { "0" })
        .env("GOBIN", into)
        .args(["install", "-trimpath", "-ldflags"])
        .arg(format!(
            "-s -w {}",
            component.ldflags.replace("{v}", component.version)
        ));
    if !component.tags.is_empty() {
        install.args(["-tags", component.tags]);
    }
    proc::logged(install.arg("tool"), log)?;
    if !component.files.is_empty() {
        let dir = proc::output(go().args(["list", "-m", "-f", "{{.Dir}}", component.module]))?;
        for (path, name) in component.files {
            let from = Path::new(dir.trim()).join(path);
            // Without their rights: a cache of modules is read-only.
            let mut copy = Command::new("cp");
            copy.args(["--recursive", "--no-preserve=mode"]);
            proc::output(copy.arg(&from).arg(into.join(name)))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    for program in component.programs {
        if !into.join(program).is_file() {
            bail!("{} did not come out of {}", program, source.display());
        }
    }
    Ok(())
}

/// Shows how the build grows while it runs.
struct Ticker<'a> {
    into: &'a Path,
    build_cache: &'a Path,
}

impl<'a> Ticker<'a> {
    fn start(into: &'a Path, build_cache: &'a Path) -> Self {
        Self { into, build_cache }
    }

    fn run<T: Send>(&self, step: &Step, what: &str, work: impl FnOnce() -> T + Send) -> T {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(500));
                    let compiled = fs::read_dir(self.build_cache).map_or(0, |dir| {
                        dir.flatten()
                            .filter_map(|e| fs::read_dir(e.path()).ok())
                            .map(Iterator::count)
                            .sum::<usize>()
                    });
                    let programs = fs::read_dir(self.into).map_or(0, Iterator::count);
                    step.amount(&format!(
                        "{what}, {compiled} files compiled, {programs} programs linked"
                    ));
                }
            });
            let result = work();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            result
        })
    }
}
