//! From a state to a folder.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use hyprstream_models::adapter::AdapterFiles;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

#[cfg(test)]
use super::kills::point;
use super::{
    ASIDE, CheckpointError, Checkpoints, OLD, Written,
    manifest::{MANIFEST, Manifest},
    of, path,
};
use crate::{layout, trainer::State};

pub(super) const TENSORS: &str = "adapter_model.safetensors";
pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const STATE: &str = "state.safetensors";
pub(super) const CURSOR: &str = "cursor.json";
pub(super) const VALUES: &str = "values";
pub(super) const FIRST: &str = "first";
pub(super) const SECOND: &str = "second";
pub(super) const BEST: &str = "best";

/// Where tests kill the process.
#[cfg(not(test))]
fn point() {}

pub(super) fn write(to: &Checkpoints, state: &State) -> Result<Written, CheckpointError> {
    if let Some(index) = state.values.iter().position(|value| !value.is_finite()) {
        return Err(CheckpointError::NotFinite { index });
    }
    let written = Written {
        step: state.cursor.step,
        path: to.path(state.cursor.step),
    };
    let aside = to.folder.join(format!("{ASIDE}{}", written.step));
    let done = fill(to, state, &aside).and_then(|()| rename(to, &aside, &written));
    if done.is_err() {
        // What is there in half is of no use; the error says what happened.
        drop(fs::remove_dir_all(&aside));
    }
    done?;
    prune(to)?;
    Ok(written)
}

/// All files of a checkpoint, synced, in a new folder `aside`.
fn fill(to: &Checkpoints, state: &State, aside: &Path) -> Result<(), CheckpointError> {
    if aside.exists() {
        fs::remove_dir_all(aside).map_err(of("deleted", aside))?;
    }
    fs::create_dir(aside).map_err(of("made", aside))?;
    point();
    let files = AdapterFiles {
        tensors: aside.join(TENSORS),
        config: aside.join(CONFIG),
    };
    let adapter = layout::adapter(&to.parameters, &state.values, &to.config, to.base.clone());
    adapter
        .write(&files, &to.config)
        .map_err(CheckpointError::Adapter)?;
    point();
    check_adapter(&files.tensors, state.values.len())?;
    let store = |name: &str, bytes: &[u8]| {
        let path = aside.join(name);
        let stored = File::create(&path).and_then(|mut file| {
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            file.write_all(first)?;
            point();
            file.write_all(rest)?;
            file.sync_all()
        });
        point();
        stored.map_err(of("written", &path))
    };
    store(STATE, &numbers(state))?;
    let cursor = serde_json::to_vec_pretty(&state.cursor).expect("it is of texts and numbers");
    store(CURSOR, &cursor)?;
    let names = [TENSORS, CONFIG, STATE, CURSOR];
    let manifest = Manifest::of(aside, &names, &to.parameters).map_err(of("read back", aside))?;
    let manifest = serde_json::to_vec_pretty(&manifest).expect("it is of texts and numbers");
    store(MANIFEST, &manifest)?;
    sync(aside)
}

/// The numbers that the run goes on with, as safetensors.
fn numbers(state: &State) -> Vec<u8> {
    let mut all = vec![
        (VALUES, &state.values),
        (FIRST, &state.moments.first),
        (SECOND, &state.moments.second),
    ];
    all.extend(state.best_values.as_ref().map(|values| (BEST, values)));
    let bytes: Vec<(&str, Vec<u8>)> = all
        .into_iter()
        .map(|(name, values)| (name, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views: Vec<(&str, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, bytes)| {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
            (*name, view.expect("four bytes each"))
        })
        .collect();
    safetensors::serialize(views, None::<HashMap<String, String>>).expect("views are of their size")
}

/// Refuses a file of tensors from which nothing, or no number, could be read.
fn check_adapter(path: &Path, least: usize) -> Result<(), CheckpointError> {
    let bytes = fs::read(path).map_err(of("read back", path))?;
    let damaged = |why: String| CheckpointError::Damaged {
        path: path.to_owned(),
        why,
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let mut count = 0;
    for (name, tensor) in tensors.iter() {
        let values = tensor.data().chunks_exact(4);
        count += values.len();
        let mut values = values.map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
        if tensor.dtype() != Dtype::F32 || tensor.data().is_empty() {
            return Err(damaged(format!("{name} is empty, or not of f32")));
        }
        if !values.all(f32::is_finite) {
            return Err(damaged(format!("{name} holds what is no finite number")));
        }
    }
    if count < least {
        return Err(damaged(format!("it has {count} of {least} numbers")));
    }
    Ok(())
}

/// Gives the folder its name, in place of a damaged one that may have it.
fn rename(to: &Checkpoints, aside: &Path, written: &Written) -> Result<(), CheckpointError> {
    let path = &written.path;
    if path.exists() {
        let old = to.folder.join(format!("{OLD}{}", written.step));
        fs::rename(path, &old).map_err(of("moved", path))?;
        point();
        fs::rename(aside, path).map_err(of("renamed", aside))?;
        point();
        fs::remove_dir_all(&old).map_err(of("deleted", &old))?;
    } else {
        fs::rename(aside, path).map_err(of("renamed", aside))?;
    }
    point();
    sync(&to.folder)
}

/// Deletes the folder of this name, which a process left aside that was killed, or puts it back where
/// it is a whole checkpoint that had been taken away for another of its step which is not there.
pub(super) fn clear(folder: &Path, name: &str) -> Result<(), CheckpointError> {
    let aside = folder.join(name);
    let step = name.strip_prefix(OLD).and_then(|step| step.parse().ok());
    let place = step.map(|step| path(folder, step));
    match place {
        Some(place) if !place.exists() && Manifest::check(&aside).is_ok() => {
            fs::rename(&aside, &place).map_err(of("moved", &aside))
        }
        _ => fs::remove_dir_all(&aside).map_err(of("deleted", &aside)),
    }
}

/// Deletes the oldest.
fn prune(to: &Checkpoints) -> Result<(), CheckpointError> {
    for old in to.all()?.into_iter().skip(to.keep) {
        // Another name first, so that none is there in half.
        let aside = to.folder.join(format!("{OLD}{}", old.step));
        fs::rename(&old.path, &aside).map_err(of("moved", &old.path))?;
        point();
        fs::remove_dir_all(&aside).map_err(of("deleted", &aside))?;
        point();
    }
    Ok(())
}

fn sync(folder: &Path) -> Result<(), CheckpointError> {
    let synced: io::Result<()> = File::open(folder).and_then(|file| file.sync_all());
    synced.map_err(of("synced", folder))
}
