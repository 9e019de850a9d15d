//! What the volumes of nodes open, see `hyprstream_contract::grants` and
//! `docs/adr/0004-what-a-node-may-read.md`.
//!
//! A grant is a file, `grants/HANDLE.json`, replaced whole. All of them are read at start. One that
//! cannot be read opens nothing and hides no other; the operator, which is told of it, puts it anew.
//!
//! # Guarantees
//! - Every request is judged by what is kept when it comes: nothing is remembered of a word.
//! - A grant that was taken away does not come back after a loss of power.
//! - A word is known by its SHA-256 alone.

mod calls;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use hyprstream_contract::{
    adapters::ModelName,
    grants::{Grant, KeptGrants, Opens, WordHash, is_handle},
};
use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub(crate) use calls::{MAX_BODY_BYTES, list, put, remove};

use crate::{adapters::Lists, layout::sync_folders, names::Repository};

/// Most grants that are kept: four for each of 16,384 Models. One takes about a kilobyte.
const MAX_GRANTS: usize = 65_536;

/// By how many bytes of a hash grants are looked up; all of it is then compared.
const INDEX_BYTES: usize = 8;

/// The grants, in memory and on the disk.
pub(crate) struct Grants {
    root: PathBuf,
    folder: PathBuf,
    /// Where files are made before they get their place.
    tmp: PathBuf,
    kept: RwLock<Kept>,
    /// Held while a file changes, so that memory and disk never tell of different grants.
    writing: Mutex<()>,
    most: usize,
}

#[derive(Default)]
struct Kept {
    /// By handle; `None` where the file cannot be read.
    all: BTreeMap<String, Option<Arc<Granted>>>,
    by_hash: HashMap<[u8; INDEX_BYTES], Vec<Arc<Granted>>>,
}

/// A grant that holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    handle: String,
    revision: String,
    grant: Grant,
    hashes: Vec<[u8; 32]>,
    /// What it opens, if that is one repository.
    repository: Option<Repository>,
}

/// A grant is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// There are too many.
    #[error("{0} grants are kept, and there is room for no more")]
    TooMany(usize),
    /// Two volumes would have one word.
    #[error("a word of volume {handle} is one of volume {other}")]
    Shared {
        /// The volume of the call.
        handle: String,
        /// Who has it.
        other: String,
    },
    /// The disk.
    #[error("keep a grant")]
    Io(#[from] io::Error),
}

/// What a call changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Something.
    Yes,
    /// It was so before.
    No,
}

impl Granted {
    fn new(handle: &str, grant: Grant) -> io::Result<Self> {
        grant.check().map_err(io::Error::other)?;
        let bytes = |hash: &WordHash| -> [u8; 32] {
            let mut bytes = [0; 32];
            // A hash has as many digits.
            let _ = hex::decode_to_slice(hash.as_str(), &mut bytes);
            bytes
        };
        let repository = match &grant.opens {
            Opens::Repository(name) => Some(name.parse().map_err(io::Error::other)?),
            Opens::Adapters(_) => None,
        };
        Ok(Self {
            handle: handle.to_owned(),
            revision: grant.revision(),
            hashes: grant.words.iter().map(bytes).collect(),
            grant,
            repository,
        })
    }

    /// The volume that has it.
    pub(crate) fn handle(&self) -> &str {
        &self.handle
    }

    /// What it opens.
    pub(crate) fn what(&self) -> &Opens {
        &self.grant.opens
    }

    /// Whether it lets one read that repository now.
    pub(crate) fn opens(&self, repository: &Repository, lists: &Lists) -> bool {
        match &self.grant.opens {
            Opens::Repository(_) => self.repository.as_ref() == Some(repository),
            Opens::Adapters(model) => lists.opens(model, repository),
        }
    }

    /// Whether it lets one read the list of that Model's adapters.
    pub(crate) fn opens_list(&self, model: &ModelName) -> bool {
        matches!(&self.grant.opens, Opens::Adapters(own) if own == model)
    }
}

impl Kept {
    fn insert(&mut self, granted: &Arc<Granted>) {
        self.remove(&granted.handle);
        for hash in &granted.hashes {
            let found = self.by_hash.entry(index(hash)).or_default();
            found.push(Arc::clone(granted));
        }
        let handle = granted.handle.clone();
        self.all.insert(handle, Some(Arc::clone(granted)));
    }

