//! Keys of clients, each of which opens one namespace.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::time::sleep;
use tracing::{info, warn};

use super::FineTuning;

/// Fewest characters of a key.
pub const MIN_KEY_CHARS: usize = 32;
/// Most keys in all.
const MAX_KEYS: usize = 10_000;
/// How often the folder is looked at. The kubelet takes a minute to bring a changed Secret.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The keys of a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The folder or a file of it cannot be read.
    #[error("read the clients' keys from {}", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's name is no namespace.
    #[error("{name:?} is not the name of a namespace, after which a file of keys is called")]
    NotANamespace {
        /// The name.
        name: String,
    },
    /// A key is too short.
    #[error(
        "line {line} of the keys of namespace {namespace}: a key has at least {MIN_KEY_CHARS} visible characters of ASCII"
    )]
    Weak {
        /// The namespace.
        namespace: String,
        /// The line, from 1.
        line: usize,
    },
    /// A key stands in two places.
    #[error("the namespaces {first} and {second} have a key in common: a key opens one namespace")]
    Common {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Too many.
    #[error("there are more than {MAX_KEYS} keys")]
    TooMany,
}

type KeyDigest = [u8; 32];

/// Digests of keys and the namespaces that they open.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientKeys {
    namespaces: Vec<Arc<str>>,
    /// With the index of the namespace.
    keys: Vec<(KeyDigest, u32)>,
}

impl std::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientKeys")
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

impl ClientKeys {
    /// The keys in texts by namespace: one a line; empty lines say nothing.
    ///
    /// # Errors
    /// A key is too short or opens two namespaces, or a name is no namespace.
    pub fn new(texts: &BTreeMap<String, String>) -> Result<Self, KeysError> {
        let mut namespaces: Vec<Arc<str>> = Vec::new();
        let mut keys = BTreeMap::<KeyDigest, u32>::new();
        for (index, (namespace, text)) in (0_u32..).zip(texts) {
            if !is_namespace(namespace) {
                return Err(KeysError::NotANamespace {
                    name: namespace.clone(),
                });
            }
            namespaces.push(namespace.as_str().into());
            for (line, key) in (1..).zip(text.lines().map(str::trim)) {
                if key.is_empty() {
                    continue;
                }
                if key.len() < MIN_KEY_CHARS || !key.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(KeysError::Weak {
                        namespace: namespace.clone(),
                        line,
                    });
                }
                let before = keys.insert(Sha256::digest(key).into(), index);
                if let Some(other) = before.filter(|other| *other != index) {
                    return Err(KeysError::Common {
                        first: namespaces[other as usize].to_string(),
                        second: namespace.clone(),
                    });
                }
            }
        }
        if keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        Ok(Self {
            namespaces,
            keys: keys.into_iter().collect(),
        })
    }

    /// The namespace that a key opens. How long that takes says nothing of the keys.
    pub fn namespace(&self, key: &str) -> Option<Arc<str>> {
        let digest: KeyDigest = Sha256::digest(key).into();
        let (mut found, mut index) = (Choice::from(0), 0_u32);
        for (known, of) in &self.keys {
            let same = known.ct_eq(&digest);
            index.conditional_assign(of, same);
            found |= same;
        }
        bool::from(found).then(|| Arc::clone(&self.namespaces[index as usize]))
    }

    /// The namespaces that have keys, or had a file for them.
    pub fn namespaces(&self) -> &[Arc<str>] {
        &self.namespaces
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The keys in a folder, as a Secret is mounted: a file for each namespace, called like it.
    ///
    /// # Errors
    /// It cannot be read, or holds what [`Self::new`] refuses.
    pub async fn read(folder: &Path) -> Result<Self, KeysError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| KeysError::Read { path, source }
        };
        let mut texts = BTreeMap::new();
        let mut entries = tokio::fs::read_dir(folder).await.map_err(failed(folder))?;
        while let Some(entry) = entries.next_entry().await.map_err(failed(folder))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            // The kubelet's own, by which it changes all files at once.
            if name.starts_with("..") {
                continue;
            }
            let path = entry.path();
            let text = tokio::fs::read_to_string(&path)
                .await
                .map_err(failed(&path))?;
            texts.insert(name, text);
        }
        Self::new(&texts)
    }
}

/// Gives the API its keys anew whenever the folder has changed. One that cannot be used is
/// reported, and the keys stay what they were.
pub async fn follow(folder: PathBuf, api: Arc<FineTuning>) {
    loop {
        sleep(LOOK_EVERY).await;
        match ClientKeys::read(&folder).await {
            Ok(keys) if keys == *api.keys() => {}
            Ok(keys) => {
                info!(keys = keys.len(), "the clients' keys have changed");
                api.set_keys(keys);
            }
            Err(error) => warn!(
                error = &error as &dyn std::error::Error,
                "the clients' keys stay what they were"
            ),
        }
    }
}

fn is_namespace(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(texts: &[(&str, &str)]) -> Result<ClientKeys, KeysError> {
        let owned = texts
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        ClientKeys::new(&owned.collect())
    }

    #[test]
    fn a_key_opens_its_namespace_and_no_other() {
        let (a, b) = ("a".repeat(32), "b".repeat(40));
        let both = format!("{a}\n\n  {b}  \n");
        let known = keys(&[("team-a", &both), ("team-b", &"c".repeat(32))]).unwrap();
        assert_eq!(known.len(), 3);
        for (key, namespace) in [
            (a.as_str(), Some("team-a")),
            (&b, Some("team-a")),
            (&"c".repeat(32), Some("team-b")),
            (&"c".repeat(33), None),
            ("", None),
        ] {
            assert_eq!(known.namespace(key).as_deref(), namespace, "{key}");
        }
        assert_eq!(ClientKeys::default().namespace(&a), None);
    }

    #[test]
    fn what_is_no_key_or_opens_two_namespaces_is_refused() {
        let good = "k".repeat(32);
        let second = keys(&[("a", &format!("{good}\nshort"))]);
        assert!(matches!(second, Err(KeysError::Weak { line: 2, .. })));
        let twice = keys(&[("a", &good), ("b", &good)]);
        assert!(matches!(twice, Err(KeysError::Common { .. })));
        let name = keys(&[("A.txt", &good)]);
        assert!(matches!(name, Err(KeysError::NotANamespace { .. })));
        assert!(!format!("{:?}", keys(&[("a", &good)]).unwrap()).contains("kkk"));
    }

    #[tokio::test]
    async fn a_folder_is_read_as_a_secret_is_mounted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("..data")).unwrap();
        std::fs::write(folder.path().join("team-a"), "k".repeat(32)).unwrap();
        let known = ClientKeys::read(folder.path()).await.unwrap();
        assert_eq!(known.namespace(&"k".repeat(32)).as_deref(), Some("team-a"));
        let nowhere = ClientKeys::read(&folder.path().join("x")).await;
        assert!(matches!(nowhere, Err(KeysError::Read { .. })));
    }
}
