//! Mounting and unmounting in the mount namespace of this process, which needs CAP_SYS_ADMIN in
//! the user namespace that owns it.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt as _, path::Path};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
        mount_bind, mount_remount, move_mount, unmount as unmount_with,
    },
};

use super::Overlay;

/// How an overlay is mounted where there is more than one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// As kernels before 6.5 need it, on any kernel.
    pub by_options: bool,
    /// The kernel keeps its notes in `user.overlay.*` attributes, which is all that it may write
    /// in a user namespace. Renaming a folder of a lower is refused then (`EXDEV`, upon which
    /// programs copy it), and changing a file's mode copies it.
    pub user_attributes: bool,
}

/// Mounts an overlay at `target`, an existing folder, with nosuid, nodev and noatime. `source` is
/// what mountinfo shows of who mounted it.
///
/// # Errors
/// The kernel refuses it.
pub fn overlay(overlay: &Overlay, target: &Path, source: &str, how: How) -> io::Result<()> {
    if how.by_options {
        return Ok(by_options(overlay, target, source, how)?);
    }
    match by_file_descriptor(overlay, target, source, how) {
        // Kernels before 6.5 take no `lowerdir+`, and before 5.2 have no fsopen at all.
        Err(Errno::INVAL | Errno::NOSYS) => by_options(overlay, target, source, how)?,
        other => other?,
    }
    Ok(())
}

/// Shows the mount at `from`, or the folder if none is there, at `to`, an existing folder, as
/// well.
///
/// # Errors
/// The kernel refuses it.
pub fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount_bind(from, to)?)
}

/// Makes the one mount at `target` read-only or writable, with nosuid, nodev and noatime; others
/// of the same filesystem keep what they have.
///
/// # Errors
/// The kernel refuses it.
pub fn set_read_only(target: &Path, read_only: bool) -> io::Result<()> {
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, read_only);
    Ok(mount_remount(target, flags, "")?)
}

/// Unmounts the topmost mount at `target`. With `detach`, also while it is in use.
///
/// # Errors
/// Nothing is mounted there, or the kernel refuses it.
pub fn unmount(target: &Path, detach: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, detach);
    Ok(unmount_with(target, flags)?)
}

/// The options beside the lowers. With `index=on` a second mount of an upper, after a crash of
/// the node, would be refused for good. `metacopy` keeps a chmod or chown of a weight file from
/// copying it, and needs `redirect_dir`; neither means anything without an upper.
fn options(overlay: &Overlay, how: How) -> Vec<(&'static str, &[u8])> {
    let mut options: Vec<(&str, &[u8])> = vec![("index", b"off")];
    if let Some(upper) = &overlay.upper {
        if !how.user_attributes {
            options.push(("redirect_dir", b"on"));
            options.push(("metacopy", b"on"));
        }
        options.push(("upperdir", upper.upper.as_os_str().as_bytes()));
        options.push(("workdir", upper.work.as_os_str().as_bytes()));
    }
    if let Some(context) = &overlay.context {
        options.push(("context", context.as_bytes()));
    }
    options
}

fn by_file_descriptor(
    overlay: &Overlay,
    target: &Path,
    source: &str,
    how: How,
) -> Result<(), Errno> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "source", source)?;
    for lower in &overlay.lowers {
        fsconfig_set_string(&filesystem, "lowerdir+", lower)?;
    }
    for (name, value) in options(overlay, how) {
        fsconfig_set_string(&filesystem, name, value)?;
    }
    if how.user_attributes {
        fsconfig_set_flag(&filesystem, "userxattr")?;
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    if overlay.upper.is_none() {
        fsconfig_set_flag(&filesystem, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&filesystem)?;
    let mount = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(
        &mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn by_options(overlay: &Overlay, target: &Path, source: &str, how: How) -> Result<(), Errno> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    flags.set(MountFlags::RDONLY, overlay.upper.is_none());
    let data = CString::new(data(overlay, how)).map_err(|_| Errno::INVAL)?;
    mount(source, target, "overlay", flags, data.as_c_str())
}

/// All options in one text.
fn data(overlay: &Overlay, how: How) -> Vec<u8> {
    let mut data = b"lowerdir=".to_vec();
    for (at, lower) in overlay.lowers.iter().enumerate() {
        if at > 0 {
            data.push(b':');
        }
        escape(lower.as_os_str().as_bytes(), b"\\:,", &mut data);
    }
    for (name, value) in options(overlay, how) {
        data.push(b',');
        data.extend(name.as_bytes());
        data.push(b'=');
        match name {
            // A label may hold commas.
            "context" => data.extend([b"\"", value, b"\""].concat()),
            _ => escape(value, b"\\,", &mut data),
        }
    }
    if how.user_attributes {
        data.extend(b",userxattr");
    }
    data
}

fn escape(value: &[u8], special: &[u8], data: &mut Vec<u8>) {
    for byte in value {
        if special.contains(byte) {
            data.push(b'\\');
        }
        data.push(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Upper, *};

    #[test]
    fn the_text_of_options_keeps_separators_that_are_part_of_a_path() {
        let mut asked = Overlay {
            lowers: vec!["/a:b".into(), "/c,d".into()],
            upper: None,
            context: Some("x:s0:c1,c2".into()),
        };
        let text = |asked: &Overlay, how| String::from_utf8(data(asked, how)).unwrap();
        assert_eq!(
            text(&asked, How::default()),
            "lowerdir=/a\\:b:/c\\,d,index=off,context=\"x:s0:c1,c2\""
        );
        asked.context = None;
        asked.upper = Some(Upper {
            upper: "/u,1".into(),
            work: "/w".into(),
        });
        let how = How {
            user_attributes: true,
            ..How::default()
        };
        assert_eq!(
            text(&asked, how),
            "lowerdir=/a\\:b:/c\\,d,index=off,upperdir=/u\\,1,workdir=/w,userxattr"
        );
    }
}
