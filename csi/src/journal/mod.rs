//! What was asked for, volume by volume, so that a restart knows it.
//!
//! The journal holds intents: an entry is written before the first mount of its volume and
//! removed after the last unmount. What is true is in mountinfo. So a kill at any point leaves
//! either an entry whose mounts are repeated or undone, or nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyprstream_contract::{
    adapters::ModelName,
    grants::Word,
    volume::{VolumeContent, VolumeMode},
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    layout::{CheckoutKey, LayerKey, Layout, handle_hash},
    mount::sync_folder,
};

/// Ending of the name of the file with the word of a volume.
const WORD: &str = "word";
/// Ending of the name of an entry that could not be read.
const DAMAGED: &str = "damaged";

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// Handle of the volume.
    pub handle: String,
    /// Attributes of the volume as they stood in the PersistentVolume.
    pub attributes: BTreeMap<String, String>,
    /// SELinux label that it is mounted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Where it is staged, or was about to be. `None` for a read-write volume that is not on the
    /// node at present and whose upper is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<PathBuf>,
    /// Where it is published, or was about to be.
    #[serde(default)]
    pub targets: BTreeMap<PathBuf, Target>,
    /// The PersistentVolume of a volume that is written to, once it was published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume: Option<PersistentVolume>,
    /// When the entry was written last, in seconds since 1970.
    pub written_seconds: u64,
}

/// The PersistentVolume of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PersistentVolume {
    /// Its name, by the path at which the kubelet publishes it.
    pub name: String,
    /// Its UID; `None` until somebody who knows said that there is one of this name and handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// One publication of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// Whether the pod asked for it read-only.
    pub read_only: bool,
    /// Whether no other publication is allowed beside it.
    pub exclusive: bool,
}

impl Entry {
    /// What the volume shows.
    pub fn content(&self) -> Result<VolumeContent, Error> {
        VolumeContent::from_map(&self.attributes).map_err(Error::Attributes)
    }

    /// Whether pods may write to the volume.
    pub fn is_writable(&self) -> bool {
        matches!(
            self.content(),
            Ok(VolumeContent::Commit(volume)) if volume.mode != VolumeMode::ReadOnly
        )
    }

    /// Whether the volume is neither staged nor published, nor about to be: all that there may be of
    /// it is what was written to it.
    pub fn is_off_node(&self) -> bool {
        self.staging.is_none() && self.targets.is_empty()
    }

    /// The Model whose adapters the volume shows, while it is staged or published, or about to be.
    pub fn adapters(&self) -> Option<ModelName> {
        let on_node = self.staging.is_some() || !self.targets.is_empty();
        match self.content() {
            Ok(VolumeContent::Adapters(model)) if on_node => Some(model),
            _ => None,
        }
    }

    /// The checkout and the layer that the volume shows, while it is staged or about to be.
    pub fn lowers(&self) -> Option<(CheckoutKey, LayerKey)> {
        self.staging.as_ref()?;
        let Ok(VolumeContent::Commit(volume)) = self.content() else {
            return None;
        };
        let checkout = CheckoutKey::of(&volume).ok()?;
        let layer = LayerKey::of(&checkout, &volume);
        Some((checkout, layer))
    }

    /// How long ago the entry was written.
    pub fn age(&self) -> Duration {
        let written = UNIX_EPOCH + Duration::from_secs(self.written_seconds);
        SystemTime::now()
            .duration_since(written)
            .unwrap_or_default()
    }
}

/// All entries, in memory and on disk.
pub struct Journal {
    folder: PathBuf,
    entries: RwLock<BTreeMap<String, Entry>>,
    /// Handles whose entry on the disk tells of more than there is.
    late: Mutex<BTreeSet<String>>,
    /// Words of volumes that are followed, by handle. Each lies beside its entry, in a file that only
    /// we read, and goes with it.
    words: RwLock<BTreeMap<String, Word>>,
}

