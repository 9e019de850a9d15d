//! libtorch's exceptions as errors of loading, of steps and of batches to train.

use hyprstream_engine::BackendError;
use hyprstream_models::LoadError;
use hyprstream_training::LearnError;
use tch::TchError;

/// For `map_err` of a call into libtorch while loading.
pub(crate) fn load_error(doing: &'static str) -> impl Fn(TchError) -> LoadError {
    move |source| {
        if is_out_of_memory(&source) {
            LoadError::OutOfMemory(format!(
                "out of memory while {doing}: {}",
                first_line(&source)
            ))
        } else {
            LoadError::Backend {
                doing,
                source: Box::new(source),
            }
        }
    }
}

/// The engine's view of an exception during a step.
pub(crate) fn step_error(error: &TchError) -> BackendError {
    let text = error.to_string();
    if sticks(&text) && !says_out_of_memory(&text) {
        BackendError::Fatal(first_line(error))
    } else {
        BackendError::Step(first_line(error))
    }
}

/// The trainer's view of an exception while a batch of so many tokens was computed.
pub(crate) fn learn_error(error: &TchError, tokens: usize) -> LearnError {
    let message = first_line(error);
    if is_out_of_memory(error) {
        LearnError::OutOfMemory { tokens, message }
    } else {
        LearnError::Fatal(message)
    }
}

/// Whether every later step would fail as well: errors of a kernel or of the driver stick to the
/// context, and the libraries on top of it report them in words of their own
/// (`c10/cuda/CUDAException.h`, `ATen/cuda/Exceptions.h`, `ATen/native/cudnn`).
fn sticks(text: &str) -> bool {
    [
        "CUDA error",
        "CUDA driver error",
        "CUDA kernel errors",
        "CUBLAS error",
        "cuBLAS error",
        "CUSOLVER error",
        "cuDNN error",
        "CUDNN_STATUS",
        "CUBLAS_STATUS",
        "NCCL error",
        "NVML",
        "HIP error",
        "HIPBLAS",
        "hipBLAS",
        "ROCBLAS",
        "rocBLAS",
        "MIOpen",
        "miopen",
    ]
    .iter()
    .any(|words| text.contains(words))
}

pub(crate) fn is_out_of_memory(error: &TchError) -> bool {
    says_out_of_memory(&error.to_string())
}

/// Memory that is not there for one step says nothing of the next. The allocations of cuBLAS and
/// cuDNN fail in their own words.
fn says_out_of_memory(text: &str) -> bool {
    [
        "out of memory",
        "not enough memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "HIPBLAS_STATUS_ALLOC_FAILED",
        "rocblas_status_memory_error",
        "miopenStatusAllocFailed",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// The text carries a C++ stack trace after the first line.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, fatal: bool) {
        let error = TchError::Torch(format!(
            "{text}\nException raised from here (most recent call)"
        ));
        let told = step_error(&error);
        assert_eq!(matches!(told, BackendError::Fatal(_)), fatal, "{text}");
        assert!(told.to_string().ends_with(text), "{told}");
    }

    #[test]
    fn a_batch_may_be_smaller_only_where_memory_was_not_there() {
        let error = |text: &str| learn_error(&TchError::Torch(text.into()), 7);
        let memory =
            error("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory");
        assert!(matches!(memory, LearnError::OutOfMemory { tokens: 7, .. }));
        let other = error("The size of tensor a (3) must match the size of tensor b (4)");
        assert!(matches!(other, LearnError::Fatal(_)));
    }

    #[test]
    fn errors_that_stick_to_the_device_end_the_backend() {
        for text in [
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: device-side assert triggered",
            "CUDA driver error: unspecified launch failure",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle)`",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "HIP error: an illegal memory access was encountered",
            "MIOpen Error: miopenStatusInternalError",
        ] {
            check(text, true);
        }
    }

    #[test]
    fn memory_that_is_not_there_and_exceptions_fail_one_step() {
        for text in [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
            "CUDA error: out of memory",
            "CUDA driver error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "HIP out of memory. Tried to allocate 20.00 MiB",
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory",
            "The size of tensor a (3) must match the size of tensor b (4)",
        ] {
            check(text, false);
        }
    }
}
