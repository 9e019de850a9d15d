//! Numbers as people and programs read them in a status.

use std::collections::BTreeMap;

use hyprstream_api::{CurvePoint, TrainingMetric};
use hyprstream_contract::training::Point;

/// Digits that count.
const DIGITS: i32 = 6;

/// A decimal number of six digits that count, without an exponent.
pub(super) fn decimal(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0" } else { "NaN" }.to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let places = (DIGITS - 1 - magnitude).clamp(0, 15);
    let text = format!("{value:.*}", usize::try_from(places).unwrap_or_default());
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Those that are numbers, by name.
pub(super) fn figures(metrics: &BTreeMap<String, f64>) -> Vec<TrainingMetric> {
    let finite = metrics.iter().filter(|(_, value)| value.is_finite());
    finite
        .map(|(name, value)| TrainingMetric {
            name: name.clone(),
            value: decimal(*value),
        })
        .collect()
}

/// The curve.
pub(super) fn curve(points: &[Point]) -> Vec<CurvePoint> {
    points
        .iter()
        .map(|point| CurvePoint {
            step: i64::try_from(point.step).unwrap_or(i64::MAX),
            loss: decimal(point.loss),
            eval_loss: point.eval_loss.map(decimal),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_six_digits_that_count_and_no_exponent() {
        for (value, text) in [
            (0.0, "0"),
            (2e-4, "0.0002"),
            (1.234_567_8, "1.23457"),
            (-0.5, "-0.5"),
            (123_456_789.0, "123456789"),
            (1e-7, "0.0000001"),
            (100.0, "100"),
        ] {
            assert_eq!(decimal(value), text);
        }
    }
}
