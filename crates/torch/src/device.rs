//! Where a model runs.

use std::{fmt, str::FromStr};

use hyprstream_models::LoadError;

/// Where a model runs, as asked for.
///
/// The program links only the CPU's libraries. Those of CUDA or ROCm are opened when the program
/// starts if they lie on the library path, so that one binary serves both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, or the CPU if there is none.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index; ROCm's have the same name in libtorch.
    Cuda(usize),
}

/// The text names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device: auto, cpu, cuda or cuda:N is needed")]
pub struct InvalidDevice(String);

impl FromStr for Device {
    type Err = InvalidDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .filter(|index| *index < 64)
                .map(Self::Cuda)
                .ok_or_else(|| InvalidDevice(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl Device {
    /// The device that this stands for on this machine.
    pub(crate) fn resolve(self) -> Result<tch::Device, LoadError> {
        if self == Self::Cpu {
            return Ok(tch::Device::Cpu);
        }
        let library = open_gpu_library();
        let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        match (self, library) {
            (Self::Auto, _) if count == 0 => Ok(tch::Device::Cpu),
            (Self::Auto, _) => Ok(tch::Device::Cuda(0)),
            (Self::Cuda(index), _) if index < count => Ok(tch::Device::Cuda(index)),
            (asked, Err(why)) => Err(LoadError::UnavailableDevice(format!(
                "the device {asked} was asked for, but this worker has no GPU libraries: {why}"
            ))),
            (asked, Ok(())) => Err(LoadError::UnavailableDevice(format!(
                "the device {asked} was asked for, but the number of GPUs here is {count}"
            ))),
        }
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
    fn devices_are_written_as_they_are_read() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:64", "CPU"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_by_name() {
        let error = Device::Cuda(63).resolve().unwrap_err();
        assert_eq!(error.reason(), "UnavailableDevice");
        assert!(error.to_string().contains("cuda:63"), "{error}");
    }
}
