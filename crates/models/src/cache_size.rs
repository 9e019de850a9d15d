//! How large the cache of keys and values is made.

use crate::LoadError;

/// What the size of a cache depends on.
#[derive(Clone, Copy, Debug)]
pub struct CacheSizing {
    /// Longest sequence that the model was made for, in tokens.
    pub trained_positions: usize,
    /// Longest sequence that was asked for.
    pub max_model_len: Option<usize>,
    /// Most sequences in a step; bounds the default size.
    pub max_batch: usize,
    /// Bytes that were asked for. `None` is `share` of `free`, but not more than `max_batch`
    /// longest sequences need.
    pub kv_cache_bytes: Option<u64>,
    /// Tokens of a block.
    pub block_size: usize,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Bytes that are free, if that is known.
    pub free: Option<u64>,
    /// Share of them that the cache takes by default.
    pub share: f64,
}

/// Room for sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Longest sequence in tokens: what the model was made for, or less if the cache cannot hold
    /// it and no length was asked for.
    pub max_positions: usize,
}

impl CacheSizing {
    /// The size of the cache.
    ///
    /// # Errors
    /// The length that was asked for is 0 or beyond the model's, or there is no room for a
    /// sequence of it.
    pub fn size(&self) -> Result<CacheSize, LoadError> {
        let (asked, trained) = (self.max_model_len, self.trained_positions);
        if let Some(asked) = asked.filter(|a| *a == 0 || *a > trained) {
            return Err(LoadError::InvalidConfig(format!(
                "a maximum length of {asked} tokens was asked for, but max_position_embeddings \
                 is {trained}"
            )));
        }
        let positions = asked.unwrap_or(trained);
        let blocks_each = positions.div_ceil(self.block_size);
        let num_blocks = if let Some(bytes) = self.kv_cache_bytes {
            bytes / self.block_bytes
        } else {
            let enough = (blocks_each * self.max_batch.max(1)) as u64;
            self.free.map_or(enough, |free| {
                ((free as f64 * self.share) as u64 / self.block_bytes).min(enough)
            })
        };
        // An index of a block is 32 bits wide.
        let num_blocks = num_blocks.min(u64::from(u32::MAX)) as usize;
        let fitting = num_blocks.saturating_mul(self.block_size);
        if num_blocks >= blocks_each {
            return Ok(CacheSize {
                num_blocks,
                max_positions: positions,
            });
        }
        if asked.is_some() || num_blocks == 0 {
            return Err(LoadError::OutOfMemory(format!(
                "the cache has room for {fitting} tokens, but one sequence may have {positions}: \
                 give it more memory or lower the maximum length"
            )));
        }
        tracing::warn!(
            positions,
            fitting,
            "the cache cannot hold the longest sequence of the model"
        );
        Ok(CacheSize {
            num_blocks,
            max_positions: fitting,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZING: CacheSizing = CacheSizing {
        trained_positions: 100,
        max_model_len: None,
        max_batch: 2,
        kv_cache_bytes: None,
        block_size: 16,
        block_bytes: 1000,
        free: Some(1_000_000),
        share: 0.5,
    };

    fn size(num_blocks: usize, max_positions: usize) -> CacheSize {
        CacheSize {
            num_blocks,
            max_positions,
        }
    }

    #[test]
    fn by_default_it_holds_a_batch_of_longest_sequences_if_there_is_memory() {
        assert_eq!(SIZING.size().unwrap(), size(14, 100));
        let free = Some(16_000);
        assert_eq!(
            CacheSizing { free, ..SIZING }.size().unwrap(),
            size(8, 100),
            "half of what is free"
        );
        let free = None;
        assert_eq!(
            CacheSizing { free, ..SIZING }.size().unwrap(),
            size(14, 100)
        );
    }

    #[test]
    fn too_little_memory_shortens_sequences_unless_a_length_was_asked_for() {
        let little = CacheSizing {
            kv_cache_bytes: Some(3_999),
            ..SIZING
        };
        assert_eq!(little.size().unwrap(), size(3, 48));
        let asked = CacheSizing {
            max_model_len: Some(49),
            ..little
        };
        assert_eq!(asked.size().unwrap_err().reason(), "OutOfMemory");
        let asked = CacheSizing {
            max_model_len: Some(48),
            ..little
        };
        assert_eq!(asked.size().unwrap(), size(3, 48));
        let none = CacheSizing {
            kv_cache_bytes: Some(999),
            ..SIZING
        };
        assert_eq!(none.size().unwrap_err().reason(), "OutOfMemory");
    }

    #[test]
    fn a_length_that_the_model_was_not_made_for_is_refused() {
        for length in [0, 101] {
            let wrong = CacheSizing {
                max_model_len: Some(length),
                ..SIZING
            };
            let error = wrong.size().unwrap_err().to_string();
            assert!(error.contains(&format!("{length} tokens")), "{error}");
        }
    }
}
