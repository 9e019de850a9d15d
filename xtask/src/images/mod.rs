//! Container images: built with buildah out of Debian packages, put on the nodes without a
//! registry.

mod base;
mod compile;
mod inputs;
mod project;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use self::inputs::Digester;
pub(crate) use self::project::{ProjectImages, cuda, project};
pub(crate) use self::{
    base::{PAUSE, debian, ensure_kueue, ensure_pause, has_pause},
    compile::compile,
};
use crate::{
    cluster::Cluster,
    paths::{Cache, Checkout},
    proc,
};

/// The certificate authorities of this machine.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image to build from a Dockerfile of the project.
pub(crate) struct Recipe<'a> {
    /// Last part of its name.
    pub(crate) name: &'a str,
    /// Dockerfile below the checkout.
    pub(crate) dockerfile: &'a str,
    /// Stage of the Dockerfile; the last one if none is named.
    pub(crate) target: Option<&'a str>,
    /// Whether what stands before our programs, the packages, is kept for the next build.
    pub(crate) keep_layers: bool,
    /// Named contexts: name and folder. All of their content is part of the image's identity.
    pub(crate) contexts: &'a [(&'a str, PathBuf)],
    /// Named contexts whose folders never change once they have their name, for example a version
    /// of a library; only the name is looked at.
    pub(crate) fixed_contexts: &'a [(&'a str, PathBuf)],
}

/// A built image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Full reference.
    pub(crate) reference: String,
    /// It as a docker archive in the cache.
    pub(crate) archive: PathBuf,
    /// Whether it was built just now.
    pub(crate) fresh: bool,
}

/// Builds an image, unless one of the same inputs lies in the cache.
pub(crate) fn build(
    checkout: &Checkout,
    cache: &Cache,
    recipe: &Recipe,
    log: &Path,
) -> Result<Image> {
    let dockerfile = checkout.join(recipe.dockerfile);
    let mut digester = Digester::new();
    digester.text(base::IDENTITY);
    digester.text(recipe.target.unwrap_or_default());
    digester.file(&dockerfile)?;
    for (name, dir) in recipe.contexts {
        digester.text(name);
        digester.tree(dir)?;
    }
    for (name, dir) in recipe.fixed_contexts {
        digester.text(name);
        digester.text(&dir.display().to_string());
    }
    let digest = digester.finish();
    let reference = format!(
        "docker.io/hyprstream/{}:{}-{}",
        recipe.name,
        env!("CARGO_PKG_VERSION"),
        &digest[..12]
    );
    let entry = format!("images/{}-{}", recipe.name, &digest[..12]);
    let archive = cache.join(&entry).join("image.tar");
    if archive.is_file() {
        return Ok(Image {
            reference,
            archive,
            fresh: false,
        });
    }
    base::ensure_debian(cache, log)?;
    cache.replace(&entry, |dir| {
        let mut command = buildah(cache);
        command
            .args(["build", "--pull-never", "--force-rm"])
            .arg(format!("--layers={}", recipe.keep_layers))
            .args(["--network=host", "--tag", &reference])
            .arg("--file")
            .arg(&dockerfile);
        command.args(authorities());
        if let Some(target) = recipe.target {
            command.args(["--target", target]);
        }
        for (name, dir) in recipe.contexts.iter().chain(recipe.fixed_contexts) {
            command
                .arg("--build-context")
                .arg(format!("{name}={}", dir.display()));
        }
        proc::logged(command.arg(checkout.root()), log)
            .with_context(|| format!("cannot build the image {}", recipe.name))?;
        push(cache, &reference, &dir.join("image.tar"), log)
    })?;
    forget_older(cache, recipe.name, &entry)?;
    forget_older_layers(cache, recipe.name, &reference)?;
    Ok(Image {
        reference,
        archive,
        fresh: true,
    })
}

/// Puts images on every node of a running cluster that does not have them; returns how many were
/// put.
pub(crate) fn load(cluster: &Cluster, images: &[Image]) -> Result<usize> {
    let nodes = cluster.spec().context("the cluster is not running")?.nodes;
    std::thread::scope(|scope| {
        let nodes: Vec<_> = (1..=nodes)
            .map(|node| scope.spawn(move || load_node(cluster, node, images)))
            .collect();
        let mut put = 0;
        for node in nodes {
            put += node
                .join()
                .map_err(|_| anyhow::anyhow!("a node's thread failed"))??;
        }
        Ok(put)
    })
}

fn load_node(cluster: &Cluster, node: u8, images: &[Image]) -> Result<usize> {
    let there = proc::output(cluster.ctr(node)?.args(["images", "list", "--quiet"]))?;
    let mut put = 0;
    for image in images {
        if there.lines().any(|line| line == image.reference) {
            continue;
        }
        proc::output(
            cluster
                .ctr(node)?
                .args(["images", "import", "--local"])
                .arg(&image.archive),
        )
        .with_context(|| format!("cannot put {} on node {node}", image.reference))?;
        put += 1;
    }
    Ok(put)
}

