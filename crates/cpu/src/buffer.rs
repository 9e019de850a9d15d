//! Zeroed memory for weights, cache and activations.
#![allow(unsafe_code)]

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::Arc,
};

use crate::kernels::CACHE_LINE;

/// Anonymous memory, zeroed, that begins at a page or, from an [`Arena`], at a cache line. Pages
/// are taken as they are written.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    start: NonNull<T>,
    len: usize,
    /// `None` where `len` is 0.
    #[allow(dead_code, reason = "it keeps the memory")]
    map: Option<Arc<Map>>,
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
/// Of x86-64, and of others with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

impl<T: Plain> Buffer<T> {
    /// `len` zeroed values in a map of their own.
    ///
    /// # Errors
    /// The system has no room for them.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        match bytes_of::<T>(len)? {
            0 => Ok(Self::empty()),
            bytes => Ok(Self::of(Arc::new(Map::new(bytes)?), 0, len)),
        }
    }

    fn empty() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
            map: None,
        }
    }

    /// The values at byte `from` of `map`, which nobody else has.
    fn of(map: Arc<Map>, from: usize, len: usize) -> Self {
        debug_assert!(from.is_multiple_of(align_of::<T>()));
        debug_assert!(from + len * size_of::<T>() <= map.bytes);
        Self {
            // SAFETY: it lies within the map.
            start: unsafe { map.start.add(from) }.cast(),
            len,
            map: Some(map),
        }
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

fn bytes_of<T>(len: usize) -> io::Result<usize> {
    len.checked_mul(size_of::<T>())
        .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// Memory that the kernel has given, and takes back when nobody has it any more.
#[derive(Debug)]
struct Map {
    /// What the kernel has given.
    given: (NonNull<u8>, usize),
    /// What is used of it.
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it only owns the memory; buffers give access, each to a part of its own.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// At least one zeroed byte. From [`HUGE_FROM_BYTES`] on it begins at a huge page.
    fn new(bytes: usize) -> io::Result<Self> {
        let huge = bytes >= HUGE_FROM_BYTES;
        let slack = if huge { HUGE_PAGE_BYTES } else { 0 };
        let room = bytes
            .checked_add(slack)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: an anonymous map at an address of the kernel's choice touches no memory of ours.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map: NonNull<u8> = NonNull::new(map.cast()).expect("a map is not at the address 0");
        let mut start = map;
        if huge {
            let before = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
            // SAFETY: there is room for that (`slack`), and the advice is on our own map. Where the
            // kernel has no huge pages it fails, which changes nothing.
            unsafe {
                start = map.add(before);
                libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
        Ok(Self {
            given: (map, room),
            start,
            bytes,
        })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the map that `new` made, and no buffer has a part of it any more.
        unsafe { libc::munmap(self.given.0.as_ptr().cast(), self.given.1) };
    }
}

/// Large maps that many buffers share, so that huge pages cover buffers smaller than they are.
///
/// A map lives until the last of its buffers is dropped, so what lives for different times belongs
/// in different arenas. What is not used of it stays untouched but for the rest of a huge page.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    map: Option<Arc<Map>>,
    /// Bytes of the map that are given away.
    used: usize,
}

/// A map of an arena has so many bytes, or more for a buffer that needs more.
const ARENA_BYTES: usize = 64 << 20;

impl Arena {
    /// One whose first map has room for exactly so many bytes: for what is small beside a map of
    /// the usual size.
    ///
    /// # Errors
    /// The system has no room for them.
    pub(crate) fn with_room(bytes: usize) -> io::Result<Self> {
        let map = match bytes {
            0 => None,
            _ => Some(Arc::new(Map::new(bytes)?)),
        };
        Ok(Self { map, used: 0 })
    }

    /// `len` zeroed values that begin at a cache line.
    ///
    /// # Errors
    /// The system has no room for them.
    pub(crate) fn buffer<T: Plain>(&mut self, len: usize) -> io::Result<Buffer<T>> {
        let bytes = bytes_of::<T>(len)?;
        if bytes == 0 {
            return Ok(Buffer::empty());
        }
        let from = self.used.next_multiple_of(CACHE_LINE);
        if let Some(map) = &self.map
            && map.bytes.saturating_sub(from) >= bytes
        {
            self.used = from + bytes;
            return Ok(Buffer::of(Arc::clone(map), from, len));
        }
        let whole = bytes
            .checked_next_multiple_of(HUGE_PAGE_BYTES)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let map = Arc::new(Map::new(whole.max(ARENA_BYTES))?);
        // The one with more room is the one to go on with.
        let left = self.map.as_ref().map_or(0, |old| old.bytes - self.used);
        if map.bytes - bytes > left {
            self.map = Some(Arc::clone(&map));
            self.used = bytes;
        }
        Ok(Buffer::of(map, 0, len))
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

    /// The values from `from` on.
    pub(crate) fn after(self, from: usize) -> Self {
        debug_assert!(from <= self.len);
        Self {
            start: self.start.wrapping_add(from),
            len: self.len - from,
        }
    }

    /// Address of the value at `at`.
    pub(crate) fn at(self, at: usize) -> *mut T {
        debug_assert!(at <= self.len);
        self.start.wrapping_add(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_an_arena_begin_at_cache_lines_are_zeroed_and_keep_to_themselves() {
        let mut arena = Arena::default();
        let lens = [
            1,
            100,
            4096,
            1 << 20,
            33 << 20,
            3,
            31 << 20,
            5 << 20,
            64,
            0,
            7,
        ];
        let mut buffers: Vec<Buffer<u16>> = lens.map(|len| arena.buffer(len / 2).unwrap()).into();
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.len(), lens[i] / 2);
            assert!(buffer.is_empty() || buffer.as_ptr().addr().is_multiple_of(CACHE_LINE));
            assert!(buffer.iter().all(|value| *value == 0), "buffer {i}");
            buffer.fill(i as u16 + 1);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(
                buffer.iter().all(|value| *value == i as u16 + 1),
                "buffer {i}"
            );
        }
    }

    #[test]
    fn small_buffers_lie_side_by_side_in_a_map_that_begins_at_a_huge_page() {
        let mut arena = Arena::default();
        let first: Buffer<u8> = arena.buffer(100).unwrap();
        let second: Buffer<f32> = arena.buffer(100).unwrap();
        assert!(first.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
        assert_eq!(second.as_ptr().addr() - first.as_ptr().addr(), 128);
        // A large one between them does not end the map.
        let large: Buffer<u8> = arena.buffer(ARENA_BYTES + 1).unwrap();
        assert!(large.as_ptr().addr().is_multiple_of(HUGE_PAGE_BYTES));
        let third: Buffer<u8> = arena.buffer(10).unwrap();
        assert_eq!(third.as_ptr().addr() - first.as_ptr().addr(), 576);
    }

    #[test]
    fn a_map_goes_with_the_last_of_its_buffers() {
        let mut arena = Arena::default();
        let first: Buffer<u8> = arena.buffer(1 << 20).unwrap();
        let mut second: Buffer<u8> = arena.buffer(1 << 20).unwrap();
        let map = Arc::downgrade(first.map.as_ref().unwrap());
        drop(arena);
        drop(first);
        second.fill(1);
        assert!(map.upgrade().is_some());
        drop(second);
        assert!(map.upgrade().is_none());
    }

    #[test]
    fn dropped_buffers_give_their_addresses_back() {
        // More than a process has, in all.
        for _ in 0..300 {
            Buffer::<u8>::new(1 << 40).unwrap();
            Arena::default().buffer::<u8>(1 << 40).unwrap();
        }
    }

    #[test]
    fn what_no_system_has_is_refused() {
        assert!(Buffer::<f32>::new(usize::MAX / 2).is_err());
        assert!(Buffer::<u8>::new(usize::MAX).is_err());
        assert!(Arena::default().buffer::<u8>(usize::MAX).is_err());
        assert!(Arena::default().buffer::<f32>(usize::MAX / 2).is_err());
    }
}
