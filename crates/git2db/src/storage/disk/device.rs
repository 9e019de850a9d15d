//! Loop devices: block devices whose content is a file.
//!
//! <https://man7.org/linux/man-pages/man4/loop.4.html>

// Safety: the kernel's interface to loop devices is made of ioctls, which nobody wraps.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat},
    ioctl::{Getter, Ioctl, IoctlOutput, Opcode, Setter, ioctl},
};

const CONTROL: &str = "/dev/loop-control";
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;
/// The device is let go of with its last user.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Past the page cache, which holds what lies above already.
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Major number of loop devices.
const MAJOR: u32 = 7;
/// How often another may take the device that was free.
const TRIES: u32 = 32;

/// A device that shows a file, for as long as this is held or it is mounted.
pub(super) struct Device {
    /// Its path.
    pub(super) path: PathBuf,
    file: File,
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const NO_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// Answers with its return value.
struct GetFree;

// SAFETY: the opcode takes no argument and writes nowhere.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| rustix::io::Errno::INVAL)
    }
}

/// The device of the file `path`: one that has it already, or else a free one.
pub(super) fn of(path: &Path) -> io::Result<Device> {
    let file = File::options().read(true).write(true).open(path)?;
    if let Some(device) = existing(&file)? {
        return Ok(device);
    }
    let control = File::options().read(true).write(true).open(CONTROL)?;
    for _ in 0..TRIES {
        // SAFETY: as `GetFree` says.
        let number = unsafe { ioctl(&control, GetFree) }?;
        let device = open(number)?;
        let config = Config {
            fd: file.as_raw_fd() as u32,
            block_size: 0,
            info: Info {
                flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
                ..NO_INFO
            },
            reserved: [0; 8],
        };
        // SAFETY: the opcode reads a `struct loop_config`, which `Config` is.
        match unsafe { ioctl(&device.file, Setter::<LOOP_CONFIGURE, Config>::new(config)) } {
            Ok(()) => return Ok(device),
            // Another was faster.
            Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("others take every free one"))
}

/// The device that shows the file already, of whichever mount.
fn existing(file: &File) -> io::Result<Option<Device>> {
    let found = file.metadata()?;
    let entries = match fs::read_dir("/sys/block") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
        let Some(Ok(number)) = number.map(str::parse) else {
            continue;
        };
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let device = open(number)?;
        // SAFETY: the opcode writes a `struct loop_info64`, which `Info` is, of integers alone.
        let info = unsafe { ioctl(&device.file, Getter::<LOOP_GET_STATUS64, Info>::new()) };
        // One that was let go of meanwhile has none.
        if info.is_ok_and(|info| (info.device, info.inode) == (encoded(found.dev()), found.ino())) {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// A device number as the kernel tells it in `lo_device`.
fn encoded(device: u64) -> u64 {
    let (major, minor) = (
        u64::from(rustix::fs::major(device)),
        u64::from(rustix::fs::minor(device)),
    );
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Opens a loop device. A container's `/dev` lacks those that came after its start.
fn open(number: u32) -> io::Result<Device> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let open = || File::options().read(true).write(true).open(&path);
    let opened = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = Mode::RUSR | Mode::WUSR;
            let device = makedev(MAJOR, number);
            mknodat(CWD, &path, FileType::BlockDevice, mode, device)?;
            open()?
        }
        other => other?,
    };
    Ok(Device { path, file: opened })
}
