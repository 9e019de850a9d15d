//! How fast this machine reads memory: what decoding cannot be faster than.

use std::{
    hint::black_box,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use memmap2::{Advice, MmapMut};

/// Far more than any cache; shared L3 caches of 480 MB were met.
const BUFFER_BYTES: usize = 1 << 30;
/// Times that the buffer is read at most; the fastest counts.
const PASSES: usize = 10;
/// How long it is read at most, unless one pass takes longer.
const TIME: Duration = Duration::from_secs(3);
/// What one round of the kernel reads: four cache lines, into sums that do not wait for each
/// other.
const BLOCK_BYTES: usize = 256;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bandwidth {
    pub(super) bytes_per_second: f64,
    /// Size of the buffer that was read.
    pub(super) buffer_bytes: usize,
}

/// Reads a large buffer with so many threads, each its part. `None` when the machine has no
/// memory for a buffer, and in a program that was not optimised, whose loops are slower than any
/// memory.
pub(super) fn measure(threads: usize) -> Option<Bandwidth> {
    if cfg!(debug_assertions) {
        return None;
    }
    let bytes = BUFFER_BYTES.min(available_bytes()? / 2);
    read(bytes, threads.max(1), PASSES)
}

fn read(bytes: usize, threads: usize, passes: usize) -> Option<Bandwidth> {
    let part = bytes / threads / BLOCK_BYTES * BLOCK_BYTES;
    if part == 0 {
        return None;
    }
    let mut buffer = MmapMut::map_anon(part * threads).ok()?;
    // Fewer entries of the page table to look up; the kernel may have none of these pages.
    let _ = buffer.advise(Advice::HugePage);
    let barrier = Barrier::new(threads + 1);
    let go_on = AtomicBool::new(true);
    let fastest = thread::scope(|scope| {
        for part in buffer.chunks_exact_mut(part) {
            let (barrier, go_on) = (&barrier, &go_on);
            scope.spawn(move || {
                // Untouched pages are all the same page of zeros.
                part.fill(1);
                loop {
                    barrier.wait();
                    // Set before the barrier, so that all threads read the same.
                    if !go_on.load(Ordering::Relaxed) {
                        break;
                    }
                    black_box(sum(black_box(part)));
                    barrier.wait();
                }
            });
        }
        let mut fastest = Duration::MAX;
        let mut spent = Duration::ZERO;
        for _ in 0..passes {
            barrier.wait();
            let started = Instant::now();
            barrier.wait();
            let taken = started.elapsed();
            fastest = fastest.min(taken);
            spent += taken;
            if spent > TIME {
                break;
            }
        }
        go_on.store(false, Ordering::Relaxed);
        barrier.wait();
        fastest
    });
    let bytes = part * threads;
    Some(Bandwidth {
        bytes_per_second: bytes as f64 / fastest.as_secs_f64(),
        buffer_bytes: bytes,
    })
}

/// Reads every byte, with the widest loads that the machine has.
fn sum(bytes: &[u8]) -> u8 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            return wide::sum_avx512(bytes);
        }
        if is_x86_feature_detected!("avx2") {
            return wide::sum_avx2(bytes);
        }
    }
    sum_blocks(bytes)
}

/// Plain code, which the compiler makes loads of whole registers of.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must be compiled with the caller's instructions"
)]
fn sum_blocks(bytes: &[u8]) -> u8 {
    let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
    let mut sums = [0u8; BLOCK_BYTES];
    for block in blocks {
        for (sum, byte) in sums.iter_mut().zip(block) {
            *sum ^= byte;
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// The same code compiled for more instructions.
#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "calling code for instructions that were looked for"
)]
mod wide {
    use super::sum_blocks;

    pub(super) fn sum_avx512(bytes: &[u8]) -> u8 {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn sum(bytes: &[u8]) -> u8 {
            sum_blocks(bytes)
        }
        assert!(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"));
        // SAFETY: the processor has the features, as just asserted.
        unsafe { sum(bytes) }
    }

    pub(super) fn sum_avx2(bytes: &[u8]) -> u8 {
        #[target_feature(enable = "avx2")]
        fn sum(bytes: &[u8]) -> u8 {
            sum_blocks(bytes)
        }
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the processor has the feature, as just asserted.
        unsafe { sum(bytes) }
    }
}

/// Memory that can be had without taking it from others.
fn available_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_reads_every_byte() {
        let mut bytes = vec![0u8; 64 * BLOCK_BYTES];
        for at in [0, 1, 255, 256, 8191, 64 * BLOCK_BYTES - 1] {
            bytes[at] = 0x5a;
            assert_eq!(sum_blocks(&bytes), 0x5a, "{at}");
            assert_eq!(sum(&bytes), 0x5a, "{at}");
            bytes[at] = 0;
        }
    }

    #[test]
    fn threads_share_a_buffer() {
        for threads in [1, 3] {
            let measured = read(1 << 20, threads, 2).unwrap();
            assert!(measured.bytes_per_second > 0.0);
            assert!(measured.buffer_bytes > 1_000_000);
        }
    }
}
