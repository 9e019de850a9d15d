//! Views by the program `fuse-overlayfs`, for those who may not mount.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    Driver, Kind, StorageError, View, mount,
    overlay::{check_kept, folders, own_mount, prepare, unmount_error},
    remove_empty, remove_folder,
};

/// Mounts by `fuse-overlayfs`, whose process serves the view until it is hidden.
///
/// Slower than [`super::Overlay2`], and its paths may hold no `:`, `,` or `\`, which that program
/// takes for separators.
#[derive(Clone, Copy, Debug)]
pub struct FuseOverlay;

const PROGRAM: &str = "fuse-overlayfs";

impl Driver for FuseOverlay {
    fn kind(&self) -> Kind {
        Kind::FuseOverlay
    }

    fn is_mount(&self) -> bool {
        true
    }

    fn create(&self, view: &View<'_>) -> Result<(), StorageError> {
        prepare(view)?;
        self.show(view)
    }

    fn is_shown(&self, view: &View<'_>) -> Result<bool, StorageError> {
        Ok(own_mount(view, |found| {
            found.kind.starts_with("fuse.") && found.source == PROGRAM
        })?
        .is_some())
    }

    fn show(&self, view: &View<'_>) -> Result<(), StorageError> {
        if self.is_shown(view)? {
            return Ok(());
        }
        check_kept(view)?;
        let options = options(view)?;
        run(
            PROGRAM,
            &["-o".as_ref(), options.as_ref(), view.target.as_ref()],
        )
    }

    fn hide(&self, view: &View<'_>) -> Result<(), StorageError> {
        while self.is_shown(view)? {
            match mount::unmount(view.target, false) {
                Ok(()) => {}
                // Whoever may not unmount asks the helper that mounted for it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let arguments = ["-u".as_ref(), view.target.as_os_str()];
                    run("fusermount3", &arguments).or_else(|_| run("fusermount", &arguments))?;
                }
                Err(error) => return Err(unmount_error(view.target, error)),
            }
        }
        Ok(())
    }

    fn remove(&self, view: &View<'_>) -> Result<(), StorageError> {
        self.hide(view)?;
        remove_folder(view.private)?;
        remove_empty(view.target)
    }
}

fn options(view: &View<'_>) -> Result<String, StorageError> {
    let [upper, work] = folders(view);
    let text = |path: &Path| match path.to_str() {
        Some(text) if !text.contains([':', ',', '\\']) => Ok(text.to_owned()),
        _ => Err(StorageError::Program {
            program: PROGRAM,
            detail: format!("it cannot be given the path {}", path.display()),
        }),
    };
    let base = text(view.base)?;
    if !view.writable {
        return Ok(format!("lowerdir={base}"));
    }
    let (upper, work) = (text(&upper)?, text(&work)?);
    Ok(format!("lowerdir={base},upperdir={upper},workdir={work}"))
}

/// Runs a program that ends once it has mounted or unmounted.
fn run(program: &'static str, arguments: &[&std::ffi::OsStr]) -> Result<(), StorageError> {
    let failed = |detail: String| StorageError::Program { program, detail };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!("{} ({})", said.trim(), output.status)))
}
