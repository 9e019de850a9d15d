//! The weights of a Hugging Face folder, mapped into memory.

mod file;
mod tensor;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

pub use file::MappedFile;
pub use tensor::StoredTensor;

use crate::{LoadError, StoredType};

/// Largest JSON file that is read, in bytes: an index names every tensor of a model.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// The only file of weights, or the one that names the others.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Pieces of a tensor that [`Checkpoint::fingerprint`] reads, at even distances, and bytes of each.
const PIECES: usize = 16;
const PIECE_BYTES: usize = 4 << 10;

/// Mapped files of weights and where each tensor lies in them.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Arc<MappedFile>>,
    /// Which file holds a tensor. Emptied as tensors are taken.
    tensors: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Maps and checks the weights in `dir`: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names. No weights are read.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let index = dir.join(INDEX);
        let (names, expected) = if index.exists() {
            let map = read_index(&index)?;
            (map.values().cloned().collect::<BTreeSet<_>>(), Some(map))
        } else {
            (BTreeSet::from([SINGLE.to_owned()]), None)
        };
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for name in names {
            let file = MappedFile::open(&dir.join(&name))?;
            for tensor in file.tensor_names() {
                let wanted = expected
                    .as_ref()
                    .is_none_or(|m| m.get(&tensor) == Some(&name));
                if !wanted {
                    return Err(invalid(
                        file.path(),
                        format!("it holds {tensor:?}, which {INDEX} does not say"),
                    ));
                }
                tensors.insert(tensor, files.len());
            }
            files.push(Arc::new(file));
        }
        if let Some(missing) = expected
            .iter()
            .flatten()
            .find(|(t, _)| !tensors.contains_key(*t))
        {
            return Err(invalid(
                &dir.join(missing.1),
                format!("it lacks {:?}, which {INDEX} says is in it", missing.0),
            ));
        }
        Ok(Self { files, tensors })
    }

    /// The type of the weights on disk: that of the largest tensor.
    pub fn stored_type(&self) -> Option<StoredType> {
        let each = self
            .tensors
            .iter()
            .filter_map(|(name, file)| self.files[*file].entry(name));
        each.max_by_key(|entry| entry.range.len())
            .map(|entry| entry.dtype)
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.tensor_bytes()).sum()
    }

    /// What tells these weights from others, without reading all of them: SHA-256, in hexadecimal, of
    /// the name, shape and size of every tensor and of [`PIECES`] pieces of it, the first and the last
    /// bytes among them. A change that leaves every piece of every tensor as it was, as one of a few
    /// rows may, is not seen. In which files tensors lie changes nothing.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (name, file) in &self.tensors {
            let file = &self.files[*file];
            let Some(entry) = file.entry(name) else {
                continue;
            };
            let bytes = &file.bytes()[entry.range];
            hash.update(format!("{name} {:?} {}\n", entry.shape, bytes.len()));
            if bytes.len() <= PIECES * PIECE_BYTES {
                hash.update(bytes);
                continue;
            }
            let last = bytes.len() - PIECE_BYTES;
            for piece in 0..PIECES {
                let from = (last as u128 * piece as u128 / (PIECES as u128 - 1)) as usize;
                hash.update(&bytes[from..from + PIECE_BYTES]);
            }
        }
        hex::encode(hash.finalize())
    }

    /// Takes the tensor of this name, which must have this shape.
    ///
    /// # Errors
    /// [`LoadError::InvalidWeights`] with its name when it is missing or of another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<StoredTensor, LoadError> {
        let missing = |path: &Path| {
            invalid(
                path,
                format!("the tensor {name:?}, which config.json calls for, is missing"),
            )
        };
        let Some(index) = self.tensors.remove(name) else {
            let first = self.files.first();
            return Err(missing(first.map_or(Path::new(SINGLE), |f| f.path())));
        };
        let file = &self.files[index];
        let entry = file.entry(name).ok_or_else(|| missing(file.path()))?;
        if entry.shape != shape {
            return Err(invalid(
                file.path(),
                format!(
                    "the tensor {name:?} has the shape {:?}, but config.json says {shape:?}",
                    entry.shape
                ),
            ));
        }
        Ok(StoredTensor {
            name: name.into(),
            file: Arc::clone(file),
            range: entry.range,
            dtype: entry.dtype,
            shape: entry.shape,
        })
    }

    /// Forgets a tensor that the model has no use for, if it is there.
    pub fn discard(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The mapped files, once all of the model has been taken. The tensors keep those that they
    /// lie in mapped.
    ///
    /// # Errors
    /// When tensors are left over: the model would not be what its files say.
    pub fn finish(self) -> Result<Vec<Arc<MappedFile>>, LoadError> {
        match self.tensors.iter().next() {
            None => Ok(self.files),
            Some((name, file)) => Err(invalid(
                self.files[*file].path(),
                format!(
                    "{} tensors are not part of this architecture, {name:?} among them",
                    self.tensors.len()
                ),
            )),
        }
    }
}

/// Which file holds each tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = read_json(path)?;
    let index: Index =
        serde_json::from_str(&text).map_err(|error| invalid(path, error.to_string()))?;
    for name in index.weight_map.values() {
        // A path would lead out of the model's folder.
        if name.contains('/') || !name.ends_with(".safetensors") {
            return Err(invalid(
                path,
                format!("{name:?} is not the name of a file of weights"),
            ));
        }
    }
    if index.weight_map.is_empty() {
        return Err(invalid(path, "it names no tensors".to_owned()));
    }
    Ok(index.weight_map)
}

/// The text of a JSON file of the model.
pub(crate) fn read_json(path: &Path) -> Result<String, LoadError> {
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|source| open_error(path, source))?;
    match file.take(MAX_JSON_BYTES).read_to_string(&mut text) {
        Ok(count) if count as u64 == MAX_JSON_BYTES => {
            Err(invalid(path, "it is larger than 64 MiB".to_owned()))
        }
        Ok(_) => Ok(text),
        Err(source) => Err(LoadError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn open_error(path: &Path, source: std::io::Error) -> LoadError {
    if source.kind() == std::io::ErrorKind::NotFound {
        LoadError::MissingFile {
            path: path.to_owned(),
        }
    } else {
        LoadError::Read {
            path: path.to_owned(),
            source,
        }
    }
}

fn invalid(path: &Path, why: String) -> LoadError {
    LoadError::InvalidWeights {
        path: PathBuf::from(path),
        why,
    }
}
