//! Writing files of a tree into a worktree, whatever was there.
//!
//! git2 offers libgit2's checkout without its baseline, the tree that the files are taken to be
//! of. With the last commit in that place, libgit2 writes nothing where a file follows a folder or
//! a link follows a file and the old one is gone already. With the tree itself, a file that is not
//! there is written, and nothing else is looked at.

#![allow(unsafe_code)]

use std::{
    ffi::{CString, c_char, c_int, c_uint},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr,
};

use git2::{Error, Oid};
use libgit2_sys as raw;

/// Writes the files at `paths` of the tree into the worktree, where none of them is, with their
/// filters, and notes them in its index. Paths are literal.
pub(crate) fn recreate(worktree: &Path, tree: Oid, paths: &[&str]) -> Result<(), Error> {
    let invalid = |_| Error::from_str("a path holds a zero byte");
    let worktree = CString::new(worktree.as_os_str().as_bytes()).map_err(invalid)?;
    let paths = paths
        .iter()
        .map(|path| CString::new(*path))
        .collect::<Result<Vec<_>, _>>()
        .map_err(invalid)?;
    if paths.is_empty() {
        // For libgit2, no paths are all of them.
        return Ok(());
    }
    let mut pointers: Vec<*mut c_char> =
        paths.iter().map(|path| path.as_ptr().cast_mut()).collect();
    let mut repo = Repository(ptr::null_mut());
    let flags = raw::GIT_REPOSITORY_OPEN_NO_SEARCH as c_uint;
    // SAFETY: libgit2 is initialised (the caller has a tree); the string lives during the call.
    check(unsafe {
        raw::git_repository_open_ext(&raw mut repo.0, worktree.as_ptr(), flags, ptr::null())
    })?;
    let mut id = raw::git_oid { id: [0; 20] };
    id.id.copy_from_slice(tree.as_bytes());
    let mut tree = Tree(ptr::null_mut());
    // SAFETY: the repository is open and the name whole.
    check(unsafe { raw::git_tree_lookup(&raw mut tree.0, repo.0, &raw const id) })?;
    // SAFETY: a struct of integers and pointers, for which zero is a value; it is initialised by
    // libgit2 right after.
    let mut options: raw::git_checkout_options = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is of the version that is named.
    check(unsafe {
        raw::git_checkout_init_options(&raw mut options, raw::GIT_CHECKOUT_OPTIONS_VERSION)
    })?;
    options.checkout_strategy = (raw::GIT_CHECKOUT_FORCE
        | raw::GIT_CHECKOUT_RECREATE_MISSING
        | raw::GIT_CHECKOUT_DISABLE_PATHSPEC_MATCH) as c_uint;
    options.baseline = tree.0;
    options.paths = raw::git_strarray {
        strings: pointers.as_mut_ptr(),
        count: pointers.len(),
    };
    // SAFETY: repository, tree and paths live until after the call, which changes none of them.
    check(unsafe { raw::git_checkout_tree(repo.0, tree.0.cast(), &raw const options) })
}

fn check(code: c_int) -> Result<(), Error> {
    if code < 0 {
        return Err(Error::last_error(code));
    }
    Ok(())
}

struct Repository(*mut raw::git_repository);

impl Drop for Repository {
    fn drop(&mut self) {
        // SAFETY: it is open, or null, which libgit2 takes too.
        unsafe { raw::git_repository_free(self.0) }
    }
}

struct Tree(*mut raw::git_tree);

impl Drop for Tree {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { raw::git_tree_free(self.0) }
    }
}
