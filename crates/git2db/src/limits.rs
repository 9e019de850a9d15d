//! How much of a repository is accepted.

use crate::Pace;

/// How much of a repository is accepted. What is more is refused by name, before it takes the
/// memory or the disk of others.
///
/// One process holds about two times [`max_blob_bytes`](Self::max_blob_bytes) and 100 MiB for each
/// fetch at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest file that is not an LFS object, in bytes. For the whole process, the largest such
    /// limit that was ever used is also the largest object that git can unpack.
    pub max_blob_bytes: u64,
    /// Most files and folders.
    pub max_entries: usize,
    /// Longest path of a file, in bytes. Linux has 4096 for all of it, with what lies above.
    pub max_path_bytes: usize,
    /// Longest sum of all paths and targets of links, in bytes.
    pub max_paths_bytes: usize,
    /// Largest sum of all `.gitattributes`, in bytes. git's own limit for one is 100 MB.
    pub max_attributes_bytes: usize,
    /// Largest pack that a fetch takes, in bytes as they come, so compressed.
    pub max_pack_bytes: u64,
    /// Most objects in such a pack.
    pub max_pack_objects: usize,
    /// Bytes that a fetch leaves free on the disk.
    pub min_free_bytes: u64,
    /// How slow the other side of a fetch may be.
    pub pace: Pace,
}

impl Default for Limits {
    /// 64 MiB a file outside LFS, 100,000 files and folders, 3072 bytes a path and 32 MiB all
    /// paths, 1 MiB of attributes, packs of 4 GiB and 500,000 objects, 1 MiB free,
    /// [`Pace::default`].
    fn default() -> Self {
        Self {
            max_blob_bytes: 64 << 20,
            max_entries: 100_000,
            max_path_bytes: 3072,
            max_paths_bytes: 32 << 20,
            max_attributes_bytes: 1 << 20,
            max_pack_bytes: 4 << 30,
            max_pack_objects: 500_000,
            min_free_bytes: 1 << 20,
            pace: Pace::default(),
        }
    }
}
