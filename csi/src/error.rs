//! What can go wrong, and the one place that turns it into an answer.

use std::{
    io,
    path::{Path, PathBuf},
};

use hyprstream_contract::{adapters::ModelName, grants::InvalidWord, volume::InvalidAttributes};
use tonic::Status;

use crate::{
    fetch::{FetchError, MiB},
    mount::DiskError,
    volumes::Held,
};

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A required field of the request is empty.
    #[error("{0} is required")]
    Missing(&'static str),
    /// A path of the request is not absolute or leads upwards.
    #[error("{field} {path:?} is not an absolute path without \"..\"")]
    InvalidPath {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        path: String,
    },
    /// The volume is asked for as a block device.
    #[error("a model is a filesystem: volumeMode must be Filesystem, not Block")]
    BlockVolume,
    /// A mount option or filesystem type that means nothing here.
    #[error("{field} {value:?} is not supported")]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The volume stands in a pod, not in a PersistentVolume.
    #[error(
        "inline volumes are refused, for they would let any pod name any repository: create a \
         Model, whose pods get their volume from a PersistentVolume that the operator makes"
    )]
    InlineVolume,
    /// The attributes of the PersistentVolume.
    #[error("the PersistentVolume cannot be used: {0}")]
    Attributes(#[source] InvalidAttributes),
    /// The Secret of the PersistentVolume.
    #[error(
        "the Secret that the PersistentVolume names has no word of a volume: {0}. The operator puts \
         one there within ten minutes, and at once if the Secret is deleted and the operator started \
         anew"
    )]
    Word(InvalidWord),
    /// An included pattern of the PersistentVolume.
    #[error("the PersistentVolume cannot be used: {0}")]
    Include(#[from] hyprstream_git2db::InvalidGlob),
    /// No volume of this handle is known, or it is not at that path.
    #[error("volume {handle:?} is not at {path:?}")]
    UnknownVolume {
        /// Handle of the volume.
        handle: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Another call works on this volume.
    #[error("another operation on volume {0:?} is under way")]
    Busy(String),
    /// The files are not complete yet.
    #[error("{0}")]
    Fetching(String),
    /// The volume is staged with something else.
    #[error("volume {handle:?} is staged already, with another {what}")]
    StagedDifferently {
        /// Handle of the volume.
        handle: String,
        /// What differs.
        what: &'static str,
    },
    /// The volume is published at this path with something else.
    #[error("volume {handle:?} is published at {path:?} already, with another {what}")]
    PublishedDifferently {
        /// Handle of the volume.
        handle: String,
        /// The target.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Only one publication is allowed and there is one.
    #[error("volume {handle:?} is for one pod at a time and is published at {other:?}")]
    SingleWriter {
        /// Handle of the volume.
        handle: String,
        /// Where.
        other: PathBuf,
    },
    /// A publication without a stage.
    #[error("volume {handle:?} is not staged at {path:?}")]
    NotStaged {
        /// Handle of the volume.
        handle: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// An unstage while pods use the volume.
    #[error("volume {handle:?} is still published at {path:?}")]
    StillPublished {
        /// Handle of the volume.
        handle: String,
        /// Where.
        path: PathBuf,
    },
    /// Something of another program is mounted where we would mount or unmount.
    #[error("{path:?} holds a {kind} mount of another program")]
    ForeignMount {
        /// Where.
        path: PathBuf,
        /// Kind of the filesystem.
        kind: String,
    },
    /// Nobody has said yet which adapters a Model has.
    #[error("the adapters of {model} are not known yet: {why}; retrying")]
    NoList {
        /// The Model.
        model: ModelName,
        /// Why.
        why: String,
    },
    /// A label is asked for where files have those of the state directory.
    #[error(
        "a volume of adapters shows files of the node's state directory and cannot have the SELinux \
         label {0:?}: label that directory so that pods may read it, and set seLinuxMount of the \
         CSIDriver to false"
    )]
    LabelOfAdapters(String),
    /// Many nodes are to write to one volume.
    #[error(
        "a volume that is written to lies on one node and is for one pod at a time: its access mode \
         must be ReadWriteOncePod"
    )]
    ManyWriters,
    /// There is no room for what pods may write.
    #[error(
        "the disk of the node is full: {path:?} has {available} for the capacity of volume \
         {handle:?}, which takes {needed}; volumes that pods write to hold {in_use} of the disk, and \
         {count} that left the node hold {left} until their PersistentVolumes are deleted: free \
         space, or ask for less (resources.storage of a TrainingJob); it is tried again",
        available = MiB(*.available_bytes),
        needed = MiB(*.needed_bytes),
        in_use = MiB(.held.in_use_bytes),
        count = .held.left,
        left = MiB(.held.left_bytes)
    )]
    NoRoom {
        /// Handle of the volume.
        handle: String,
        /// The state directory.
        path: PathBuf,
        /// Bytes that have to be allocated.
        needed_bytes: u64,
        /// Bytes that may be.
        available_bytes: u64,
        /// What others hold.
        held: Held,
    },
    /// The disk of a volume could not be made or mounted.
    #[error(
        "volume {handle:?} cannot have a disk of its own, which limits what it takes: {source}"
    )]
    Disk {
        /// Handle of the volume.
        handle: String,
        /// Why.
        source: DiskError,
    },
    /// The files cannot be brought to the node.
    #[error(transparent)]
    Fetch(#[from] std::sync::Arc<FetchError>),
    /// A file or folder of ours.
    #[error("could not {act} {path:?}: {source}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("state directory {path:?} must be absolute, without any of : , \\ and line breaks")]
    StateDir {
        /// The state directory.
        path: PathBuf,
    },

    /// A thread of ours ended early.
    #[error("the work on this call broke off")]
    BrokenOff,
}