    fn remove(&mut self, handle: &str) -> bool {
        let Some(before) = self.all.remove(handle) else {
            return false;
        };
        for hash in before.iter().flat_map(|granted| &granted.hashes) {
            if let Some(found) = self.by_hash.get_mut(&index(hash)) {
                found.retain(|granted| granted.handle != handle);
                if found.is_empty() {
                    self.by_hash.remove(&index(hash));
                }
            }
        }
        true
    }

    /// The grant of that hash. Who guesses learns nothing by the time that it takes: the index is
    /// of hashes, which nobody chooses, and what it finds is compared whole.
    fn find(&self, hash: &[u8; 32]) -> Option<&Arc<Granted>> {
        let mut found = None;
        for granted in self.by_hash.get(&index(hash)).into_iter().flatten() {
            for own in &granted.hashes {
                if bool::from(own.ct_eq(hash)) {
                    found = Some(granted);
                }
            }
        }
        found
    }
}

impl Grants {
    /// Reads what is there below `root`.
    pub(crate) fn open(root: &Path, tmp: PathBuf) -> io::Result<Self> {
        let folder = root.join("grants");
        fs::create_dir_all(&folder)?;
        let mut kept = Kept::default();
        for file in fs::read_dir(&folder)? {
            let path = file?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let handle = name.and_then(|name| name.strip_suffix(".json"));
            let Some(handle) = handle.filter(|handle| is_handle(handle)) else {
                tracing::error!(?path, "a file that is no grant lies among the grants");
                continue;
            };
            match read(handle, &path) {
                Ok(granted) => kept.insert(&Arc::new(granted)),
                Err(error) => {
                    tracing::error!(
                        volume = handle,
                        %error,
                        "a grant cannot be read and opens nothing until the operator puts it anew"
                    );
                    kept.all.insert(handle.to_owned(), None);
                }
            }
        }
        Ok(Self {
            root: root.to_owned(),
            folder,
            tmp,
            kept: RwLock::new(kept),
            writing: Mutex::default(),
            most: MAX_GRANTS,
        })
    }

    /// The grant that a word shows.
    pub(crate) fn find(&self, word: &str) -> Option<Arc<Granted>> {
        let hash: [u8; 32] = Sha256::digest(word.as_bytes()).into();
        self.kept.read().find(&hash).cloned()
    }

    /// Keeps a grant in place of the one before. Blocks.
    fn put(&self, handle: &str, grant: Grant) -> Result<Changed, PutError> {
        let granted = Arc::new(Granted::new(handle, grant)?);
        let _one = self.writing.lock();
        {
            let kept = self.kept.read();
            let before = kept.all.get(handle);
            if let Some(Some(before)) = before
                && before.revision == granted.revision
            {
                return Ok(Changed::No);
            }
            if before.is_none() && kept.all.len() >= self.most {
                return Err(PutError::TooMany(kept.all.len()));
            }
            let mut others = granted.hashes.iter().filter_map(|hash| kept.find(hash));
            if let Some(other) = others.find(|other| other.handle != handle) {
                return Err(PutError::Shared {
                    handle: handle.to_owned(),
                    other: other.handle.clone(),
                });
            }
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.tmp)?;
        serde_json::to_writer(&mut file, &granted.grant).map_err(io::Error::from)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(self.path(handle))
            .map_err(|error| error.error)?;
        sync_folders(&self.folder, &self.root)?;
        self.kept.write().insert(&granted);
        Ok(Changed::Yes)
    }

    /// Forgets a grant; nothing to do if there is none. Returns what it opened. Blocks.
    fn remove(&self, handle: &str) -> io::Result<Option<Opens>> {
        let _one = self.writing.lock();
        let before = self.kept.read().all.get(handle).cloned();
        // In memory first: whatever the disk does, nobody is let in any more.
        self.kept.write().remove(handle);
        match fs::remove_file(self.path(handle)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // The list still names it, so that it is tried again.
                self.kept.write().all.insert(handle.to_owned(), None);
                return Err(error);
            }
            Ok(()) => sync_folders(&self.folder, &self.root)?,
        }
        Ok(before.flatten().map(|granted| granted.what().clone()))
    }

    fn list(&self) -> KeptGrants {
        let kept = self.kept.read();
        let one = |(handle, granted): (&String, &Option<Arc<Granted>>)| {
            let revision = granted.as_ref().map(|granted| granted.revision.clone());
            (handle.clone(), revision)
        };
        KeptGrants {
            grants: kept.all.iter().map(one).collect(),
        }
    }

    fn path(&self, handle: &str) -> PathBuf {
        self.folder.join(format!("{handle}.json"))
    }
}