/// Puts any image archive on every node.
pub(crate) fn load_archive(cluster: &Cluster, archive: &Path) -> Result<()> {
    let archive = archive
        .canonicalize()
        .with_context(|| format!("there is no archive {}", archive.display()))?;
    let nodes = cluster.spec().context("the cluster is not running")?.nodes;
    for node in 1..=nodes {
        // On its standard input, for the node does not see every folder of the host.
        let input = fs::File::open(&archive)?;
        let status = cluster
            .ctr(node)?
            .args(["images", "import", "--local", "-"])
            .stdin(input)
            .status()
            .context("cannot start ctr")?;
        anyhow::ensure!(
            status.success(),
            "node {node} does not take {}",
            archive.display()
        );
    }
    Ok(())
}

/// Pushes an image to a registry that nodes can pull from, and returns its name there.
pub(crate) fn push_to(cache: &Cache, image: &Image, registry: &str, log: &Path) -> Result<String> {
    let name = image.reference.trim_start_matches("docker.io/");
    let there = format!("{}/{name}", registry.trim_end_matches('/'));
    let source = format!("docker-archive:{}", image.archive.display());
    proc::logged(buildah(cache).args(["pull", "--quiet", &source]), log)?;
    proc::logged(
        buildah(cache).args([
            "push",
            "--quiet",
            &image.reference,
            &format!("docker://{there}"),
        ]),
        log,
    )
    .with_context(|| format!("cannot push {there}; log in with `buildah login` first"))?;
    proc::logged(
        buildah(cache).args(["rmi", "--force", &image.reference]),
        log,
    )?;
    Ok(there)
}

/// Removes buildah's storage, which holds mounts and files that only it can remove well.
pub(crate) fn purge(cache: &Cache) -> Result<()> {
    if cache.join("buildah").exists() && proc::on_path("buildah") {
        let _ = proc::output(buildah(cache).args(["rm", "--all"]));
        let _ = proc::output(buildah(cache).args(["rmi", "--all", "--force"]));
    }
    unmount_below(cache.root())?;
    Ok(())
}

/// Takes away what a build that was killed has left mounted in the cache, and tells how much that
/// was. A build that is still running keeps its mounts.
pub(crate) fn unmount_leftovers(cache: &Cache) -> Result<usize> {
    let storage = cache.join("buildah");
    for process in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        let program = Path::new(OsStr::from_bytes(words.next().unwrap_or_default()));
        if program.ends_with("buildah")
            && words.any(|word| Path::new(OsStr::from_bytes(word)).starts_with(&storage))
        {
            return Ok(0);
        }
    }
    unmount_below(&storage)
}

fn unmount_below(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for mount in fs::read_to_string("/proc/self/mountinfo")?.lines().rev() {
        let at = mount.split(' ').nth(4).unwrap_or_default();
        if Path::new(at).starts_with(dir) {
            proc::output(Command::new("umount").arg(at))?;
            count += 1;
        }
    }
    Ok(count)
}

/// buildah with its storage in the cache, apart from that of the user.
fn buildah(cache: &Cache) -> Command {
    let mut command = Command::new("buildah");
    command
        .arg("--root")
        .arg(cache.join("buildah/storage"))
        .arg("--runroot")
        .arg(cache.join("buildah/run"))
        .env("BUILDAH_ISOLATION", "chroot");
    command
}

/// Runs `work` with a container of an image, which goes afterwards.
fn in_container(cache: &Cache, image: &str, work: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let container = proc::output(buildah(cache).args(["from", "--pull-never", image]))?;
    let container = container.trim();
    let result = work(container);
    proc::output(buildah(cache).args(["rm", container]))?;
    result
}

/// Lets the steps of a build trust whom this machine trusts; the image does not keep it.
fn authorities() -> Option<String> {
    Path::new(AUTHORITIES)
        .exists()
        .then(|| format!("--volume={AUTHORITIES}:{AUTHORITIES}:ro"))
}

fn push(cache: &Cache, reference: &str, archive: &Path, log: &Path) -> Result<()> {
    proc::logged(
        buildah(cache)
            .args(["push", reference])
            .arg(format!("docker-archive:{}:{reference}", archive.display())),
        log,
    )
}

/// Removes other images of that name from buildah's storage; layers that this one shares stay.
fn forget_older_layers(cache: &Cache, name: &str, keep: &str) -> Result<()> {
    let filter = format!("reference=docker.io/hyprstream/{name}");
    let all = proc::output(buildah(cache).args([
        "images",
        "--noheading",
        "--format",
        "{{.Name}}:{{.Tag}}",
        "--filter",
        &filter,
    ]))?;
    for other in all
        .lines()
        .filter(|line| *line != keep && line.contains("/hyprstream/"))
    {
        proc::output(buildah(cache).args(["rmi", other]))?;
    }
    Ok(())
}

/// Keeps this archive and the one before it, for a quick way back.
fn forget_older(cache: &Cache, name: &str, keep: &str) -> Result<()> {
    let mut old: Vec<_> = fs::read_dir(cache.join("images"))?
        .flatten()
        .filter(|entry| {
            let file = entry.file_name();
            let file = file.to_string_lossy();
            let digest = file
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('-'));
            digest.is_some_and(|d| d.len() == 12 && !d.contains('-')) && !keep.ends_with(&*file)
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    old.sort();
    for (_, path) in old.iter().rev().skip(1) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}
