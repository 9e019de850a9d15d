//! What a store of adapters is told.

use std::{path::PathBuf, time::Duration};

use hyprstream_contract::{adapters::MAX_ADAPTERS, model_ref::MAX_STACK};

/// What a store of adapters is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the model, which no adapter may have.
    pub model: String,
    /// The commit that is served, where one is known.
    pub commit: Option<String>,
    /// The folder that is followed.
    pub follow: Option<PathBuf>,
    /// The model's folder, whose own adapters are served.
    pub repository: Option<PathBuf>,
    /// Below which load routes find theirs.
    pub root: Option<PathBuf>,
    /// How much.
    pub limits: Limits,
    /// How long.
    pub timing: Timing,
}

/// What adapters may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of those that are ready to compute with, in bytes.
    pub memory_bytes: u64,
    /// Most that are ready to compute with.
    pub resident: usize,
    /// Largest rank.
    pub rank: usize,
    /// Most that one request may name.
    pub stacked: usize,
}

/// How long a store waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two looks at a folder that is followed.
    pub look: Duration,
    /// For memory, while others have all of it.
    pub patience: Duration,
    /// After a load failed, before it is tried again; doubled each time.
    pub min_retry: Duration,
    /// Until that is so long.
    pub max_retry: Duration,
    /// For adapters of the first list that the node cannot have for something that may pass, before
    /// the worker turns ready without them.
    pub hindered: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: "model".to_owned(),
            commit: None,
            follow: None,
            repository: None,
            root: None,
            limits: Limits::default(),
            timing: Timing::default(),
        }
    }
}

impl Default for Limits {
    /// 1 GiB, 2,048 adapters, rank 512, 8 for one request.
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            resident: MAX_ADAPTERS,
            rank: 512,
            stacked: MAX_STACK,
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            look: Duration::from_millis(100),
            patience: Duration::from_secs(30),
            min_retry: Duration::from_secs(1),
            max_retry: Duration::from_mins(1),
            hindered: Duration::from_mins(2),
        }
    }
}
