//! Condition types of Models, Adapters and TrainingJobs, and their reasons.
//!
//! Reasons that come from elsewhere are passed on as they are: the registry's from
//! `hyprstream_contract::registry::reason`, a worker's from its last words and from what it says of its
//! adapters.

/// The reference names a commit, and that commit lies complete and verified on the registry.
pub const SOURCE_RESOLVED: &str = "SourceResolved";
/// The volume of the commit being rolled out is mounted in its pods.
pub const VOLUME_READY: &str = "VolumeReady";
/// As many workers as asked for are ready on the latest commit and spec.
pub const WORKERS_READY: &str = "WorkersReady";
/// Requests are answered (or none are wanted: `replicas: 0`). Stays True while another commit is
/// being rolled out or has failed, as long as the old one serves.
pub const READY: &str = "Ready";
/// Work is under way that needs no edit.
pub const PROGRESSING: &str = "Progressing";
/// Nothing more happens until the user acts: an edit, a push, a credential.
pub const STALLED: &str = "Stalled";

/// An Adapter may be served: its Model is there, its name is free, and no worker refuses it.
pub const ACCEPTED: &str = "Accepted";
/// All ready workers of the Model answer with the latest commit of an Adapter.
pub const LOADED: &str = "Loaded";

/// All condition types of a Model, in the order in which they are reported.
pub const ALL: [&str; 6] = [
    READY,
    SOURCE_RESOLVED,
    VOLUME_READY,
    WORKERS_READY,
    PROGRESSING,
    STALLED,
];

/// All condition types of an Adapter, in the order in which they are reported.
pub const OF_ADAPTERS: [&str; 5] = [READY, SOURCE_RESOLVED, ACCEPTED, LOADED, STALLED];

/// A TrainingJob's pod trains.
pub const RUNNING: &str = "Running";
/// A TrainingJob is stopped until its suspend is false again; its last checkpoint is pushed.
pub const SUSPENDED: &str = "Suspended";
/// A TrainingJob has trained and told its verdict, whatever that is.
pub const COMPLETE: &str = "Complete";
/// A TrainingJob is given up.
pub const FAILED: &str = "Failed";
/// The gates of a TrainingJob are passed and its adapter is published; False: it stays on its
/// branch.
pub const GATE_PASSED: &str = "GatePassed";

/// All condition types of a TrainingJob, in the order in which they are reported.
pub const OF_TRAINING_JOBS: [&str; 6] = [
    SOURCE_RESOLVED,
    RUNNING,
    SUSPENDED,
    GATE_PASSED,
    COMPLETE,
    FAILED,
];

/// Reasons of our own.
pub mod reason {
    /// Not looked at yet.
    pub const PENDING: &str = "Pending";
    /// All is as it should be.
    pub const SUCCEEDED: &str = "Succeeded";
    /// `spec.suspend` is set.
    pub const SUSPENDED: &str = "Suspended";

    /// `SourceResolved`: objects are being downloaded to the registry.
    pub const FETCHING: &str = "Fetching";
    /// `SourceResolved`: the registry does not answer.
    pub const REGISTRY_UNREACHABLE: &str = "RegistryUnreachable";
    /// `SourceResolved`: `spec.source.secretRef` names a Secret that does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// `SourceResolved`: the Secret does not hold credentials that can be used.
    pub const INVALID_SECRET: &str = "InvalidSecret";
    /// The spec asks for something impossible.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The object cannot be read: it holds what this version does not know.
    pub const MALFORMED: &str = "Malformed";

    /// `VolumeReady`: pods wait for the volume.
    pub const MOUNTING: &str = "Mounting";
    /// `VolumeReady`: the kubelet reports that mounting fails; it is tried again.
    pub const MOUNT_FAILED: &str = "MountFailed";
    /// `VolumeReady`: pods have it.
    pub const MOUNTED: &str = "Mounted";
    /// `VolumeReady`: the claim is bound, and no pod asks for it yet.
    pub const BOUND: &str = "Bound";

    /// `Ready`, `WorkersReady`: `replicas` is 0.
    pub const IDLE: &str = "Idle";
    /// `Ready`: at least one worker answers.
    pub const SERVING: &str = "Serving";
    /// `WorkersReady`, `Progressing`: new workers start.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// `WorkersReady`: all of them.
    pub const ALL_READY: &str = "AllReady";
    /// `WorkersReady`: fewer than asked for, no rollout under way.
    pub const REPLICAS_MISSING: &str = "ReplicasMissing";
    /// Pods cannot be scheduled.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The workers' image cannot be pulled.
    pub const IMAGE_PULL_FAILED: &str = "ImagePullFailed";
    /// A worker ended again and again without saying why.
    pub const CRASH_LOOP: &str = "CrashLoop";
    /// `rollout.progressDeadlineSeconds` went by without a ready worker.
    pub const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
    /// Pods are refused by the API server: a quota, an admission policy.
    pub const PODS_REFUSED: &str = "PodsRefused";

    /// `Stalled`, `Progressing`: the latest commit failed; the last good one serves.
    pub const COMMIT_FAILED: &str = "CommitFailed";
    /// `Progressing`: the last good commit is being restored.
    pub const ROLLING_BACK: &str = "RollingBack";
    /// `Progressing`: a release's change of the workers waits until other Models have theirs.
    pub const WAITING_FOR_TURN: &str = "WaitingForTurn";
    /// An object of the name that we need belongs to someone else.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// `Ready`: no worker answers.
    pub const NO_WORKERS: &str = "NoWorkers";
    /// The API server refused or failed a request of ours.
    pub const API_ERROR: &str = "APIError";
    /// `Stalled`: it is not.
    pub const NOT_STALLED: &str = "NotStalled";
    /// `Progressing`: nothing is left to do.
    pub const UP_TO_DATE: &str = "UpToDate";
    /// `Progressing`: a step failed and is tried again.
    pub const RETRYING: &str = "Retrying";

    /// `Accepted`: there is no Model of that name (yet).
    pub const MODEL_NOT_FOUND: &str = "ModelNotFound";
    /// `Accepted`: another Adapter of the Model, or the Model, has the served name.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// `Accepted`: the Model has as many Adapters as there may be.
    pub const TOO_MANY_ADAPTERS: &str = "TooManyAdapters";
    /// `Accepted`: the workers of the Model are told of it.
    pub const LISTED: &str = "Listed";
    /// `Loaded`: the workers that lack it are fetching or reading it.
    pub const LOADING: &str = "Loading";
    /// `Loaded`: all ready workers answer with it.
    pub const ALL_LOADED: &str = "AllLoaded";
    /// `Loaded`: a ready worker does not say which adapters it has.
    pub const WORKER_UNREACHABLE: &str = "WorkerUnreachable";
    /// `Ready`: all workers answer with an adapter of that name, some of them with the one before.
    pub const SWAPPING: &str = "Swapping";
}
