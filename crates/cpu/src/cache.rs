//! The cache of keys and values, in blocks of 16 positions.
//!
//! A block holds all layers: for each its keys, head after head, and its values. How those lie is
//! what `kernels::attend` reads.
#![allow(unsafe_code)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks begin at cache lines, and offsets are whole values"
)]

use std::io;

use hyprstream_models::DecoderConfig;

use crate::{
    buffer::{Buffer, Shared},
    kernels::{LANES, MAX_HEAD, Ops, STEP_BYTES},
};

/// Positions in a block.
pub(crate) const BLOCK_SIZE: usize = LANES;

/// The sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    /// A multiple of 16: narrower heads are filled up with zeros.
    pub(crate) head_dim: usize,
    /// bf16, not f32.
    pub(crate) half: bool,
}

impl CacheShape {
    /// What the layers of `config` need, in bf16 or in f32.
    pub(crate) fn of(config: &DecoderConfig, half: bool) -> Self {
        Self {
            layers: config.num_layers(),
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim.next_multiple_of(LANES),
            half,
        }
    }

    /// Bytes of the keys of one head of one layer, or of its values, in a block.
    pub(crate) fn head_bytes(&self) -> usize {
        BLOCK_SIZE * self.head_dim * if self.half { 2 } else { 4 }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_bytes()
    }
}

/// Keys and values of all sequences.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) shape: CacheShape,
    data: Buffer<u8>,
}

/// The cache while the threads of a step write it.
#[derive(Clone, Copy)]
pub(crate) struct SharedCache {
    shape: CacheShape,
    data: Shared<u8>,
}

impl Cache {
    /// `num_blocks` blocks, whose memory is taken as they are written.
    pub(crate) fn new(shape: CacheShape, num_blocks: usize) -> io::Result<Self> {
        let bytes = num_blocks.checked_mul(shape.block_bytes());
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self {
            shape,
            data: Buffer::new(bytes)?,
        })
    }

    /// Gives the cache to the threads of a step.
    pub(crate) fn share(&mut self) -> SharedCache {
        SharedCache {
            shape: self.shape,
            data: Shared::new(&mut self.data),
        }
    }
}

impl SharedCache {
    /// Where the block 0 has the keys of a layer's head.
    pub(crate) fn keys(&self, layer: usize, head: usize) -> *mut u8 {
        let index = 2 * layer * self.shape.kv_heads + head;
        self.data.at(index * self.shape.head_bytes())
    }

    /// Where the block 0 has the values of a layer's head.
    pub(crate) fn values(&self, layer: usize, head: usize) -> *mut u8 {
        let index = (2 * layer + 1) * self.shape.kv_heads + head;
        self.data.at(index * self.shape.head_bytes())
    }

    /// Writes key and value of one position of one head, each at most `head_dim` values. `last`
    /// says that the position is the last of its sequence.
    ///
    /// # Safety
    /// The block is the sequence's own, and nobody else writes this position meanwhile. The
    /// processor has the instructions of `ops`.
    pub(crate) unsafe fn write(
        &self,
        ops: &Ops,
        (layer, head): (usize, usize),
        (block, slot): (usize, usize),
        (key, value): (&[f32], &[f32]),
        last: bool,
    ) {
        let block = block * self.shape.block_bytes();
        let keys = self.keys(layer, head).wrapping_add(block);
        let values = self.values(layer, head).wrapping_add(block);
        // SAFETY: the caller's promise; the offsets are those of this position.
        unsafe {
            if self.shape.half {
                let panel_bytes = LANES / 2 * STEP_BYTES;
                let mut halves = [0; MAX_HEAD];
                let halves = &mut halves[..key.len()];
                (ops.to_bf16)(key, halves);
                let (pairs, single) = halves.as_chunks::<2>();
                let single = single.first().map(|first| [*first, 0]);
                for (i, [low, high]) in pairs.iter().chain(&single).enumerate() {
                    let pair = u32::from(*low) | u32::from(*high) << 16;
                    let at = i * STEP_BYTES + slot * 4;
                    keys.add(at).cast::<u32>().write(pair);
                }
                (ops.to_bf16)(value, halves);
                let values = values.add(slot / 2 * STEP_BYTES);
                for (panel, halves) in halves.chunks(LANES).enumerate() {
                    let words = values.add(panel * panel_bytes).cast::<u16>();
                    if last && slot.is_multiple_of(2) {
                        // The other half of a pair is multiplied by 0, which must give 0
                        // whatever an earlier owner of the block has left there.
                        for (lane, half) in halves.iter().enumerate() {
                            words.cast::<u32>().add(lane).write(u32::from(*half));
                        }
                    } else {
                        let words = words.add(slot % 2);
                        for (lane, half) in halves.iter().enumerate() {
                            words.add(2 * lane).write(*half);
                        }
                    }
                }
            } else {
                let panel_bytes = LANES * STEP_BYTES;
                for (i, (key, value)) in key.iter().zip(value).enumerate() {
                    let at = i * STEP_BYTES + slot * 4;
                    keys.add(at).cast::<f32>().write(*key);
                    let at = i / LANES * panel_bytes + slot * STEP_BYTES + i % LANES * 4;
                    values.add(at).cast::<f32>().write(*value);
                }
            }
        }
    }
}
