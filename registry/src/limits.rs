//! How much clients may ask for.

use std::time::Duration;

/// How much clients may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Git's processes.
    pub git: GitLimits,
    /// Bytes that stay free: what would leave less is refused.
    pub min_free_bytes: u64,
    /// Largest LFS object that is taken, in bytes.
    pub max_object_bytes: u64,
    /// Most objects in one LFS batch.
    pub max_batch_objects: usize,
    /// Connections at the same time.
    pub max_connections: usize,
    /// Fetches from upstreams at the same time.
    pub max_fetches: usize,
    /// Transfers of LFS objects at the same time within one fetch.
    pub parallel_downloads: usize,
    /// First wait after a failed fetch; it doubles up to `max_backoff`.
    pub min_backoff: Duration,
    /// Longest wait after a failed fetch.
    pub max_backoff: Duration,
    /// Time without a byte after which a client that uploads or downloads is given up.
    pub transfer_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            git: GitLimits::default(),
            min_free_bytes: 64 << 20,
            max_object_bytes: 1 << 40,
            max_batch_objects: 1000,
            max_connections: 2048,
            max_fetches: 8,
            parallel_downloads: 4,
            min_backoff: Duration::from_secs(2),
            // Only what is asked for is tried again, and whoever asks has a backoff of its own.
            max_backoff: Duration::from_secs(30),
            transfer_idle: Duration::from_mins(2),
        }
    }
}

/// How much git may do for clients.
#[derive(Clone, Copy, Debug)]
pub struct GitLimits {
    /// Git processes at the same time. A further request waits for up to 30 seconds.
    pub processes: usize,
    /// Time without a byte in either direction after which a process is ended.
    pub idle: Duration,
    /// Largest pack that a push may send, in bytes. LFS objects do not count.
    pub max_push_bytes: u64,
}

impl Default for GitLimits {
    /// 32 processes, 5 minutes, 2 GiB.
    fn default() -> Self {
        Self {
            processes: 32,
            idle: Duration::from_mins(5),
            max_push_bytes: 2 << 30,
        }
    }
}
