//! The list of repositories, a file that is replaced as a whole.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ManagerError, Name};
use crate::{Reference, RemoteUrl, durable};

/// The list's name in the root.
const FILE: &str = "repositories.json";
/// The only form of the list so far. A later one is refused rather than read wrongly.
const VERSION: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    version: u32,
    repositories: Vec<Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) id: String,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_url",
        deserialize_with = "read_url"
    )]
    pub(super) url: Option<RemoteUrl>,
    pub(super) reference: Reference,
    /// Where it lies, if not in the registry's own folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) at: Option<PathBuf>,
    /// Seconds since 1970.
    pub(super) created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_fetched: Option<u64>,
    /// It is being moved into the registry's folder, and listed once it is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) moving: bool,
}

impl List {
    /// The list of the registry at `root`; empty if there is none yet.
    pub(super) fn read(root: &Path) -> Result<Self, ManagerError> {
        let path = root.join(FILE);
        let broken = |why: String| ManagerError::List {
            path: path.clone(),
            why,
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Invariant: nothing comes into the folder before it is on the list. What lies
                // there without one would be swept as nobody's.
                let own = root.join("repositories");
                let mut inside =
                    fs::read_dir(&own).map_err(|e| ManagerError::io("read", &own, e))?;
                // The list may have been written since we looked for it.
                if inside.next().is_some() && !path.exists() {
                    return Err(broken(
                        "it is missing, and there are repositories: bring it back, or move them \
                         out and add them again"
                            .to_owned(),
                    ));
                }
                match fs::read(&path) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Ok(Self {
                            version: VERSION,
                            repositories: Vec::new(),
                        });
                    }
                    Err(error) => return Err(ManagerError::io("read", &path, error)),
                }
            }
            Err(error) => return Err(ManagerError::io("read", &path, error)),
        };
        let list: Self = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
        if list.version != VERSION {
            return Err(broken(format!(
                "its version is {}, this program knows {VERSION}",
                list.version
            )));
        }
        Ok(list)
    }

    /// Replaces the list: written aside, synced, renamed. The caller holds the lock.
    pub(super) fn write(&self, root: &Path) -> Result<(), ManagerError> {
        let path = root.join(FILE);
        let aside = root.join("repositories.json.new");
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| ManagerError::List {
            path: path.clone(),
            why: e.to_string(),
        })?;
        text.push(b'\n');
        File::create(&aside)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&aside, &path))
            .and_then(|()| durable::sync_dir(root))
            .map_err(|e| ManagerError::io("write", &path, e))
    }

    /// Those that are complete.
    pub(super) fn ready(&self) -> impl Iterator<Item = &Entry> {
        self.repositories.iter().filter(|entry| !entry.moving)
    }

    pub(super) fn all(&self) -> &[Entry] {
        &self.repositories
    }

    pub(super) fn all_mut(&mut self) -> &mut Vec<Entry> {
        &mut self.repositories
    }

    pub(super) fn entry(&mut self, name: &Name) -> Result<&mut Entry, ManagerError> {
        self.repositories
            .iter_mut()
            .find(|entry| entry.name == *name)
            .ok_or_else(|| ManagerError::NotTracked { name: name.clone() })
    }

    /// Says `NameTaken` if it is.
    pub(super) fn vacant(&self, name: &Name) -> Result<(), ManagerError> {
        if self.repositories.iter().any(|entry| entry.name == *name) {
            Err(ManagerError::NameTaken { name: name.clone() })
        } else {
            Ok(())
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

pub(super) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[allow(clippy::ref_option)]
fn write_url<S: Serializer>(url: &Option<RemoteUrl>, to: S) -> Result<S::Ok, S::Error> {
    url.as_ref().map(RemoteUrl::as_str).serialize(to)
}

/// The list is ours: unlike what users give, it may name paths on this machine.
fn read_url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<RemoteUrl>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    RemoteUrl::parse_stored(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}
