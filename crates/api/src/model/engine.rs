use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of the inference engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.quantization) || self.quantization == 'none' || self.device == 'cpu'").message("quantization needs device cpu: GPUs run weights in dtype"),
    validation = Rule::new("!(self.device == 'cpu' && self.dtype == 'float16')").message("dtype float16 needs a GPU: use auto, bfloat16 or float32 with device cpu"),
)]
pub struct Engine {
    /// What to compute on. It chooses the workers' image; GPUs are asked for in resources.
    #[serde(default)]
    pub device: Device,
    /// Number format of weights and activations. auto takes the one of the model's config.json,
    /// or the best that the device computes in.
    #[serde(default)]
    pub dtype: Dtype,
    /// Bits that the weights are kept in: none for those of dtype, int8 and int4 for groups of
    /// fewer bits made from them when a worker loads, which answer faster. Only on the CPU.
    #[serde(default, skip_serializing_if = "Quantization::is_none")]
    pub quantization: Quantization,
    /// Longest prompt plus answer in tokens. Without it, what the model was trained for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub max_model_len: Option<i32>,
    /// Most requests computed together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_batch: Option<i32>,
    /// Threads of the CPU backend. Without it, the CPU limit of the pod, or all cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
}

/// What to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU of NVIDIA.
    Cuda,
    /// A GPU of AMD.
    Rocm,
}

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Chosen by the worker.
    #[default]
    Auto,
    /// 32 bits.
    Float32,
    /// 16 bits with the exponent of 32.
    Bfloat16,
    /// 16 bits.
    Float16,
}

/// Bits that weights are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// Those of dtype.
    #[default]
    None,
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
}

impl Quantization {
    /// The name as in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Whether weights are kept as they are.
    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Device {
    /// The name as in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
        }
    }
}

impl Dtype {
    /// The name as in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }
}
