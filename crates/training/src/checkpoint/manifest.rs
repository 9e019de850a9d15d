//! What a checkpoint consists of.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::learner::Parameters;

/// The file that makes a folder a checkpoint.
pub(super) const MANIFEST: &str = "checkpoint.json";

/// The content of [`MANIFEST`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Digest of the adapter's layout.
    pub(super) layout: String,
    /// By name.
    pub(super) files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    size: u64,
    sha256: String,
}

impl Manifest {
    /// Of these files as they lie in `folder`.
    pub(super) fn of(folder: &Path, names: &[&str], parameters: &Parameters) -> io::Result<Self> {
        let entry = |name: &&str| Ok(((*name).to_owned(), Entry::of(&folder.join(name))?));
        Ok(Self {
            layout: layout(parameters),
            files: names.iter().map(entry).collect::<io::Result<_>>()?,
        })
    }

    /// What `folder` says it consists of, if that is what lies there.
    pub(super) fn check(folder: &Path) -> Result<Self, String> {
        let text = fs::read(folder.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|e| format!("{MANIFEST}: {e}"))?;
        for (name, entry) in &manifest.files {
            let found = Entry::of(&folder.join(name)).map_err(|e| format!("{name}: {e}"))?;
            if found != *entry {
                return Err(format!("{name} is not what was written"));
            }
        }
        Ok(manifest)
    }
}

impl Entry {
    fn of(path: &Path) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let size = io::copy(&mut File::open(path)?, &mut hash)?;
        Ok(Self {
            size,
            sha256: hex::encode(hash.finalize()),
        })
    }
}

/// SHA-256 of what the numbers of an adapter are, in hexadecimal.
pub(super) fn layout(parameters: &Parameters) -> String {
    let mut hash = Sha256::new();
    for part in &parameters.parts {
        let scaling = part.scaling.to_bits();
        let text = format!(
            "{} {} {scaling} {:?} {:?} {:?}\n",
            part.site, part.rank, part.a, part.b, part.magnitude
        );
        hash.update(text.as_bytes());
    }
    hex::encode(hash.finalize())
}
