//! Zeroed memory for weights, cache and activations.
#![allow(unsafe_code)]

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

/// Anonymous memory, page-aligned and zeroed. Pages are taken as they are written.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a buffer owns its memory like a `Vec<T>`.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}

/// Types for which zeroed memory is a value, and which need no drop.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for f32 {}

/// From this size on, huge pages are asked for: streaming through gigabytes in pages of 4 KiB
/// spends its time in the TLB.
const HUGE_FROM_BYTES: usize = 4 << 20;

impl<T: Plain> Buffer<T> {
    /// `len` zeroed values.
    ///
    /// # Errors
    /// The system has no room for them.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if bytes == 0 {
            let start = NonNull::dangling();
            return Ok(Self { start, len });
        }
        // SAFETY: an anonymous map at an address of the kernel's choice touches no memory of ours.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        if bytes >= HUGE_FROM_BYTES {
            // SAFETY: advice on our own map. Where the kernel has no huge pages it fails, which
            // changes nothing.
            unsafe { libc::madvise(map, bytes, libc::MADV_HUGEPAGE) };
        }
        let start = NonNull::new(map.cast()).expect("a map is not at the address 0");
        Ok(Self { start, len })
    }

    /// Makes room for `len` values; what was in it is lost when it grows.
    pub(crate) fn at_least(&mut self, len: usize) -> io::Result<()> {
        if self.len < len {
            *self = Self::new(len)?;
        }
        Ok(())
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the map holds `len` values, and zeroed memory is a value (`Plain`).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for as long as the slice.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: this is the map that `new` made, and nothing borrows it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
        }
    }
}

/// A buffer that the threads of a step write to, each its own part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: whoever takes a part promises that nobody else has it (`part_mut`).
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Plain> Shared<T> {
    /// Shares `values`, which must not be touched otherwise while this is used.
    pub(crate) fn new(values: &mut [T]) -> Self {
        Self {
            start: values.as_mut_ptr(),
            len: values.len(),
        }
    }

    /// `len` values from `from` on.
    ///
    /// # Safety
    /// Nobody writes them meanwhile, and the buffer is alive.
    pub(crate) unsafe fn part<'a>(self, from: usize, len: usize) -> &'a [T] {
        debug_assert!(from + len <= self.len);
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts(self.start.add(from), len) }
    }

    /// `len` values from `from` on, to be written.
    ///
    /// # Safety
    /// Nobody else reads or writes them meanwhile, and the buffer is alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part_mut<'a>(self, from: usize, len: usize) -> &'a mut [T] {
        debug_assert!(from + len <= self.len);
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// Address of the value at `at`.
    pub(crate) fn at(self, at: usize) -> *mut T {
        debug_assert!(at <= self.len);
        self.start.wrapping_add(at)
    }
}
