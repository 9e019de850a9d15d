//! Where things lie: the checkout and the cache.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

/// The folder with the workspace's `Cargo.toml`.
#[derive(Clone, Debug)]
pub(crate) struct Checkout(PathBuf);

impl Checkout {
    /// The checkout that this program was built from.
    pub(crate) fn find() -> Result<Self> {
        let member = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = member.join("..").canonicalize().with_context(|| {
            format!(
                "the checkout that xtask was built from is gone: {}",
                member.display()
            )
        })?;
        Ok(Self(root))
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// A path below it.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }
}

/// What is downloaded and built once: `$HYPRSTREAM_CACHE`, or `hyprstream` in the user's cache
/// folder. Everything in it is made aside and renamed, so that what is there is complete.
#[derive(Clone, Debug)]
pub(crate) struct Cache(PathBuf);

impl Cache {
    /// Opens the cache and makes its folder.
    pub(crate) fn open() -> Result<Self> {
        let root = match env::var_os("HYPRSTREAM_CACHE").filter(|v| !v.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => match env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
                Some(path) => PathBuf::from(path).join("hyprstream"),
                None => PathBuf::from(
                    env::var_os("HOME").context("neither HOME nor HYPRSTREAM_CACHE is set")?,
                )
                .join(".cache/hyprstream"),
            },
        };
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the cache folder {}", root.display()))?;
        Ok(Self(root.canonicalize()?))
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// A path below it.
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.join(path)
    }

    /// Makes `name` with `make`, unless it is there. `make` gets an empty folder, which becomes
    /// `name` when it returns without an error.
    pub(crate) fn ensure(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.join(name);
        if !path.exists() {
            let _lock = self.lock(name)?;
            // Another process may have made it while this one waited.
            if !path.exists() {
                self.make(name, make)?;
            }
        }
        Ok(path)
    }

    /// Keeps other processes from making the same thing until the value is dropped.
    pub(crate) fn lock(&self, name: &str) -> Result<fs::File> {
        let dir = self.join("locks");
        fs::create_dir_all(&dir)?;
        let path = dir.join(name.replace('/', "_"));
        let file = fs::File::create(&path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("        waits for another xtask that makes {name}");
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("cannot take the lock {}", path.display()))?;
        }
        Ok(file)
    }

    /// Makes `name` anew with `make` and puts it in the place of what is there.
    pub(crate) fn replace(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let _lock = self.lock(name)?;
        self.make(name, make)
    }

    fn make(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.join(name);
        let aside = self
            .join("tmp")
            .join(format!("{}.new", name.replace('/', "_")));
        remove_all(&aside)?;
        fs::create_dir_all(&aside)?;
        make(&aside)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        remove_all(&path)?;
        fs::rename(&aside, &path)
            .with_context(|| format!("cannot move {} to {}", aside.display(), path.display()))?;
        Ok(path)
    }
}

/// Removes a file or folder with all that it holds; nothing there is fine.
pub(crate) fn remove_all(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file so that readers see the old or the new content and never a part.
pub(crate) fn write_atomically(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&aside, content)
        .and_then(|()| fs::rename(&aside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
