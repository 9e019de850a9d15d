//! How much memory a GPU has left.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

/// Bytes that are free on a GPU. `None` if its runtime does not say.
pub(crate) fn available_bytes(device: tch::Device) -> Option<u64> {
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
