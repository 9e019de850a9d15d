//! Why an adapter cannot be served, or written.

use std::path::PathBuf;

/// Why the files of an adapter gave none. Each says what is wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file is not there.
    #[error("{} is missing", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// What lies at a path is no adapter in any spelling that is read.
    #[error("{}: {why}", path.display())]
    NotAnAdapter {
        /// The file or folder.
        path: PathBuf,
        /// What it is instead, or what it lacks.
        why: String,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is a pointer of Git LFS: the object itself was not fetched.
    #[error("{} is a Git LFS pointer: the file itself was not fetched", path.display())]
    NotFetched {
        /// The file.
        path: PathBuf,
    },
    /// The file of tensors, or the adapter, is larger than is allowed.
    #[error("{} has {bytes} bytes, but an adapter may have {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// Most bytes.
        limit: u64,
    },
    /// The file of tensors is damaged, or is none.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration cannot be read, or contradicts itself.
    #[error("{}: {why}", path.display())]
    InvalidConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration sets an option that is not honoured.
    #[error("{}: {option} is {value}: {why}", path.display())]
    RefusedOption {
        /// The file.
        path: PathBuf,
        /// Name of the option.
        option: String,
        /// What it is set to, cut off where it is long.
        value: String,
        /// Why it is not honoured, or what to do.
        why: String,
    },
    /// A rank is larger than is allowed.
    #[error("{}: the rank of {module} is {rank}, but at most {limit} is allowed", path.display())]
    RankTooLarge {
        /// The configuration.
        path: PathBuf,
        /// The module, as the adapter calls it.
        module: String,
        /// Its rank.
        rank: usize,
        /// The largest rank.
        limit: usize,
    },
    /// Tensors belong to no layer of the model.
    #[error(
        "{}: {} of its tensors belong to no layer of this model: {}{}",
        path.display(), left_over.len(), some(left_over), nearest(closest)
    )]
    UnknownTarget {
        /// The file of tensors.
        path: PathBuf,
        /// Names of all of them.
        left_over: Vec<String>,
        /// The module that exists and whose name is nearest to that of each of the first few.
        closest: Vec<String>,
    },
    /// Tensors belong to modules that the configuration does not target.
    #[error(
        "{}: it has tensors for {}, which {} does not target",
        path.display(), some(modules), config.display()
    )]
    Untargeted {
        /// The file of tensors.
        path: PathBuf,
        /// The configuration.
        config: PathBuf,
        /// The modules.
        modules: Vec<String>,
    },
    /// Tensors that the configuration calls for are not in the file.
    #[error("{}: it lacks {}, which its configuration calls for", path.display(), some(missing))]
    Incomplete {
        /// The file of tensors.
        path: PathBuf,
        /// The modules, or tensors of a module.
        missing: Vec<String>,
    },
    /// A tensor has another shape than model and configuration say: it was made for another model.
    #[error(
        "{}: the tensor {tensor:?} has the shape {found:?}, but {expected:?} is needed for this \
         model: {why}",
        path.display()
    )]
    ShapeMismatch {
        /// The file of tensors.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
        /// Where the expected sizes come from.
        why: String,
    },
    /// A tensor holds no numbers.
    #[error(
        "{}: the tensor {tensor:?} is empty: a training under DeepSpeed ZeRO-3 saved it without \
         gathering it first",
        path.display()
    )]
    EmptyTensor {
        /// The file of tensors.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A number is a NaN or infinite.
    #[error("{}: {why}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Which number of which tensor.
        why: String,
    },
    /// The file holds a changed copy of one of the model's own tensors.
    #[error(
        "{}: it holds {tensor:?}, a copy of a weight of the model that differs from this model's: \
         {why}",
        path.display()
    )]
    ChangedBase {
        /// The file of tensors.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What that means.
        why: &'static str,
    },
    /// No tensor of it would change anything.
    #[error(
        "{}: it changes no layer of this model: it holds no low-rank matrices",
        path.display()
    )]
    TouchesNothing {
        /// The file of tensors.
        path: PathBuf,
    },
    /// An adapter cannot be written in the way that the model's layers are called.
    #[error("{module} cannot be written: {why}")]
    Unwritable {
        /// The module.
        module: String,
        /// Why.
        why: String,
    },
}

impl AdapterError {
    /// CamelCase reason, for a condition or a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::MissingFile { .. } => "MissingFile",
            Self::NotAnAdapter { .. } => "NotAnAdapter",
            Self::Io { .. } => "InternalError",
            Self::NotFetched { .. } => "NotFetched",
            Self::TooLarge { .. } => "TooLarge",
            Self::Damaged { .. } => "DamagedFile",
            Self::InvalidConfig { .. } => "InvalidConfig",
            Self::RefusedOption { .. } => "UnsupportedOption",
            Self::RankTooLarge { .. } => "RankTooLarge",
            Self::UnknownTarget { .. } => "UnknownTarget",
            Self::Untargeted { .. } => "Untargeted",
            Self::Incomplete { .. } => "Incomplete",
            Self::ShapeMismatch { .. } => "ShapeMismatch",
            Self::EmptyTensor { .. } => "EmptyTensor",
            Self::NotFinite { .. } => "NotFinite",
            Self::ChangedBase { .. } => "ChangedBase",
            Self::TouchesNothing { .. } => "TouchesNothing",
            Self::Unwritable { .. } => "Unwritable",
        }
    }

    /// Whether the same files give the same error again.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }
}

/// Most names that a message lists.
const LISTED: usize = 4;

/// The first few of `names`, and how many there are beside.
fn some(names: &[String]) -> String {
    let mut text: Vec<String> = names
        .iter()
        .take(LISTED)
        .map(|name| format!("{name:?}"))
        .collect();
    if names.len() > LISTED {
        text.push(format!("and {} more", names.len() - LISTED));
    }
    text.join(", ")
}

fn nearest(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("; the nearest that there are: {}", some(names))
    }
}
