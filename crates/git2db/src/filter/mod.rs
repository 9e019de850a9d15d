//! LFS as a filter of libgit2: what `git lfs` does between a worktree and git.
//!
//! On the way in (clean), the content of a file with `filter=lfs` streams into the store and git
//! gets its pointer. On the way out (smudge), the content behind a pointer streams out of the
//! store, its SHA-256 compared as it goes.
//!
//! **An object that the store lacks leaves its pointer in the worktree**, as git-lfs does when it
//! is told to skip downloads. A checkout that stopped there would leave a branch half switched; a
//! pointer counts as unchanged, here as for git-lfs, and is filled in later:
//! `Worktree::missing_objects` names what to download and `Worktree::fill` puts it in place. An
//! object that is there with wrong bytes is an error, and is put aside in the store.
//!
//! The filter is registered with libgit2 once per process, at the place of the filters that git
//! starts. It acts only in repositories that were opened as a handle, and so have a store; files
//! of all others pass as they are.

#![allow(unsafe_code)]

mod ffi;
mod stream;

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CStr, CString, OsStr, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    ptr,
    sync::{Once, PoisonError, RwLock},
};

use libgit2_sys::git_writestream;
use stream::Stream;

use crate::{
    lfs::is_lfs_in_worktree,
    store::{ObjectStore, StoreError},
};

/// Stores by the common folder of their repository, which all its worktrees share.
static STORES: RwLock<Option<HashMap<PathBuf, ObjectStore>>> = RwLock::new(None);

thread_local! {
    /// Why a filter of this thread failed, which libgit2's error cannot carry.
    static FAILED: RefCell<Option<StoreError>> = const { RefCell::new(None) };
}

/// Why bytes did not go through.
enum FilterError {
    /// The store failed.
    Store(StoreError),
    /// Whether the filter is to act cannot be told.
    Attributes(git2::Error),
    /// What stands behind the filter failed, and set libgit2's error.
    Next,
}

impl From<StoreError> for FilterError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Lets large files of the repository with this common folder lie in `store` from now on, in the
/// whole process. For a repository that is opened with several, the last holds.
pub(crate) fn serve(common: &Path, store: &ObjectStore) {
    register();
    let key = canonical(common);
    let mut stores = STORES.write().unwrap_or_else(PoisonError::into_inner);
    stores.get_or_insert_default().insert(key, store.clone());
}

/// The failure of the store that made the last call of libgit2 on this thread fail, if one did.
pub(crate) fn take_failure() -> Option<StoreError> {
    FAILED.take()
}

fn store_of(common: &Path) -> Option<ObjectStore> {
    let stores = STORES.read().unwrap_or_else(PoisonError::into_inner);
    stores.as_ref()?.get(&canonical(common)).cloned()
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The error code for libgit2, whose last error says why.
fn fail(error: FilterError) -> c_int {
    match error {
        FilterError::Store(error) => {
            tell(&error.to_string());
            FAILED.set(Some(error));
        }
        FilterError::Attributes(error) => tell(error.message()),
        FilterError::Next => {}
    }
    -1
}

fn tell(text: &str) {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: libgit2 copies the C string.
    unsafe {
        libgit2_sys::git_error_set_str(libgit2_sys::GIT_ERROR_FILTER as c_int, text.as_ptr())
    };
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        crate::libgit::init();
        let filter = Box::leak(Box::new(ffi::Filter {
            version: ffi::VERSION,
            // None, for which libgit2 would look itself: it reads attributes otherwise than git.
            attributes: ptr::null(),
            initialize: None,
            shutdown: None,
            check: Some(check),
            apply: ptr::null(),
            stream: Some(start),
            cleanup: None,
        }));
        // SAFETY: the filter lives as long as the process, and libgit2 copies the name.
        let code = unsafe {
            ffi::git_filter_register(c"hyprstream-lfs".as_ptr(), filter, ffi::DRIVER_PRIORITY)
        };
        if code < 0 {
            tracing::error!(error = %git2::Error::last_error(code), "libgit2 takes no filter for LFS");
        }
    });
}

fn store_for(source: *const ffi::Source) -> Option<ObjectStore> {
    // SAFETY: libgit2 gives a source that lives during the call, of an open repository.
    let common = unsafe {
        let repo = ffi::git_filter_source_repo(source);
        if repo.is_null() {
            return None;
        }
        text(libgit2_sys::git_repository_commondir(repo))?
    };
    store_of(Path::new(common))
}

/// Whether the file is one of LFS; never outside a worktree, where it would have no attributes.
fn is_lfs(source: *const ffi::Source) -> Result<bool, git2::Error> {
    // SAFETY: as above.
    let found = unsafe {
        let repo = ffi::git_filter_source_repo(source);
        let root = text(libgit2_sys::git_repository_workdir(repo));
        root.zip(text(ffi::git_filter_source_path(source)))
    };
    found.map_or(Ok(false), |(root, path)| {
        is_lfs_in_worktree(Path::new(root), &path.to_string_lossy())
    })
}

/// # Safety
///
/// `text` is null or a C string that lives as long as the result is used.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a OsStr> {
    // SAFETY: see above.
    let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })?;
    Some(OsStr::from_bytes(text.to_bytes()))
}

extern "C" fn check(
    _: *mut ffi::Filter,
    _: *mut *mut c_void,
    source: *const ffi::Source,
    _: *mut *const c_char,
) -> c_int {
    if store_for(source).is_none() {
        return ffi::PASSTHROUGH;
    }
    match is_lfs(source) {
        Ok(true) => 0,
        Ok(false) => ffi::PASSTHROUGH,
        Err(error) => fail(FilterError::Attributes(error)),
    }
}

extern "C" fn start(
    out: *mut *mut git_writestream,
    _: *mut ffi::Filter,
    _: *mut *mut c_void,
    source: *const ffi::Source,
    next: *mut git_writestream,
) -> c_int {
    let Some(store) = store_for(source) else {
        return -1;
    };
    // SAFETY: libgit2 gives a source that lives during the call, and a place for the stream.
    unsafe {
        let to_worktree = ffi::git_filter_source_mode(source) == ffi::TO_WORKTREE;
        *out = Stream::start(store, to_worktree, next);
    }
    0
}
