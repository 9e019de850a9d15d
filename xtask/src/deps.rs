//! What the machine must have, and how it gets it.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::{paths::Cache, proc, ui::Step};

/// A Debian package, and the program or file that tells that it is there.
struct Package {
    name: &'static str,
    /// Programs of it that are used.
    programs: &'static [&'static str],
    /// Files of it that are used, for libraries; one of them is enough.
    files: &'static [&'static str],
}

const fn program(name: &'static str, programs: &'static [&'static str]) -> Package {
    Package {
        name,
        programs,
        files: &[],
    }
}

/// Packages that a cluster and its images need.
const PACKAGES: &[Package] = &[
    program("iproute2", &["ip"]),
    program("util-linux", &["nsenter", "unshare"]),
    program("mount", &["mount"]),
    program("nftables", &["nft"]),
    program("conntrack", &["conntrack"]),
    program("ethtool", &["ethtool"]),
    program("buildah", &["buildah"]),
    program("mmdebstrap", &["mmdebstrap"]),
    program("git", &["git"]),
    program("git-lfs", &["git-lfs"]),
    program("gcc", &["cc"]),
    program("g++", &["c++"]),
    program("make", &["make"]),
    program("pkg-config", &["pkg-config"]),
    program("python3", &["python3"]),
    program("unzip", &["unzip"]),
    Package {
        name: "python3-pip",
        programs: &[],
        files: &["/usr/lib/python3/dist-packages/pip/__init__.py"],
    },
    Package {
        name: "libseccomp-dev",
        programs: &[],
        files: &["/usr/include/seccomp.h"],
    },
    Package {
        name: "libssl-dev",
        programs: &[],
        files: &["/usr/include/openssl/ssl.h"],
    },
    Package {
        name: "zlib1g-dev",
        programs: &[],
        files: &["/usr/include/zlib.h"],
    },
    Package {
        name: "debian-archive-keyring",
        programs: &[],
        files: &["/usr/share/keyrings/debian-archive-keyring.gpg"],
    },
    Package {
        name: "ca-certificates",
        programs: &[],
        files: &["/etc/ssl/certs/ca-certificates.crt"],
    },
];

/// Least Go that can fetch a newer one by itself.
const OLDEST_GO: (u32, u32) = (1, 21);

/// Refuses to go on as another user than root.
pub(crate) fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "root is needed for network and mount namespaces; run: sudo -E env \"PATH=$PATH\" \
             cargo xtask up"
        );
    }
    Ok(())
}

/// Installs the Debian packages that are missing, or says which they are, and checks Go.
pub(crate) fn ensure(cache: &Cache, needs_go: bool, step: &Step) -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|package| !is_there(package))
        .map(|package| package.name)
        .collect();
    if !missing.is_empty() {
        install(cache, &missing, step)?;
    }
    if needs_go { require_go() } else { Ok(()) }
}

fn is_there(package: &Package) -> bool {
    if package.name == "python3-pip" {
        // pip may come from elsewhere than Debian.
        return proc::succeeds(Command::new("python3").args(["-c", "import pip"]));
    }
    package
        .programs
        .iter()
        .all(|program| proc::on_path(program))
        && (package.files.is_empty() || package.files.iter().any(|f| fs::metadata(f).is_ok()))
}

fn install(cache: &Cache, missing: &[&str], step: &Step) -> Result<()> {
    let line = format!(
        "apt-get install -y --no-install-recommends {}",
        missing.join(" ")
    );
    if !proc::on_path("apt-get") {
        bail!(
            "these are missing, by their Debian names: {}; install them with your system's tools",
            missing.join(" ")
        );
    }
    step.note(&format!("installs Debian packages: {}", missing.join(" ")));
    let log = cache.join("log/packages.log");
    let apt = |args: &[&str]| {
        proc::logged(
            Command::new("apt-get")
                .args(args)
                .env("DEBIAN_FRONTEND", "noninteractive"),
            &log,
        )
    };
    let mut args = vec!["install", "-y", "--no-install-recommends"];
    args.extend(missing);
    // The package lists of a fresh machine are empty or old.
    let installed = apt(&args).or_else(|_| apt(&["update"]).and_then(|()| apt(&args)));
    installed.map_err(|error| error.context(format!("cannot install packages; try: {line}")))
}

fn require_go() -> Result<()> {
    const HOW: &str = "install any Go from 1.21 on, it fetches the version it needs by itself: \
                       `apt-get install -t bookworm-backports golang-go` on Debian 12, \
                       `apt-get install golang-go` on newer ones, or https://go.dev/dl";
    if !proc::on_path("go") {
        bail!("Go is missing; {HOW}");
    }
    let text = proc::output(
        Command::new("go")
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local"),
    )?;
    match go_version(text.trim()) {
        Some(version) if version >= OLDEST_GO => Ok(()),
        _ => bail!("{} is too old; {HOW}", text.trim()),
    }
}

fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix("go")?.split(['.', 'r', 'b', ' ', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert!(go_version("go1.9").unwrap() < OLDEST_GO);
        assert_eq!(go_version("devel"), None);
    }
}
