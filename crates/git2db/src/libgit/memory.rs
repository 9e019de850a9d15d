//! A limit for what libgit2 takes into memory at once.
//!
//! It unpacks an object, and what a delta is made against, as a whole: a pack of a few megabytes
//! can ask for 10 GB. libgit2 has no option against it, but a way to bring an allocator.

#![allow(unsafe_code)]

use std::{
    ffi::{c_char, c_int, c_void},
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

/// The largest piece of memory that libgit2 gets, in bytes.
static LIMIT: AtomicUsize = AtomicUsize::new(DEFAULT + SLACK);
const DEFAULT: usize = 64 << 20;
/// What an object's own memory needs beside its bytes.
const SLACK: usize = 1 << 20;

/// `git_allocator` of libgit2 1.9 (`git2/sys/alloc.h`).
#[repr(C)]
struct Allocator {
    malloc: extern "C" fn(usize, *const c_char, c_int) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, usize, *const c_char, c_int) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

mod system {
    use std::ffi::c_void;

    unsafe extern "C" {
        pub(super) safe fn malloc(size: usize) -> *mut c_void;
        pub(super) fn realloc(pointer: *mut c_void, size: usize) -> *mut c_void;
        pub(super) fn free(pointer: *mut c_void);
    }
}

extern "C" fn limited_malloc(size: usize, _: *const c_char, _: c_int) -> *mut c_void {
    if size > LIMIT.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    // libgit2 takes null for "no memory", which malloc(0) may give.
    system::malloc(size.max(1))
}

unsafe extern "C" fn limited_realloc(
    pointer: *mut c_void,
    size: usize,
    _: *const c_char,
    _: c_int,
) -> *mut c_void {
    if size > LIMIT.load(Ordering::Relaxed) {
        return ptr::null_mut();
    }
    // SAFETY: libgit2 gives what one of these functions returned, or null.
    unsafe { system::realloc(pointer, size.max(1)) }
}

unsafe extern "C" fn free(pointer: *mut c_void) {
    // SAFETY: as above.
    unsafe { system::free(pointer) }
}

/// Sets the limit. Called before anything of ours uses libgit2.
pub(super) fn limit() {
    static ALLOCATOR: Allocator = Allocator {
        malloc: limited_malloc,
        realloc: limited_realloc,
        free,
    };
    // SAFETY: libgit2 copies the functions, which keep its contract. What it allocated before, in
    // its own initialisation, came from the same malloc, so that it may be freed by ours.
    let code = unsafe {
        libgit2_sys::git_libgit2_opts(
            libgit2_sys::GIT_OPT_SET_ALLOCATOR as _,
            ptr::from_ref(&ALLOCATOR),
        )
    };
    if code < 0 {
        tracing::warn!("libgit2 takes no limit for its memory");
    }
}

/// Lets objects of this size be unpacked from now on.
pub(crate) fn allow(bytes: u64) {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    LIMIT.fetch_max(bytes.saturating_add(SLACK), Ordering::Relaxed);
}

/// Bytes of the largest object that can be unpacked.
pub(crate) fn largest() -> usize {
    LIMIT.load(Ordering::Relaxed) - SLACK
}
