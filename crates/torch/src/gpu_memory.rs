//! How much memory a GPU has left.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ffi::{c_int, c_void},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Bytes by GPU that libtorch keeps of what was given back to it. The driver calls them used, but
/// libtorch gives them out again, and lets go of them before it fails for memory.
static KEPT: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

/// Bytes that can be had on a GPU. `None` if its runtime does not say.
pub(crate) fn available_bytes(device: tch::Device) -> Option<u64> {
    let tch::Device::Cuda(index) = device else {
        return None;
    };
    let kept = all_kept().get(&index).copied().unwrap_or(0);
    free_bytes(device).map(|free| free + kept)
}

/// Notes that `bytes` of the `available` ones were taken, and are in use.
pub(crate) fn took(device: tch::Device, available: Option<u64>, bytes: u64) {
    let (tch::Device::Cuda(index), Some(available), Some(free)) =
        (device, available, free_bytes(device))
    else {
        return;
    };
    if let Some(before) = all_kept().get_mut(&index) {
        *before = kept(available, bytes, free).min(*before);
    }
}

/// Something that takes a GPU's memory and gives it back as a whole, when this is dropped.
#[derive(Debug)]
pub(crate) struct Loan {
    device: tch::Device,
    available: Option<u64>,
}

impl Loan {
    /// Of all that is taken from now on.
    pub(crate) fn begin(device: tch::Device) -> Self {
        Self {
            device,
            available: available_bytes(device),
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let free = free_bytes(self.device);
        if let (tch::Device::Cuda(index), Some(available), Some(free)) =
            (self.device, self.available, free)
        {
            all_kept().insert(index, kept(available, 0, free));
        }
    }
}

/// What libtorch must be keeping, where `available` bytes could be had before `in_use` were taken,
/// and now the driver has `free`.
fn kept(available: u64, in_use: u64, free: u64) -> u64 {
    available.saturating_sub(in_use).saturating_sub(free)
}

fn all_kept() -> MutexGuard<'static, BTreeMap<usize, u64>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that are free on a GPU, as its driver says.
fn free_bytes(device: tch::Device) -> Option<u64> {
    type GetDevice = unsafe extern "C" fn(*mut c_int) -> c_int;
    type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;

    let tch::Device::Cuda(index) = device else {
        return None;
    };
    for [get, set, info] in [
        [c"cudaGetDevice", c"cudaSetDevice", c"cudaMemGetInfo"],
        [c"hipGetDevice", c"hipSetDevice", c"hipMemGetInfo"],
    ] {
        // SAFETY: the names are C strings; the libraries were opened for all to see.
        let [get, set, info] =
            [get, set, info].map(|name| unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) });
        if get.is_null() || set.is_null() || info.is_null() {
            continue;
        }
        // SAFETY: functions of these names have these types in both runtimes.
        let (get, set, info) = unsafe {
            (
                std::mem::transmute::<*mut c_void, GetDevice>(get),
                std::mem::transmute::<*mut c_void, SetDevice>(set),
                std::mem::transmute::<*mut c_void, MemGetInfo>(info),
            )
        };
        let (mut before, mut free, mut total) = (0, 0, 0);
        // SAFETY: the pointers are to locals of the types that the functions write.
        let done = unsafe {
            get(&raw mut before) == 0
                && set(index as c_int) == 0
                && info(&raw mut free, &raw mut total) == 0
                && set(before) == 0
        };
        if done {
            return Some(free as u64);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_can_be_had_until_it_is_taken_again() {
        // Of 24 a training took 20 and gave them back, of which libtorch keeps all.
        assert_eq!(kept(24, 0, 4), 20);
        // Weights of 14 come out of those.
        assert_eq!(kept(24, 14, 4), 6);
        // Or out of the driver's, where what is kept lies in pieces.
        assert_eq!(kept(24, 14, 10), 0);
        // Others took some meanwhile.
        assert_eq!(kept(24, 14, 12), 0);
    }
}
