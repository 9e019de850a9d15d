//! libtorch's exceptions as errors of loading and of steps.

use hyprstream_engine::BackendError;
use hyprstream_models::LoadError;
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
    // Errors of a CUDA kernel stick to the context; running out of memory does not.
    let sticks = text.contains("CUDA error") || text.contains("HIP error");
    if sticks && !is_out_of_memory(error) {
        BackendError::Fatal(first_line(error))
    } else {
        BackendError::Step(first_line(error))
    }
}

fn is_out_of_memory(error: &TchError) -> bool {
    let text = error.to_string();
    text.contains("out of memory") || text.contains("not enough memory")
}

/// The text carries a C++ stack trace after the first line.
fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
