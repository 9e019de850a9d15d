//! The cache of keys and values, in blocks.

use tch::{Device, Kind, TchError, Tensor};

/// Tokens in one block.
pub(crate) const BLOCK_SIZE: usize = 16;

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct KvCache {
    /// Key and value of each layer, `[blocks * BLOCK_SIZE, kv_heads, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    num_blocks: usize,
}

/// Which blocks hold a sequence, in order of position.
#[derive(Debug)]
pub(crate) enum BlockList {
    /// They follow one another from this one on, and can be looked at without a copy.
    Run(i64),
    /// They are scattered: their indices, int64.
    Scattered(Tensor),
}

/// The sizes of one token's entry in the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheShape {
    pub(crate) layers: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) kind: Kind,
}

impl CacheShape {
    /// Bytes of one block in all layers.
    pub(crate) fn block_bytes(&self) -> u64 {
        let values = 2 * self.layers * self.kv_heads * self.head_dim * BLOCK_SIZE as i64;
        values as u64 * self.kind.elt_size_in_bytes() as u64
    }
}

impl KvCache {
    /// Allocates `num_blocks` blocks. On the CPU their memory is taken as they are written.
    pub(crate) fn new(
        shape: CacheShape,
        num_blocks: usize,
        device: Device,
    ) -> Result<Self, TchError> {
        let size = [
            (num_blocks * BLOCK_SIZE) as i64,
            shape.kv_heads,
            shape.head_dim,
        ];
        let empty = || Tensor::f_empty(size, (shape.kind, device));
        let layers = (0..shape.layers)
            .map(|_| Ok((empty()?, empty()?)))
            .collect::<Result<_, TchError>>()?;
        Ok(Self { layers, num_blocks })
    }

    /// Number of blocks.
    pub(crate) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Writes keys and values, `[tokens, kv_heads, head_dim]`, of one layer to `slots`, int64.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        slots: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<(), TchError> {
        let (keys, values) = &mut self.layers[layer];
        let _ = keys.f_index_copy_(0, slots, key)?;
        let _ = values.f_index_copy_(0, slots, value)?;
        Ok(())
    }

    /// Keys and values of the positions `start..end` of a sequence in one layer,
    /// `[end - start, kv_heads, head_dim]`.
    pub(crate) fn read(
        &self,
        layer: usize,
        blocks: &BlockList,
        start: i64,
        end: i64,
    ) -> Result<(Tensor, Tensor), TchError> {
        let (keys, values) = &self.layers[layer];
        Ok((
            gather(keys, blocks, start, end)?,
            gather(values, blocks, start, end)?,
        ))
    }
}

fn gather(cache: &Tensor, blocks: &BlockList, start: i64, end: i64) -> Result<Tensor, TchError> {
    let block = BLOCK_SIZE as i64;
    match blocks {
        BlockList::Run(first) => cache.f_narrow(0, first * block + start, end - start),
        BlockList::Scattered(indices) => {
            let size = cache.size();
            // What lies before the window is not copied.
            let skipped = start / block;
            let indices = indices.f_narrow(0, skipped, indices.size()[0] - skipped)?;
            cache
                .f_view([-1, block * size[1] * size[2]])?
                .f_index_select(0, &indices)?
                .f_view([-1, size[1], size[2]])?
                .f_narrow(0, start - skipped * block, end - start)
        }
    }
}
