//! The digest of what an image is made from.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Collects inputs. Each is set off by its length, so that none runs into the next.
pub(super) struct Digester(Sha256);

impl Digester {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds a text.
    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Adds the content and the mode of a file.
    pub(super) fn file(&mut self, path: &Path) -> Result<()> {
        let mut file =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let meta = file.metadata()?;
        self.0.update(meta.len().to_le_bytes());
        self.0
            .update((meta.permissions().mode() & 0o777).to_le_bytes());
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.0.update(&buffer[..count]),
            }
        }
    }

    /// Adds a folder with all that it holds, in the order of the names.
    pub(super) fn tree(&mut self, dir: &Path) -> Result<()> {
        let mut entries: Vec<_> = fs::read_dir(dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.bytes(entry.file_name().as_bytes());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.text("folder");
                self.tree(&entry.path())?;
                self.text("end");
            } else if kind.is_symlink() {
                self.text("link");
                self.bytes(fs::read_link(entry.path())?.as_os_str().as_bytes());
            } else {
                self.text("file");
                self.file(&entry.path())?;
            }
        }
        Ok(())
    }

    /// 64 hexadecimal digits.
    pub(super) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(dir: &Path) -> String {
        let mut digester = Digester::new();
        digester.tree(dir).unwrap();
        digester.finish()
    }

    #[test]
    fn the_digest_follows_names_content_and_modes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
        let first = digest(dir.path());
        fs::write(dir.path().join("a"), "1").unwrap();
        assert_eq!(digest(dir.path()), first);
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o755)).unwrap();
        let executable = digest(dir.path());
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        let renamed = digest(dir.path());
        fs::write(dir.path().join("b"), "2").unwrap();
        let changed = digest(dir.path());
        let all = [&first, &executable, &renamed, &changed];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one));
        }
    }
}
