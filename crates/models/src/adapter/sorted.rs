//! A file of tensors, read and sorted by what each is called.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use memmap2::{Mmap, MmapMut};

use super::{
    AdapterError, file_error,
    key::{Key, Part},
};
use crate::{MappedFile, StoredTensor};

/// What a pointer of Git LFS begins with.
const POINTER: &[u8] = b"version https://git-lfs";

/// The tensors of one module.
pub(super) type Tensors = BTreeMap<Part, StoredTensor>;

/// The tensors of a file, by what they are.
#[derive(Default)]
pub(super) struct Sorted {
    /// Of low rank, by the name of their module.
    pub(super) modules: BTreeMap<String, Tensors>,
    /// Copies of tensors of the model, with their module; `true` for biases.
    pub(super) copies: Vec<(StoredTensor, String, bool)>,
    /// Names of tensors that are none of these, and of their modules.
    pub(super) left_over: Vec<(String, String)>,
}

impl Sorted {
    /// Sorts the tensors of the file at `path`.
    pub(super) fn of(path: &Path, file: &Arc<MappedFile>) -> Result<Self, AdapterError> {
        let mut sorted = Self::default();
        let mut adapters = BTreeSet::new();
        for name in file.tensor_names() {
            let tensor = file
                .tensor(&name)
                .ok_or_else(|| damaged(path, format!("the tensor {name:?} is not in it")))?;
            if tensor.is_empty() {
                return Err(AdapterError::EmptyTensor {
                    path: path.to_owned(),
                    tensor: name,
                });
            }
            let Key {
                module,
                part,
                adapter,
            } = Key::parse(&name);
            let module = module.to_owned();
            adapters.extend(adapter.map(str::to_owned));
            match part {
                Part::Base { bias } => sorted.copies.push((tensor, module, bias)),
                Part::ModulesToSave => return Err(refused_tensor(path, "modules_to_save", &name)),
                Part::LoraBias => return Err(refused_tensor(path, "lora_bias", &name)),
                Part::Torchtune => {
                    return Err(AdapterError::NotAnAdapter {
                        path: path.to_owned(),
                        why: format!(
                            "the tensor {name:?} is called as torchtune calls it: have torchtune \
                             export the adapter for PEFT"
                        ),
                    });
                }
                Part::Other => sorted.left_over.push((name, module)),
                part => {
                    let before = sorted
                        .modules
                        .entry(module.clone())
                        .or_default()
                        .insert(part, tensor);
                    if before.is_some() {
                        let why = format!("it has several tensors {part:?} for {module:?}");
                        return Err(damaged(path, why));
                    }
                }
            }
        }
        if adapters.len() > 1 {
            let why = format!("it holds several adapters: {adapters:?}");
            return Err(damaged(path, why));
        }
        Ok(sorted)
    }
}

/// Reads the whole file into memory of its own, whose header is then checked.
pub(super) fn open(path: &Path, limit: u64) -> Result<MappedFile, AdapterError> {
    let read_error = |source| AdapterError::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    // A pipe would be waited for, until somebody writes to it.
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => AdapterError::MissingFile {
            path: path.to_owned(),
        },
        _ => read_error(source),
    })?;
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(damaged(path, "it is not a regular file".to_owned()));
    }
    let bytes = metadata.len();
    if bytes > limit {
        return Err(AdapterError::TooLarge {
            path: path.to_owned(),
            bytes,
            limit,
        });
    }
    if bytes == 0 {
        return Err(damaged(path, "it is empty".to_owned()));
    }
    let mut memory = MmapMut::map_anon(bytes as usize).map_err(read_error)?;
    file.read_exact(&mut memory).map_err(read_error)?;
    let memory: Mmap = memory.make_read_only().map_err(read_error)?;
    if memory.starts_with(POINTER) {
        return Err(AdapterError::NotFetched {
            path: path.to_owned(),
        });
    }
    MappedFile::in_memory(path, memory).map_err(|error| file_error(path, error))
}

/// Refuses a file that is not what it should be.
pub(super) fn damaged(path: &Path, why: String) -> AdapterError {
    AdapterError::Damaged {
        path: path.to_owned(),
        why,
    }
}

/// Refuses a tensor that only an option which is not served explains.
pub(super) fn refused_tensor(path: &Path, option: &str, name: &str) -> AdapterError {
    AdapterError::RefusedOption {
        path: path.to_owned(),
        option: option.to_owned(),
        value: format!("used by {name:?}"),
        why: "this is not served".to_owned(),
    }
}
