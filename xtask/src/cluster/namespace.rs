//! Network and mount namespaces: how they are made, held and entered.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{Cluster, state::Place};
use crate::proc;

/// The namespaces of a node or of the control plane, held open. They end when nothing holds
/// them and no process is in them.
pub(crate) struct Namespaces {
    net: File,
    mount: File,
}

/// Arguments of the hidden command that sets up namespaces from the inside.
#[derive(clap::Args, Debug)]
pub(crate) struct HoldArgs {
    /// Folder for what the place writes.
    #[arg(long)]
    dir: PathBuf,
    /// Folder of the volumes that all places share.
    #[arg(long)]
    volumes: PathBuf,
    /// Size of the node plugin's disk in memory, in megabytes.
    #[arg(long)]
    disk_mb: Option<u32>,
    /// A folder that must stay visible; may be repeated.
    #[arg(long)]
    keep: Vec<PathBuf>,
}

impl Namespaces {
    /// Makes namespaces for a place that writes to `dir`.
    pub(crate) fn make(cluster: &Cluster, dir: &Path, disk_mb: Option<u32>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let volumes = cluster.dir().join("volumes");
        fs::create_dir_all(&volumes)?;
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .arg(cluster.dir().join("xtask"))
            .arg("hold")
            .arg("--dir")
            .arg(dir)
            .arg("--volumes")
            .arg(volumes)
            .arg("--keep")
            .arg(cluster.checkout.root())
            .arg("--keep")
            .arg(cluster.cache.root());
        if let Some(megabytes) = disk_mb {
            unshare.arg(format!("--disk-mb={megabytes}"));
        }
        let mut child = unshare
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare")?;
        let mut ready = [0; 1];
        let told = child.stdout.take().context("no output")?.read(&mut ready)?;
        let opened = (|| {
            let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", child.id()));
            Ok::<_, std::io::Error>(Self {
                net: open("net")?,
                mount: open("mnt")?,
            })
        })();
        drop(child.stdin.take());
        let status = child.wait()?;
        if told == 0 || !status.success() {
            bail!("cannot make namespaces ({status}); root is needed, see the lines above");
        }
        opened.context("cannot open the namespaces")
    }

    /// Where others find them as long as this process lives.
    pub(crate) fn place(&self) -> Place {
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        Place {
            net: path(&self.net),
            mount: path(&self.mount),
        }
    }

    /// Runs `work` on a thread of its own inside the network namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let net = self.net.try_clone()?;
        Ok(thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || {
                move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the network namespace")?;
                Ok(work())
            })?)
    }

    /// Like [`Namespaces::spawn`], and waits for the result.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        match self.spawn(work)?.join() {
            Ok(result) => result,
            Err(_) => bail!("the work in the namespace failed"),
        }
    }
}

/// Runs inside new namespaces: sets them up, says so, and waits to be let go.
pub(crate) fn hold(args: &HoldArgs) -> Result<()> {
    proc::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        // Answers may come back another way than the asymmetric routes of the Services suggest.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/neigh/default/gc_thresh3", "4096"),
    ] {
        let path = format!("/proc/sys/net/{name}");
        if let Err(error) = fs::write(&path, value)
            && Path::new(&path).exists()
        {
            bail!("cannot set {path}: {error}");
        }
    }
    mounts(args)?;
    let mut out = std::io::stdout();
    out.write_all(b"+")?;
    out.flush()?;
    // End of input: the supervisor has opened the namespaces, or is gone.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Gives the place its own writable folders where programs expect them. Nothing of it is seen
/// outside of this mount namespace.
fn mounts(args: &HoldArgs) -> Result<()> {
    // Opened before anything covers them.
    let kept: Vec<(&PathBuf, _)> = args
        .keep
        .iter()
        .map(|path| Ok((path, open_path(path)?)))
        .collect::<Result<_>>()?;
    let own = open_path(&args.dir)?;
    let volumes = open_path(&args.volumes)?;

    for folder in [
        "tmp",
        "log",
        "lib/kubelet",
        "lib/containerd",
        "lib/cni",
        "lib/hyprstream",
    ] {
        fs::create_dir_all(args.dir.join(folder))?;
    }
    let own = |folder: &str| format!("/proc/self/fd/{}/{folder}", own.as_raw_fd());
    bind(own("log").as_ref(), "/var/log".as_ref())?;
    bind(own("tmp").as_ref(), "/tmp".as_ref())?;
    rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID, c"mode=755")
        .context("cannot mount /run")?;
    bind(own("lib").as_ref(), "/var/lib".as_ref())?;
    // The kubelet shares what is mounted below these with containers and back.
    for folder in ["kubelet", "hyprstream", "containerd"] {
        bind(
            own(&format!("lib/{folder}")).as_ref(),
            Path::new("/var/lib").join(folder).as_ref(),
        )?;
    }
    if let Some(megabytes) = args.disk_mb {
        disk_in_memory("/var/lib/hyprstream".as_ref(), megabytes)?;
    }
    fs::create_dir_all("/run/lock")?;
    fs::create_dir_all("/tmp/hostpath_pv")?;
    bind(fd_path(&volumes).as_ref(), "/tmp/hostpath_pv".as_ref())?;
    for (path, fd) in &kept {
        if ["/tmp", "/run", "/var/lib", "/var/log"]
            .iter()
            .any(|cover| path.starts_with(cover))
        {
            fs::create_dir_all(path)?;
            bind(fd_path(fd).as_ref(), path.as_ref())?;
        }
    }
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .context("cannot share the mounts of the node")
}

/// Mounts a disk of that size in memory.
pub(crate) fn disk_in_memory(path: &Path, megabytes: u32) -> Result<()> {
    fs::create_dir_all(path)?;
    let options = std::ffi::CString::new(format!("mode=755,size={megabytes}m"))?;
    rustix::mount::mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::NOSUID,
        options.as_c_str(),
    )
    .with_context(|| format!("cannot mount a disk in memory at {}", path.display()))
}

fn open_path(path: &Path) -> Result<rustix::fd::OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("cannot open {}", path.display()))
}

fn fd_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    rustix::mount::mount_bind(from, to)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}
