//! From a folder to a state.

use std::{fs, path::Path};

use safetensors::{Dtype, SafeTensors};

use super::{
    CheckpointError, Checkpoints, Latest,
    manifest::{Manifest, layout},
    write::{BEST, CURSOR, FIRST, SECOND, STATE, VALUES},
};
use crate::{optimiser::Moments, trainer::State};

pub(super) fn latest(checkpoints: &Checkpoints) -> Result<Latest, CheckpointError> {
    let mut latest = Latest::default();
    for written in checkpoints.all()? {
        match state(checkpoints, &written.path) {
            Ok(state) => {
                latest.found = Some((written, state));
                break;
            }
            Err(error @ CheckpointError::Damaged { .. }) => {
                latest.passed_over.push((written.path, error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(latest)
}

fn state(checkpoints: &Checkpoints, path: &Path) -> Result<State, CheckpointError> {
    let damaged = |why: String| CheckpointError::Damaged {
        path: path.to_owned(),
        why,
    };
    let manifest = Manifest::check(path).map_err(damaged)?;
    if manifest.layout != layout(&checkpoints.parameters) {
        return Err(CheckpointError::OtherLayout {
            path: path.to_owned(),
        });
    }
    let read =
        |name: &str| fs::read(path.join(name)).map_err(|error| damaged(format!("{name}: {error}")));
    let cursor = serde_json::from_slice(&read(CURSOR)?)
        .map_err(|error| damaged(format!("{CURSOR}: {error}")))?;
    let bytes = read(STATE)?;
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|error| damaged(format!("{STATE}: {error}")))?;
    let numbers = |name: &str| {
        let tensor = tensors.tensor(name).ok()?;
        let right = tensor.dtype() == Dtype::F32 && tensor.shape() == [checkpoints.parameters.len];
        let values = tensor.data().chunks_exact(4);
        right.then(|| {
            values
                .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))
                .collect::<Vec<f32>>()
        })
    };
    let needed = |name| numbers(name).ok_or_else(|| damaged(format!("{STATE} lacks {name}")));
    Ok(State {
        values: needed(VALUES)?,
        moments: Moments {
            first: needed(FIRST)?,
            second: needed(SECOND)?,
        },
        best_values: numbers(BEST),
        cursor,
    })
}
