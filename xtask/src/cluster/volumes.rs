//! Lets pods of any user write to the volumes that the controller-manager makes.

use std::{fs, mem::MaybeUninit, os::unix::fs::PermissionsExt, path::Path, thread};

use anyhow::{Context, Result};
use rustix::fs::inotify;

/// Opens every folder that is or comes into `dir` to all users, as a pod's `fsGroup` would, which
/// Kubernetes does not apply to volumes of this kind.
pub(crate) fn open_to_all(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, dir, inotify::WatchFlags::CREATE)
        .with_context(|| format!("cannot watch {}", dir.display()))?;
    for entry in fs::read_dir(dir)?.flatten() {
        open(&entry.path());
    }
    let dir = dir.to_owned();
    thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(watch, &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        if let Some(Ok(name)) = event.file_name().map(std::ffi::CStr::to_str) {
                            open(&dir.join(name));
                        }
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        eprintln!("{} is no longer watched: {error}", dir.display());
                        return;
                    }
                }
            }
        })?;
    Ok(())
}

fn open(path: &Path) {
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o777)) {
        eprintln!("cannot open {} to all: {error}", path.display());
    }
}