impl Journal {
    /// Reads the journal. An entry that cannot be read is put aside: its mounts are seen in
    /// mountinfo, and the kubelet's calls name all paths. A kill leaves no such entry.
    ///
    /// # Errors
    /// The folder or a file in it cannot be read.
    pub fn open(layout: &Layout) -> Result<Self, Error> {
        let folder = layout.journal();
        let mut entries = BTreeMap::new();
        let mut found = Vec::new();
        let files = std::fs::read_dir(&folder).map_err(|e| Error::io("read", &folder, e))?;
        for file in files {
            let path = file.map_err(|e| Error::io("read", &folder, e))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {}
                Some(DAMAGED) => continue,
                Some(WORD) => {
                    found.push(path);
                    continue;
                }
                // Left by a kill between write and rename.
                _ => {
                    std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                    continue;
                }
            }
            let text = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
            match serde_json::from_slice::<Entry>(&text) {
                Ok(entry) => {
                    entries.insert(entry.handle.clone(), entry);
                }
                Err(error) => {
                    let aside = path.with_extension(DAMAGED);
                    tracing::error!(entry = %path.display(), %error, "journal entry put aside");
                    std::fs::rename(&path, &aside).map_err(|e| Error::io("rename", &path, e))?;
                }
            }
        }
        let words = read_words(&entries, found)?;
        Ok(Self {
            folder,
            entries: RwLock::new(entries),
            late: Mutex::default(),
            words: RwLock::new(words),
        })
    }

    /// The entry of a volume.
    pub fn get(&self, handle: &str) -> Option<Entry> {
        self.entries.read().get(handle).cloned()
    }

    /// All entries, ordered by handle.
    pub fn all(&self) -> Vec<Entry> {
        self.entries.read().values().cloned().collect()
    }

    /// Writes an entry and stamps it with the present time. It is on disk when this returns.
    pub fn put(&self, mut entry: Entry) -> Result<(), Error> {
        entry.written_seconds = now_seconds();
        let text = serde_json::to_vec_pretty(&entry).expect("an entry is JSON");
        // One call at a time works on a volume, so the name of the new file is free.
        write_durably(&self.path(&entry.handle), &text)?;
        self.late.lock().remove(&entry.handle);
        self.entries.write().insert(entry.handle.clone(), entry);
        Ok(())
    }

    /// As [`Self::put`], for an entry that tells of less than before: something was unmounted.
    /// A full disk is no failure. What the disk then tells of too much is not mounted, so that a
    /// restart takes it out, as it does after a kill between unmounting and writing.
    pub fn lessen(&self, entry: Entry) -> Result<(), Error> {
        match self.put(entry.clone()) {
            Err(error) if error.needs_room() => {
                tracing::warn!(volume = entry.handle, %error, "journal entry is written later");
                self.late.lock().insert(entry.handle.clone());
                let written_seconds = now_seconds();
                let entry = Entry {
                    written_seconds,
                    ..entry
                };
                self.entries.write().insert(entry.handle.clone(), entry);
                Ok(())
            }
            other => other,
        }
    }

    /// Writes what a full disk kept from being written, if it is no longer full.
    pub fn write_late(&self) {
        let late: Vec<String> = self.late.lock().iter().cloned().collect();
        for entry in late.iter().filter_map(|handle| self.get(handle)) {
            if let Err(error) = self.put(entry) {
                tracing::debug!(%error, "journal entry is still not written");
            }
        }
    }

    /// The word of a volume, if one is kept.
    pub fn word(&self, handle: &str) -> Option<Word> {
        self.words.read().get(handle).cloned()
    }

    /// Keeps the word of a volume that has an entry, in place of the one before; none forgets that. It
    /// is on disk when this returns.
    pub fn keep_word(&self, handle: &str, word: Option<&Word>) -> Result<(), Error> {
        if self.words.read().get(handle) == word {
            return Ok(());
        }
        let path = self.path(handle).with_extension(WORD);
        let Some(word) = word else {
            return self.forget_word(handle);
        };
        let kept = write_privately(&path, word.expose().as_bytes());
        // What a full disk does not take is of use until the program ends.
        self.words.write().insert(handle.to_owned(), word.clone());
        kept
    }

    fn forget_word(&self, handle: &str) -> Result<(), Error> {
        self.words.write().remove(handle);
        let path = self.path(handle).with_extension(WORD);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Removes the entry of a volume, if there is one.
    pub fn remove(&self, handle: &str) -> Result<(), Error> {
        let path = self.path(handle);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, e));
            }
            _ => {}
        }
        self.forget_word(handle)?;
        sync_folder(&self.folder).map_err(|e| Error::io("sync", &self.folder, e))?;
        self.late.lock().remove(handle);
        self.entries.write().remove(handle);
        Ok(())
    }

    fn path(&self, handle: &str) -> PathBuf {
        self.folder.join(format!("{}.json", handle_hash(handle)))
    }
}

/// The words in these files, of volumes that have an entry. The others go.
fn read_words(
    entries: &BTreeMap<String, Entry>,
    files: Vec<PathBuf>,
) -> Result<BTreeMap<String, Word>, Error> {
    let handles: BTreeMap<String, &String> = entries.keys().map(|h| (handle_hash(h), h)).collect();
    let mut words = BTreeMap::new();
    for path in files {
        let name = path.file_stem().and_then(|name| name.to_str());
        let handle = name.and_then(|name| handles.get(name));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        match (handle, text.parse::<Word>()) {
            (Some(handle), Ok(word)) => {
                words.insert((*handle).clone(), word);
            }
            // Left by a kill, or of no use: the kubelet brings it again.
            _ => std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?,
        }
    }
    Ok(words)
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Replaces the file at `path`; readers and crashes see the old content or the new.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<(), Error> {
    write_durably_by(&path.with_extension("new"), path, content)
}

/// The same by way of the file `new`, which lies in a folder that readers do not see.
pub(crate) fn write_durably_by(new: &Path, path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    write_with(&options, new, path, content)
}

/// The same as [`write_durably`], for root's eyes alone.
fn write_privately(path: &Path, content: &[u8]) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;

    let new = path.with_extension("new");
    // One that is left from a kill has another mode.
    let _ = std::fs::remove_file(&new);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    write_with(&options, &new, path, content)
}

