//! One mapped safetensors file. <https://github.com/huggingface/safetensors#format>
#![allow(unsafe_code)]

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::{Advice, Mmap};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use tch::{Kind, Tensor};

use super::{invalid, open_error};
use crate::LoadError;

/// Longest header in bytes. That of a model of 1,000 layers has about 1 MB.
const MAX_HEADER_BYTES: u64 = 32 << 20;
/// Most tensors in a file.
const MAX_TENSORS: usize = 1 << 17;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// A mapped file whose header has been checked.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors begin.
    data: usize,
}

/// Where a tensor lies and what it is.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its type.
    pub(super) kind: Kind,
    /// Its shape.
    pub(super) shape: Vec<i64>,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
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
        let (data, metadata) = header(&map).map_err(|why| invalid(path, why))?;
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            data,
        })
    }

    /// Where the file lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file into the page cache, so that the first request does not wait for it, and a
    /// disk that fails is found now and not by a signal later.
    pub(crate) fn read_ahead(&self) -> Result<(), LoadError> {
        match self.map.advise(Advice::PopulateRead) {
            // Older kernels do not know it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            done => done.map_err(|source| LoadError::Read {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Names of the tensors, ordered by their place in the file.
    pub(super) fn tensor_names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Bytes of all its tensors.
    pub(super) fn tensor_bytes(&self) -> u64 {
        (self.map.len() - self.data) as u64
    }

    /// Addresses of the mapped file.
    #[cfg(test)]
    pub(super) fn address_range(&self) -> Range<usize> {
        let range = self.map.as_ptr_range();
        range.start.addr()..range.end.addr()
    }

    /// Where the tensor of this name lies. `None` if there is none.
    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        Some(Entry {
            kind: kind(info.dtype)?,
            shape: info.shape.iter().map(|&d| d as i64).collect(),
            bytes: self.data + start..self.data + end,
        })
    }

    /// The tensor at `entry`. It points into the map, unless it is not aligned there.
    pub(super) fn tensor(&self, entry: &Entry) -> Result<Tensor, LoadError> {
        let bytes = self.map.get(entry.bytes.clone()).ok_or_else(|| {
            invalid(
                &self.path,
                format!("it ends before byte {}", entry.bytes.end),
            )
        })?;
        let doing = LoadError::torch("viewing the weights");
        if bytes
            .as_ptr()
            .addr()
            .is_multiple_of(entry.kind.elt_size_in_bytes())
        {
            // SAFETY: the bytes are those of a tensor of this shape and type, as the header's
            // check has shown; they are aligned; they stay mapped as long as this file, which
            // outlives the tensor by the invariant of `Checkpoint`; and no weight is written to.
            unsafe {
                Tensor::f_from_blob(
                    bytes.as_ptr(),
                    &entry.shape,
                    &[],
                    entry.kind,
                    tch::Device::Cpu,
                )
            }
            .map_err(doing)
        } else {
            Tensor::f_from_data_size(bytes, &entry.shape, entry.kind).map_err(doing)
        }
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
        if kind(info.dtype).is_none() {
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
fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}
