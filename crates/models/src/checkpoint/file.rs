//! One mapped safetensors file, or a copy of one in memory. <https://github.com/huggingface/safetensors#format>
#![allow(unsafe_code)]

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use super::{StoredTensor, invalid, open_error};
use crate::{LoadError, StoredType};

/// Longest header in bytes. That of a model of 1,000 layers has about 1 MB.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most tensors in a file.
const MAX_TENSORS: usize = 1 << 17;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// A mapped file whose header has been checked.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors begin.
    data: usize,
    /// The memory is that of the file, and no copy of it.
    is_mapped: bool,
}

/// Where a tensor lies and what it is.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its type.
    pub(super) dtype: StoredType,
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

impl MappedFile {
    /// Maps a file and checks its header: lengths, types, and that shapes and offsets cover the
    /// file exactly.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = fs::File::open(path).map_err(|source| open_error(path, source))?;
        let read_error = |source| LoadError::Read {
            path: path.to_owned(),
            source,
        };
        if !file.metadata().map_err(read_error)?.is_file() {
            return Err(invalid(path, "it is not a regular file".to_owned()));
        }
        // SAFETY: the map is read-only, and the file belongs to an immutable checkout: nothing
        // writes to it or truncates it while the model is loaded.
        let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
        if map.starts_with(b"version https://git-lfs") {
            return Err(invalid(
                path,
                "it is a Git LFS pointer: the weights themselves were not fetched".to_owned(),
            ));
        }
        Self::parse(path, map, true)
    }

    /// As [`Self::open`], from a copy of the file in memory of its own. For files that others may
    /// write to or truncate.
    pub(crate) fn in_memory(path: &Path, copy: Mmap) -> Result<Self, LoadError> {
        Self::parse(path, copy, false)
    }

    fn parse(path: &Path, map: Mmap, is_mapped: bool) -> Result<Self, LoadError> {
        let (data, metadata) = header(&map).map_err(|why| invalid(path, why))?;
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            data,
            is_mapped,
        })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file into the page cache, so that the first request does not wait for it, and a
    /// disk that fails is found now and not by a signal later.
    pub fn read_ahead(&self) -> Result<(), LoadError> {
        match self.map.advise(Advice::PopulateRead) {
            // Older kernels do not know it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done.map_err(|source| LoadError::Read {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// All bytes of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the kernel take back the memory of a range.
    pub(super) fn release(&self, range: &Range<usize>) {
        if !self.is_mapped {
            return;
        }
        // SAFETY: the map is shared with the file and read-only, so that pages which are dropped
        // come back with the same bytes.
        let done = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // It is advice: a kernel that does not take it keeps the pages.
        drop(done);
    }

    /// Names of the tensors, ordered by their place in the file.
    pub(crate) fn tensor_names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Bytes of all its tensors.
    pub(super) fn tensor_bytes(&self) -> u64 {
        (self.map.len() - self.data) as u64
    }

    /// The tensor of this name. `None` if there is none.
    pub(crate) fn tensor(self: &Arc<Self>, name: &str) -> Option<StoredTensor> {
        let Entry {
            dtype,
            shape,
            range,
        } = self.entry(name)?;
        Some(StoredTensor {
            name: name.into(),
            file: Arc::clone(self),
            range,
            dtype,
            shape,
        })
    }

    /// Where the tensor of this name lies. `None` if there is none.
    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        let range = self.data + start..self.data + end;
        (range.end <= self.map.len()).then_some(Entry {
            dtype: stored_type(info.dtype)?,
            shape: info.shape.clone(),
            range,
        })
    }
}

/// Checks the header and returns where the tensors begin, and what they are.
fn header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err("it is shorter than a safetensors header".to_owned());
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES || length > bytes.len() as u64 - 8 {
        return Err(format!("its header claims to have {length} bytes"));
    }
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let tensors = metadata.tensors();
    if tensors.is_empty() || tensors.len() > MAX_TENSORS {
        return Err(format!("it holds {} tensors", tensors.len()));
    }
    for (name, info) in tensors {
        if stored_type(info.dtype).is_none() {
            return Err(format!("the tensor {name:?} has the type {:?}", info.dtype));
        }
        if info.shape.len() > MAX_DIMENSIONS {
            return Err(format!(
                "the tensor {name:?} has {} dimensions",
                info.shape.len()
            ));
        }
    }
    Ok((8 + length, metadata))
}

/// The types that weights may have.
fn stored_type(dtype: Dtype) -> Option<StoredType> {
    match dtype {
        Dtype::F32 => Some(StoredType::F32),
        Dtype::F16 => Some(StoredType::F16),
        Dtype::BF16 => Some(StoredType::BF16),
        _ => None,
    }
}