impl Error {
    /// A failed act on a file or folder.
    pub(crate) fn io(act: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            act,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether something did not fit on the disk.
    pub(crate) fn lacks_room(&self) -> bool {
        let does_not_fit = match self {
            Self::NoRoom { .. } => true,
            Self::Fetch(error) => matches!(**error, FetchError::DiskFull { .. }),
            _ => false,
        };
        does_not_fit || self.needs_room()
    }

    /// Whether a write found the disk full. A fetch that does not fit is another matter: room was
    /// looked for, and there is none.
    pub(crate) fn needs_room(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::Disk { source, .. } => source.is_full(),
            Self::Fetch(error) => matches!(
                **error,
                FetchError::DiskFull {
                    needed_bytes: 0,
                    ..
                }
            ),
            _ => false,
        }
    }
}

/// Whether a failure means that no space is left.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The kubelet takes Aborted, `DeadlineExceeded`, Unavailable, Canceled and `ResourceExhausted`
/// for "still in progress"; every other code is final, and it shows the message in an event.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match &error {
            Error::Missing(_)
            | Error::InvalidPath { .. }
            | Error::BlockVolume
            | Error::Unsupported { .. }
            | Error::InlineVolume
            | Error::LabelOfAdapters(_)
            | Error::ManyWriters
            | Error::Attributes(_)
            | Error::Include(_) => Self::invalid_argument(message),
            Error::UnknownVolume { .. } => Self::not_found(message),
            Error::Busy(_) | Error::Fetching(_) => Self::aborted(message),
            Error::NoList { .. } => Self::unavailable(message),
            Error::StagedDifferently { .. } | Error::PublishedDifferently { .. } => {
                Self::already_exists(message)
            }
            Error::NoRoom { .. } => Self::resource_exhausted(message),
            Error::Disk { source, .. } if source.is_full() => Self::resource_exhausted(message),
            Error::SingleWriter { .. }
            | Error::NotStaged { .. }
            | Error::StillPublished { .. }
            | Error::Word(_)
            | Error::ForeignMount { .. }
            | Error::Disk { .. } => Self::failed_precondition(message),
            Error::Fetch(fetch) => match **fetch {
                FetchError::Unreachable { .. }
                | FetchError::Denied { .. }
                | FetchError::Damaged { .. }
                | FetchError::Cancelled => Self::unavailable(message),
                FetchError::NotFound { .. } => Self::not_found(message),
                FetchError::Refused { .. } => Self::failed_precondition(message),
                FetchError::DiskFull { .. } => Self::resource_exhausted(message),
                FetchError::Internal { .. } => Self::internal(message),
            },
            Error::Io { source, .. } if is_full(source) => Self::resource_exhausted(message),
            Error::Io { .. } | Error::StateDir { .. } | Error::BrokenOff => Self::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::Code;

    use super::*;

    #[track_caller]
    fn check(error: Error, code: Code, words: &str) {
        let status = Status::from(error);
        assert_eq!(status.code(), code);
        assert!(status.message().contains(words), "{}", status.message());
    }

    fn fetch(error: FetchError) -> Error {
        Error::Fetch(Arc::new(error))
    }

    #[test]
    fn what_may_pass_is_in_progress_to_the_kubelet_and_the_rest_is_final() {
        let why = String::from("why");
        check(
            Error::Fetching("fetched 1 of 2 MiB".into()),
            Code::Aborted,
            "fetched 1 of 2 MiB",
        );
        check(Error::Busy("h".into()), Code::Aborted, "\"h\"");
        let unknown = Error::NoList {
            model: "default/chat".parse().unwrap(),
            why: why.clone(),
        };
        check(
            unknown,
            Code::Unavailable,
            "default/chat are not known yet: why",
        );
        check(
            fetch(FetchError::Unreachable { why: why.clone() }),
            Code::Unavailable,
            "why",
        );
        check(
            fetch(FetchError::Refused { why: why.clone() }),
            Code::FailedPrecondition,
            "why",
        );
        check(fetch(FetchError::NotFound { why }), Code::NotFound, "why");
    }

    #[test]
    fn a_volume_without_room_is_told_what_holds_the_disk_and_tried_again() {
        let error = Error::NoRoom {
            handle: "h".into(),
            path: "/s".into(),
            needed_bytes: 64 << 20,
            available_bytes: 10 << 20,
            held: Held {
                in_use_bytes: 16 << 20,
                left: 2,
                left_bytes: 32 << 20,
            },
        };
        assert!(error.lacks_room());
        check(
            error,
            // The kubelet takes it for something that passes.
            Code::ResourceExhausted,
            "\"/s\" has 10.0 MiB for the capacity of volume \"h\", which takes 64.0 MiB; volumes \
             that pods write to hold 16.0 MiB of the disk, and 2 that left the node hold 32.0 MiB",
        );
    }

    #[test]
    fn a_full_disk_names_the_path() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        check(
            Error::io("write", Path::new("/s/x"), full),
            Code::ResourceExhausted,
            "/s/x",
        );
        let full = FetchError::DiskFull {
            path: "/s".into(),
            needed_bytes: 3 << 20,
            available_bytes: 1 << 20,
        };
        check(fetch(full), Code::ResourceExhausted, "3.0 MiB");
    }
}
