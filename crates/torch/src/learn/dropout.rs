//! What falls out of the input of an A.

use std::thread;

use hyprstream_models::adapter::Site;
use hyprstream_training::Dropout;
use tch::{Device, TchError, Tensor};

use super::packed::Place;

/// Columns that one draw is about.
const QUAD: usize = 4;

/// What the input of `site` is multiplied by, `[places, columns]`: 0 for what falls out and
/// `1 / (1 - probability)` for the rest; `None` without dropout.
pub(super) fn factors(
    dropout: Dropout,
    site: Site,
    places: &[Place],
    columns: usize,
    device: Device,
    threads: usize,
) -> Result<Option<Tensor>, TchError> {
    if dropout.probability == 0.0 {
        return Ok(None);
    }
    let mut factors = vec![0.0_f32; places.len() * columns];
    let rows = places.len().div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        for (places, factors) in places.chunks(rows).zip(factors.chunks_mut(rows * columns)) {
            scope.spawn(move || {
                for (place, row) in places.iter().zip(factors.chunks_mut(columns)) {
                    for (quad, row) in row.chunks_mut(QUAD).enumerate() {
                        fill(row, dropout, site, *place, quad as u32);
                    }
                }
            });
        }
    });
    let factors = Tensor::f_from_slice(&factors)?.f_view([-1, columns as i64])?;
    factors.f_to_device(device).map(Some)
}

/// The factor of one column for each of `places`, whose index is `tokens`': the input of the
/// embedding has one column that is not 0.
pub(super) fn factors_of_tokens(
    dropout: Dropout,
    places: &[Place],
    tokens: &[i64],
    device: Device,
) -> Result<Option<Tensor>, TchError> {
    if dropout.probability == 0.0 {
        return Ok(None);
    }
    let each = places.iter().zip(tokens).map(|(place, token)| {
        let (quad, column) = (*token as usize / QUAD, *token as usize % QUAD);
        let mut factors = [0.0; QUAD];
        fill(&mut factors, dropout, Site::Embedding, *place, quad as u32);
        factors[column]
    });
    let factors = Tensor::f_from_slice(&each.collect::<Vec<f32>>())?.f_view([-1, 1])?;
    factors.f_to_device(device).map(Some)
}

fn fill(factors: &mut [f32], dropout: Dropout, site: Site, place: Place, quad: u32) {
    let kept = 1.0 / (1.0 - dropout.probability);
    let draws = dropout.draw(place.sample, site, place.position, quad);
    for (factor, draw) in factors.iter_mut().zip(draws) {
        *factor = if draw < dropout.probability {
            0.0
        } else {
            kept
        };
    }
}