fn index(hash: &[u8; 32]) -> [u8; INDEX_BYTES] {
    let mut index = [0; INDEX_BYTES];
    index.copy_from_slice(&hash[..INDEX_BYTES]);
    index
}

fn read(handle: &str, path: &Path) -> io::Result<Granted> {
    Granted::new(handle, serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::grants::Word;

    use super::*;

    fn grant(byte: u8, repository: &str) -> Grant {
        Grant {
            words: [Word::from_bytes([byte; 32]).hash()].into(),
            opens: Opens::Repository(repository.to_owned()),
        }
    }

    fn handle_of(grants: &Grants, byte: u8) -> Option<String> {
        let word = Word::from_bytes([byte; 32]);
        let found = grants.find(word.expose());
        found.map(|granted| granted.handle().to_owned())
    }

    fn open(dir: &tempfile::TempDir) -> Grants {
        Grants::open(dir.path(), dir.path().to_owned()).unwrap()
    }

    #[test]
    fn a_word_finds_its_own_grant_until_that_is_taken_away_or_has_another() {
        let dir = tempfile::tempdir().unwrap();
        let grants = open(&dir);
        for (handle, byte) in [("a", 1), ("b", 2)] {
            let put = grants.put(handle, grant(byte, "git/x/m")).unwrap();
            assert_eq!(put, Changed::Yes);
        }
        assert_eq!(grants.put("a", grant(1, "git/x/m")).unwrap(), Changed::No);
        let found = |byte| handle_of(&grants, byte);
        assert_eq!(
            [found(1), found(2), found(3)],
            [Some("a".into()), Some("b".into()), None]
        );

        // Both hold while a word is changed.
        let mut both = grant(1, "git/x/m");
        both.words.extend(grant(3, "git/x/m").words);
        grants.put("a", both).unwrap();
        assert_eq!([found(1), found(3)], [Some("a".into()), Some("a".into())]);
        grants.put("a", grant(3, "git/x/m")).unwrap();
        assert_eq!([found(1), found(3)], [None, Some("a".into())]);

        let again = open(&dir);
        assert_eq!(again.list(), grants.list());
        let opened = grants.remove("a").unwrap();
        assert_eq!(opened, Some(Opens::Repository("git/x/m".into())));
        assert_eq!(grants.remove("a").unwrap(), None);
        assert_eq!(found(3), None);
        assert_eq!(
            open(&dir).list().grants.into_keys().collect::<Vec<_>>(),
            ["b"]
        );
    }

    #[test]
    fn one_that_cannot_be_read_opens_nothing_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let grants = open(&dir);
        for (handle, byte) in [("a", 1), ("b", 2), ("c", 4)] {
            grants.put(handle, grant(byte, "git/x/m")).unwrap();
        }
        std::fs::write(dir.path().join("grants/a.json"), "{\"words\": [").unwrap();
        std::fs::write(
            dir.path().join("grants/c.json"),
            r#"{"words": [], "opens": {"repository": "git/x/m"}}"#,
        )
        .unwrap();
        let grants = open(&dir);
        let kept = grants.list().grants;
        assert!(kept["a"].is_none() && kept["c"].is_none() && kept["b"].is_some());
        assert_eq!(handle_of(&grants, 1), None);
        assert_eq!(handle_of(&grants, 2), Some("b".into()));
        // The operator's next one mends it, and it can be taken away as any other.
        grants.put("a", grant(1, "git/x/m")).unwrap();
        assert_eq!(handle_of(&grants, 1), Some("a".into()));
        grants.remove("c").unwrap();
        assert_eq!(open(&dir).list().grants.len(), 2);
    }

    #[test]
    fn there_is_room_for_so_many_and_no_word_is_had_by_two() {
        let dir = tempfile::tempdir().unwrap();
        let grants = Grants {
            most: 2,
            ..open(&dir)
        };
        grants.put("a", grant(1, "git/x/m")).unwrap();
        let shared = grants.put("b", grant(1, "git/x/n")).unwrap_err();
        assert!(matches!(shared, PutError::Shared { other, .. } if other == "a"));
        grants.put("b", grant(2, "git/x/n")).unwrap();
        let full = grants.put("c", grant(3, "git/x/m")).unwrap_err();
        assert!(matches!(full, PutError::TooMany(2)));
        grants.put("b", grant(3, "git/x/n")).unwrap();
        grants.remove("a").unwrap();
        grants.put("c", grant(4, "git/x/m")).unwrap();
        let dirty = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(dirty, 1, "nothing is left beside the folder");
    }
}
