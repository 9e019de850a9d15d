//! Checkpoints that are carried to another place, and come back from there.

use std::{
    fs::{self, File},
    path::Path,
};

use super::{CheckpointError, OLD, Written, all, manifest::Manifest, of, path, write::CURSOR};
use crate::trainer::Cursor;

/// The newest checkpoint in `folder` whose files are what was written, of whatever run; `None` if
/// there is none, or no folder.
///
/// # Errors
/// The folder cannot be read.
pub fn newest(folder: &Path) -> Result<Option<Written>, CheckpointError> {
    if !folder.exists() {
        return Ok(None);
    }
    let whole = |written: &Written| Manifest::check(&written.path).is_ok();
    Ok(all(folder)?.into_iter().find(whole))
}

/// Makes the files in `from`, which must be those of a checkpoint and lie on the same disk, a
/// checkpoint in `folder`. One of the same step gives way. `from` is gone then.
///
/// # Errors
/// They are not whole, or cannot be moved.
pub fn adopt(from: &Path, folder: &Path) -> Result<Written, CheckpointError> {
    let damaged = |why: String| CheckpointError::Damaged {
        path: from.to_owned(),
        why,
    };
    let manifest = Manifest::check(from).map_err(damaged)?;
    for name in manifest.files.keys() {
        let file = from.join(name);
        let synced = File::open(&file).and_then(|file| file.sync_all());
        synced.map_err(of("synced", &file))?;
    }
    let cursor = fs::read(from.join(CURSOR)).map_err(|e| damaged(format!("{CURSOR}: {e}")))?;
    let cursor: Cursor =
        serde_json::from_slice(&cursor).map_err(|e| damaged(format!("{CURSOR}: {e}")))?;
    fs::create_dir_all(folder).map_err(of("made", folder))?;
    let written = Written {
        step: cursor.step,
        path: path(folder, cursor.step),
    };
    if written.path.exists() {
        let old = folder.join(format!("{OLD}{}", written.step));
        fs::rename(&written.path, &old).map_err(of("moved", &written.path))?;
        fs::remove_dir_all(&old).map_err(of("deleted", &old))?;
    }
    fs::rename(from, &written.path).map_err(of("renamed", from))?;
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(of("synced", folder))?;
    Ok(written)
}
