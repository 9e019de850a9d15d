//! What libgit2 1.9 declares in `git2/sys/filter.h`, and libgit2-sys does not.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};

use libgit2_sys::{git_repository, git_writestream};

/// `git_filter_source`: the file that is filtered, of which only libgit2 knows the fields.
#[repr(C)]
pub(super) struct Source {
    _opaque: [u8; 0],
}

/// Where the bytes go: the values of `git_filter_mode_t`.
pub(super) const TO_WORKTREE: c_int = 0;
/// The version of [`Filter`].
pub(super) const VERSION: c_uint = 1;
/// `GIT_FILTER_DRIVER_PRIORITY`: after line endings on the way to the object database, before
/// them on the way out, as for a filter that git starts.
pub(super) const DRIVER_PRIORITY: c_int = 200;
/// Returned by `check` where a file is none of the filter's.
pub(super) const PASSTHROUGH: c_int = -30;

/// `git_filter`.
#[repr(C)]
pub(super) struct Filter {
    pub(super) version: c_uint,
    pub(super) attributes: *const c_char,
    pub(super) initialize: Option<extern "C" fn(*mut Filter) -> c_int>,
    pub(super) shutdown: Option<extern "C" fn(*mut Filter)>,
    pub(super) check: Option<
        extern "C" fn(*mut Filter, *mut *mut c_void, *const Source, *mut *const c_char) -> c_int,
    >,
    pub(super) apply: *const c_void,
    pub(super) stream: Option<
        extern "C" fn(
            *mut *mut git_writestream,
            *mut Filter,
            *mut *mut c_void,
            *const Source,
            *mut git_writestream,
        ) -> c_int,
    >,
    pub(super) cleanup: Option<extern "C" fn(*mut Filter, *mut c_void)>,
}

unsafe extern "C" {
    pub(super) fn git_filter_register(
        name: *const c_char,
        filter: *mut Filter,
        priority: c_int,
    ) -> c_int;
    pub(super) fn git_filter_source_repo(source: *const Source) -> *mut git_repository;
    pub(super) fn git_filter_source_path(source: *const Source) -> *const c_char;
    pub(super) fn git_filter_source_mode(source: *const Source) -> c_int;
}