fn write_with(
    options: &std::fs::OpenOptions,
    new: &Path,
    path: &Path,
    content: &[u8],
) -> Result<(), Error> {
    use std::io::Write;

    let write = || -> io::Result<()> {
        let mut file = options.open(new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(new, path)?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(new);
        Error::io("write", path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(handle: &str) -> Entry {
        Entry {
            handle: handle.into(),
            attributes: BTreeMap::from([("a".into(), "b".into())]),
            context: None,
            staging: Some("/s".into()),
            targets: BTreeMap::from([(
                "/t".into(),
                Target {
                    read_only: true,
                    exclusive: false,
                },
            )]),
            persistent_volume: None,
            written_seconds: 0,
        }
    }

    fn layout() -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        layout.create().unwrap();
        (folder, layout)
    }

    #[test]
    fn entries_survive_a_restart() {
        let (_folder, layout) = layout();
        let journal = Journal::open(&layout).unwrap();
        journal.put(entry("a/../b")).unwrap();
        journal.put(entry("c")).unwrap();
        journal.remove("c").unwrap();
        journal.remove("never there").unwrap();

        let again = Journal::open(&layout).unwrap();
        assert_eq!(again.all(), journal.all());
        let found = again.get("a/../b").unwrap();
        assert_eq!(found.targets, entry("x").targets);
        assert!(found.age() < Duration::from_mins(1), "put stamps the time");
    }

    #[test]
    fn a_word_lies_beside_its_entry_for_nobody_else_and_goes_with_it() {
        use std::os::unix::fs::PermissionsExt;

        let (_folder, layout) = layout();
        let journal = Journal::open(&layout).unwrap();
        let word = |byte| Word::from_bytes([byte; 32]);
        for handle in ["a", "b", "c"] {
            journal.put(entry(handle)).unwrap();
            journal.keep_word(handle, Some(&word(1))).unwrap();
        }
        journal.keep_word("a", Some(&word(2))).unwrap();
        journal.keep_word("b", None).unwrap();
        let file = |handle: &str| {
            let name = format!("{}.{WORD}", handle_hash(handle));
            layout.journal().join(name)
        };
        let mode = std::fs::metadata(file("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let found = std::fs::read_to_string(file("a").with_extension("json")).unwrap();
        assert!(!found.contains("hsv_"));
        // A kill before the entry was there, and a file that is none.
        std::fs::write(file("nobody"), word(3).expose()).unwrap();
        std::fs::write(file("c"), "half").unwrap();

        let again = Journal::open(&layout).unwrap();
        assert_eq!(again.word("a"), Some(word(2)));
        assert_eq!([again.word("b"), again.word("c")], [None, None]);
        assert!(!file("nobody").exists() && !file("b").exists() && !file("c").exists());
        assert_eq!(again.all().len(), 3);
        again.remove("a").unwrap();
        assert!(again.word("a").is_none() && !file("a").exists());
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_put_aside() {
        let (_folder, layout) = layout();
        Journal::open(&layout).unwrap().put(entry("a")).unwrap();
        std::fs::write(layout.journal().join("b.json"), "{}").unwrap();
        for _ in 0..2 {
            assert_eq!(Journal::open(&layout).unwrap().all().len(), 1);
        }
        assert!(layout.journal().join("b.damaged").exists());
    }

    #[test]
    fn a_kill_while_writing_leaves_the_old_entry() {
        let (_folder, layout) = layout();
        let journal = Journal::open(&layout).unwrap();
        journal.put(entry("a")).unwrap();
        let half = layout.journal().join(format!("{}.new", handle_hash("a")));
        std::fs::write(&half, b"{\"handle\": \"a").unwrap();
        assert_eq!(Journal::open(&layout).unwrap().all().len(), 1);
        assert!(!half.exists());
    }

    #[test]
    fn an_entry_that_tells_of_less_is_written_when_the_disk_is_no_longer_full() {
        let (_folder, layout) = layout();
        let journal = Journal::open(&layout).unwrap();
        journal.put(entry("a")).unwrap();
        let fill = || {
            let new = layout.journal().join(format!("{}.new", handle_hash("a")));
            std::os::unix::fs::symlink("/dev/full", new).unwrap();
        };
        let less = Entry {
            targets: BTreeMap::new(),
            ..entry("a")
        };
        fill();
        assert!(journal.put(less.clone()).unwrap_err().needs_room());
        fill();
        journal.lessen(less).unwrap();
        assert_eq!(journal.get("a").unwrap().targets, BTreeMap::new());
        let on_disk = || Journal::open(&layout).unwrap().get("a").unwrap().targets;
        assert_eq!(on_disk(), entry("a").targets);
        fill();
        journal.write_late();
        assert_eq!(on_disk(), entry("a").targets);
        journal.write_late();
        assert_eq!(on_disk(), BTreeMap::new());
    }
}
