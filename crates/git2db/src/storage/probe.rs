//! What works in a folder, found by trying it.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::Command,
};

use super::{Driver, FuseOverlay, Kind, Overlay2, StorageError, Vfs, View, io_error};

/// What a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// This process mounts an overlay: [`Overlay2`].
    Overlay,
    /// A process in a user namespace of its own does; run the program by
    /// `unshare --user --map-root-user --mount` to use [`Overlay2`] where [`Mechanism::Overlay`]
    /// does not work.
    OverlayInUserNamespace,
    /// [`FuseOverlay`].
    FuseOverlay,
    /// Files share bytes until they are written to.
    Reflink,
    /// A file has several names.
    HardLink,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay mounts",
            Self::OverlayInUserNamespace => "overlay mounts in a user namespace",
            Self::FuseOverlay => "fuse-overlayfs",
            Self::Reflink => "reflinks",
            Self::HardLink => "hard links",
        })
    }
}

/// Whether one thing works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub mechanism: Mechanism,
    /// Why it does not work, if it does not.
    pub result: Result<(), String>,
}

/// What works in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The folder.
    pub folder: PathBuf,
    /// One for each [`Mechanism`].
    pub findings: Vec<Finding>,
}

impl Probe {
    /// Why `mechanism` does not work; `Ok` if it does.
    ///
    /// # Errors
    /// What was found.
    pub fn of(&self, mechanism: Mechanism) -> Result<(), String> {
        let found = self.findings.iter().find(|f| f.mechanism == mechanism);
        found.map_or_else(
            || Err("it was not tried".to_owned()),
            |found| found.result.clone(),
        )
    }

    /// The driver, if it works in the folder.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] with what was found.
    pub fn driver(&self, kind: Kind) -> Result<Box<dyn Driver>, StorageError> {
        let works = match kind {
            Kind::Overlay2 => self.of(Mechanism::Overlay),
            Kind::FuseOverlay => self.of(Mechanism::FuseOverlay),
            Kind::Vfs => Ok(()),
        };
        works.map_err(|why| StorageError::Unavailable {
            kind,
            folder: self.folder.clone(),
            why,
        })?;
        Ok(super::driver(kind))
    }

    /// The best driver that works: one that copies nothing, of these the fastest.
    pub fn best(&self) -> Box<dyn Driver> {
        let works = |kind| self.driver(kind).is_ok();
        if works(Kind::Overlay2) {
            Box::new(Overlay2::default())
        } else if self.of(Mechanism::Reflink).is_err() && works(Kind::FuseOverlay) {
            Box::new(FuseOverlay)
        } else {
            Box::new(Vfs)
        }
    }
}

/// Tries everything in a temporary folder in `folder`, of which nothing stays.
///
/// # Errors
/// The temporary folder cannot be made or removed.
pub fn probe(folder: &Path) -> Result<Probe, StorageError> {
    let folder = folder
        .canonicalize()
        .map_err(|e| io_error("find", folder, e))?;
    let dir = tempfile::Builder::new()
        .prefix(".hyprstream-probe.")
        .tempdir_in(&folder)
        .map_err(|e| io_error("create folder in", &folder, e))?;
    let at = |name: &str| dir.path().join(name);
    for path in ["base", "upper", "work", "merged"].map(at) {
        fs::create_dir(&path).map_err(|e| io_error("create folder", &path, e))?;
    }
    let file = at("base").join("file");
    fs::write(&file, b"below").map_err(|e| io_error("write", &file, e))?;

    let tried = |mechanism, result| Finding { mechanism, result };
    let findings = vec![
        tried(
            Mechanism::Overlay,
            try_driver(&Overlay2::default(), dir.path(), "kernel"),
        ),
        tried(Mechanism::OverlayInUserNamespace, try_namespace(dir.path())),
        tried(
            Mechanism::FuseOverlay,
            try_driver(&FuseOverlay, dir.path(), "fuse"),
        ),
        tried(Mechanism::Reflink, try_reflink(&file, &at("reflink"))),
        tried(
            Mechanism::HardLink,
            fs::hard_link(&file, at("link")).map_err(|e| e.to_string()),
        ),
    ];
    let path = dir.path().to_owned();
    dir.close().map_err(|e| io_error("remove", &path, e))?;
    Ok(Probe { folder, findings })
}

/// Makes a view, writes over a file of the base, and removes it again.
fn try_driver(driver: &dyn Driver, dir: &Path, name: &str) -> Result<(), String> {
    let (base, target, private) = (
        dir.join("base"),
        dir.join(name),
        dir.join(format!("{name}.private")),
    );
    let view = View {
        base: &base,
        private: &private,
        target: &target,
        writable: true,
    };
    let used = driver.create(&view).map_err(|e| chain(&e)).and_then(|()| {
        let file = target.join("file");
        fs::write(&file, b"above").map_err(|e| format!("writing to it: {e}"))?;
        match (fs::read(&file), fs::read(base.join("file"))) {
            (Ok(above), Ok(below)) if above == b"above" && below == b"below" => Ok(()),
            _ => Err("what is written to it is not private".to_owned()),
        }
    });
    driver.remove(&view).map_err(|e| chain(&e))?;
    used
}

/// `unshare` and `mount` of util-linux do what this process cannot do without giving up its own
/// namespaces. Paths are relative, which need no escapes.
fn try_namespace(dir: &Path) -> Result<(), String> {
    let options = "userxattr,lowerdir=base,upperdir=upper,workdir=work";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "mount"])
        .args(["-t", "overlay", "-o", options, "overlay", "merged"])
        .current_dir(dir)
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

fn try_reflink(from: &Path, to: &Path) -> Result<(), String> {
    let act = || {
        let source = File::open(from)?;
        let target = OpenOptions::new().write(true).create_new(true).open(to)?;
        rustix::fs::ioctl_ficlone(target, source).map_err(std::io::Error::from)
    };
    act().map_err(|error| error.to_string())
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
