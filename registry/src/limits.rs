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
    /// Connections beside these on which only the API is served, so that nodes that download
    /// never keep the control plane out.
    pub api_connections: usize,
    /// Fetches from upstreams at the same time. A namespace has at most half of them.
    pub max_fetches: usize,
    /// When fetches are ended.
    pub fetch: FetchLimits,
    /// Bytes a second that are read to find what went bad on the disk; 0 for none.
    pub scrub_bytes_per_second: u64,
    /// LFS uploads at the same time. A namespace has at most half of them.
    pub max_uploads: usize,
    /// Bytes that are kept of the uploads of one namespace that broke off. The oldest go first.
    pub max_unfinished_bytes: u64,
    /// How long they are kept.
    pub keep_unfinished: Duration,
    /// Transfers of LFS objects at the same time within one fetch.
    pub parallel_downloads: usize,
    /// First wait after a failed fetch; it doubles up to `max_backoff`.
    pub min_backoff: Duration,
    /// Longest wait after a failed fetch.
    pub max_backoff: Duration,
    /// Time in which a client that uploads has to send `least_upload_bytes_per_second` on average.
    pub transfer_idle: Duration,
    /// Fewest bytes a second of a client that uploads.
    pub least_upload_bytes_per_second: u64,
}

/// When fetches from upstreams are ended.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Fewest bytes a second that an upstream has to send, on average over `rate_window`.
    pub least_bytes_per_second: u64,
    /// Time over which the rate is measured. Longer than the pauses that servers ask for.
    pub rate_window: Duration,
    /// Longest that an upstream may take to begin with a pack.
    pub first_byte: Duration,
    /// Longest that an upstream may take to send its git objects, which cannot be continued.
    pub pack_deadline: Duration,
    /// After this time a fetch gives its place to those that wait: of LFS objects, which go on
    /// later, and of a pack that comes slower than `turn_bytes_per_second`.
    pub turn: Duration,
    /// Fewest bytes a second, on average, of a pack that has had its turn while others wait.
    pub turn_bytes_per_second: u64,
    /// A fetch that nobody has asked for in this time is ended. The operator asks every second.
    pub lease: Duration,
}

impl FetchLimits {
    /// Fewest bytes in a window.
    pub(crate) fn least_per_window(&self) -> u64 {
        let bytes = self.least_bytes_per_second as f64 * self.rate_window.as_secs_f64();
        (bytes as u64).max(1)
    }

    /// How often a fetch is looked at.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = [self.rate_window, self.first_byte, self.turn, self.lease];
        let shortest = shortest.into_iter().min().unwrap_or_default();
        (shortest / 8).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

impl Default for FetchLimits {
    /// 8 KiB/s over 2 minutes; 5 minutes to begin, 30 for a pack; turns of 5 minutes, after which a
    /// pack has to come at 1 MiB/s while others wait; 3 minutes without anybody asking.
    fn default() -> Self {
        Self {
            least_bytes_per_second: 8 << 10,
            rate_window: Duration::from_mins(2),
            first_byte: Duration::from_mins(5),
            pack_deadline: Duration::from_mins(30),
            turn: Duration::from_mins(5),
            turn_bytes_per_second: 1 << 20,
            lease: Duration::from_mins(3),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            git: GitLimits::default(),
            min_free_bytes: 64 << 20,
            max_object_bytes: 1 << 40,
            max_batch_objects: 1000,
            max_connections: 2048,
            api_connections: 64,
            max_fetches: 8,
            fetch: FetchLimits::default(),
            scrub_bytes_per_second: 16 << 20,
            max_uploads: 64,
            max_unfinished_bytes: 64 << 30,
            keep_unfinished: Duration::from_hours(24),
            parallel_downloads: 4,
            min_backoff: Duration::from_secs(2),
            // Only what is asked for is tried again, and whoever asks has a backoff of its own.
            max_backoff: Duration::from_secs(30),
            transfer_idle: Duration::from_mins(2),
            least_upload_bytes_per_second: 1 << 10,
        }
    }
}

/// How much git may do for clients.
#[derive(Clone, Copy, Debug)]
pub struct GitLimits {
    /// Git processes at the same time. A namespace has at most half of them, and so have nodes. A
    /// further request waits for up to 30 seconds.
    pub processes: usize,
    /// Time in which `least_bytes_per_second` have to move on average, or a process is ended.
    pub idle: Duration,
    /// Fewest bytes a second that a client has to send or take, on average over `idle`.
    pub least_bytes_per_second: u64,
    /// Longest that the registry works on a push whose last byte has come.
    pub work: Duration,
    /// Most memory of a process that takes a push, in bytes of address space.
    pub push_memory_bytes: u64,
    /// Largest pack that a push may send, in bytes. LFS objects do not count.
    pub max_push_bytes: u64,
}

impl Default for GitLimits {
    /// 32 processes, 5 minutes, 1 KiB/s, 30 minutes of work, 512 MiB of memory, packs of 2 GiB.
    fn default() -> Self {
        Self {
            processes: 32,
            idle: Duration::from_mins(5),
            least_bytes_per_second: 1 << 10,
            work: Duration::from_mins(30),
            push_memory_bytes: 512 << 20,
            max_push_bytes: 2 << 30,
        }
    }
}
