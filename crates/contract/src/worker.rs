//! What the operator and a worker pod agree on.

use serde::{Deserialize, Serialize};

/// Where the operator mounts the model's volume.
pub const MODEL_DIR: &str = "/model";
/// Where the operator mounts the volume of the Model's adapters, an
/// [`crate::adapters::AdapterFolder`].
pub const ADAPTERS_DIR: &str = "/adapters";
/// Port of the worker's HTTP server; its name in the pod and the Service is [`PORT_NAME`].
pub const PORT: u16 = 8000;
/// Name of [`PORT`].
pub const PORT_NAME: &str = "http";
/// Port on which workers speak TLS, where the installation has it; its name in the pod and the
/// Service is [`TLS_PORT_NAME`]. A pod that names it speaks TLS there, whatever its release.
pub const TLS_PORT: u16 = 8443;
/// Name of [`TLS_PORT`].
pub const TLS_PORT_NAME: &str = "https";
/// Where the operator mounts the certificate that a worker shows, see [`crate::worker_tls`].
pub const TLS_DIR: &str = "/etc/hyprstream-tls";
/// Name of the worker's container.
pub const CONTAINER: &str = "worker";
/// Path that answers 200 while the engine lives.
pub const HEALTH_PATH: &str = "/health";
/// Path that answers 200 once the model is loaded and until the worker drains.
pub const READY_PATH: &str = "/ready";

/// Largest request body in bytes that a worker takes, and so the largest that the gateway does.
pub const MAX_BODY_BYTES: usize = 16 << 20;

/// Environment variables of the worker; each is a flag of `serve` as well.
pub mod env {
    /// Directory of the Hugging Face folder (`--model`).
    pub const MODEL: &str = "HYPRSTREAM_MODEL";
    /// Name of the Model (`--name`).
    pub const NAME: &str = "HYPRSTREAM_NAME";
    /// Namespace of the Model (`--namespace`).
    pub const NAMESPACE: &str = "HYPRSTREAM_NAMESPACE";
    /// Port to listen on (`--port`).
    pub const PORT: &str = "HYPRSTREAM_PORT";
    /// File with the certificate to show (`--tls-cert`).
    pub const TLS_CERT: &str = "HYPRSTREAM_TLS_CERT";
    /// File with its key (`--tls-key`).
    pub const TLS_KEY: &str = "HYPRSTREAM_TLS_KEY";
    /// Port for TLS beside one for plain HTTP (`--tls-port`).
    pub const TLS_PORT: &str = "HYPRSTREAM_TLS_PORT";
    /// `auto`, `cpu`, `cuda` or `cuda:N` (`--device`).
    pub const DEVICE: &str = "HYPRSTREAM_DEVICE";
    /// `auto`, `float32`, `float16` or `bfloat16` (`--dtype`).
    pub const DTYPE: &str = "HYPRSTREAM_DTYPE";
    /// `none`, `int8` or `int4` (`--quantization`).
    pub const QUANTIZATION: &str = "HYPRSTREAM_QUANTIZATION";
    /// Longest prompt plus answer in tokens (`--max-model-len`).
    pub const MAX_MODEL_LEN: &str = "HYPRSTREAM_MAX_MODEL_LEN";
    /// Most requests in one step (`--max-batch`).
    pub const MAX_BATCH: &str = "HYPRSTREAM_MAX_BATCH";
    /// File with the key that requests must show (`--api-key-file`).
    pub const API_KEY_FILE: &str = "HYPRSTREAM_API_KEY_FILE";
    /// Threads of the CPU backend (`--threads`).
    pub const THREADS: &str = "HYPRSTREAM_THREADS";
    /// Directory whose adapters are served (`--adapters`).
    pub const ADAPTERS: &str = "HYPRSTREAM_ADAPTERS";
    /// `true` or `false`: whether those in the folder `adapters` of the model are served too
    /// (`--repository-adapters`).
    pub const REPOSITORY_ADAPTERS: &str = "HYPRSTREAM_REPOSITORY_ADAPTERS";
    /// Memory of adapters that are ready to compute with, in bytes (`--adapter-memory-bytes`).
    pub const ADAPTER_MEMORY_BYTES: &str = "HYPRSTREAM_ADAPTER_MEMORY_BYTES";
    /// Most adapters that are ready to compute with (`--max-adapters`).
    pub const MAX_ADAPTERS: &str = "HYPRSTREAM_MAX_ADAPTERS";
    /// Largest rank (`--max-adapter-rank`).
    pub const MAX_ADAPTER_RANK: &str = "HYPRSTREAM_MAX_ADAPTER_RANK";
}

/// Exit status of a worker that refuses the model: another start on the same commit and options
/// fails in the same way.
pub const EXIT_MODEL_REFUSED: i32 = 65;

/// Where a worker leaves its [`LastWords`]; the kubelet copies them into the pod's status.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Why a worker ended, in its container's termination message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastWords {
    /// CamelCase, for a condition: `UnsupportedArchitecture`, `InvalidWeights`, `InvalidConfig`,
    /// `MissingFile`, `InvalidTokenizer`, `OutOfMemory`, `UnavailableDevice`, `EngineDied`, `InternalError`.
    pub reason: String,
    /// A sentence for the user of the Model.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_survive_the_round_trip() {
        let words = LastWords {
            reason: "InvalidWeights".into(),
            message: "header".into(),
        };
        let text = serde_json::to_string(&words).unwrap();
        assert_eq!(text, r#"{"reason":"InvalidWeights","message":"header"}"#);
        assert_eq!(serde_json::from_str::<LastWords>(&text).unwrap(), words);
    }
}
