//! Finding GPUs.

use hyprstream_models::{Device, LoadError};

/// Whether libtorch finds a GPU here.
pub fn has_gpu() -> bool {
    open_gpu_library().is_ok() && tch::Cuda::device_count() > 0
}

/// The device that `asked` stands for on this machine.
pub(crate) fn resolve(asked: Device) -> Result<tch::Device, LoadError> {
    if asked == Device::Cpu {
        return Ok(tch::Device::Cpu);
    }
    let library = open_gpu_library();
    let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
    match (asked, library) {
        (Device::Auto, _) if count == 0 => Ok(tch::Device::Cpu),
        (Device::Auto, _) => Ok(tch::Device::Cuda(0)),
        (Device::Cuda(index), _) if index < count => Ok(tch::Device::Cuda(index)),
        (asked, Err(why)) => Err(LoadError::UnavailableDevice(format!(
            "the device {asked} was asked for, but this worker has no GPU libraries: {why}"
        ))),
        (asked, Ok(())) => Err(LoadError::UnavailableDevice(format!(
            "the device {asked} was asked for, but the number of GPUs here is {count}"
        ))),
    }
}

/// Loads libtorch's GPU half, which registers itself with the CPU's half. Calling it again is
/// harmless.
#[allow(unsafe_code)]
fn open_gpu_library() -> Result<(), String> {
    let mut why = String::new();
    for name in [c"libtorch_cuda.so", c"libtorch_hip.so"] {
        // SAFETY: the name is a C string, and the initialisers of these libraries are made to be
        // run at this point: before the first use of a GPU.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !handle.is_null() {
            return Ok(());
        }
        // SAFETY: `dlerror` returns null or a C string that lives until the next call on this
        // thread.
        let error = unsafe { libc::dlerror() };
        if !error.is_null() && why.is_empty() {
            // SAFETY: as above, and it is not null.
            why = unsafe { std::ffi::CStr::from_ptr(error) }
                .to_string_lossy()
                .into_owned();
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_is_refused_by_name() {
        let error = resolve(Device::Cuda(63)).unwrap_err();
        assert_eq!(error.reason(), "UnavailableDevice");
        assert!(error.to_string().contains("cuda:63"), "{error}");
    }
}
