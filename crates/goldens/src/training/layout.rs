//! An adapter as one flat array of numbers.

use std::ops::Range;

use hyprstream_models::adapter::{Adapter, Matrix, Site};
use hyprstream_training::{Parameters, Part};

/// Where the numbers of an adapter lie, and the numbers: part after part A, B, magnitude, and an A
/// that parts share with the first of them.
pub fn laid_out(adapter: &Adapter) -> (Parameters, Vec<f32>) {
    let mut values = Vec::new();
    let mut append = |numbers: &[f32]| {
        let from = values.len();
        values.extend_from_slice(numbers);
        from..values.len()
    };
    let mut shared: Vec<(&Matrix, Range<usize>)> = Vec::new();
    let mut parts = Vec::new();
    for (site, part) in adapter.parts() {
        let known = shared.iter().find(|(matrix, _)| matrix.is(&part.a));
        let known = known.map(|(_, range)| range.clone());
        let a = known.unwrap_or_else(|| {
            let range = append(part.a.values());
            shared.push((&part.a, range.clone()));
            range
        });
        parts.push(Part {
            site,
            rank: part.rank(),
            scaling: part.scaling,
            a,
            b: append(part.b.values()),
            magnitude: part.magnitude.as_ref().map(|values| append(values)),
        });
    }
    let len = values.len();
    (Parameters { parts, len }, values)
}

/// A matrix whose gradient is farthest from what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    /// Whose.
    pub site: Site,
    /// `A`, `B` or `m`.
    pub factor: char,
    /// Length of the difference by the length of what it must be; not a number where one is none.
    pub error: f64,
}

/// The matrix of which `ours` is farthest from `theirs`, both laid out as `parameters`. All that
/// parts share is compared as one.
///
/// # Panics
/// When one has another length.
#[track_caller]
pub fn worst_gradient(parameters: &Parameters, ours: &[f32], theirs: &[f32]) -> Worst {
    assert_eq!((ours.len(), theirs.len()), (parameters.len, parameters.len));
    let mut worst: Option<Worst> = None;
    for part in &parameters.parts {
        let ranges = [
            ('A', Some(&part.a)),
            ('B', Some(&part.b)),
            ('m', part.magnitude.as_ref()),
        ];
        for (factor, range) in ranges {
            let Some(range) = range else { continue };
            let error = distance(&ours[range.clone()], &theirs[range.clone()]);
            if worst.as_ref().is_none_or(|worst| error > worst.error) || error.is_nan() {
                worst = Some(Worst {
                    site: part.site,
                    factor,
                    error,
                });
            }
            if error.is_nan() {
                return worst.unwrap();
            }
        }
    }
    worst.unwrap()
}

fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
    let pairs = ours.iter().zip(theirs);
    let difference = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let length = square(&mut theirs.iter().map(|x| f64::from(*x)));
    // What must be 0 is compared as it is.
    (if length > 0.0 {
        difference / length
    } else {
        difference
    })
    .sqrt()
}
