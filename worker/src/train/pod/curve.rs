//! The curve of losses, thinned as it grows.

use hyprstream_contract::training::{MAX_CURVE, Point};

/// At most [`MAX_CURVE`] points, each the mean of as many steps as the others.
#[derive(Debug)]
pub(super) struct Curve {
    /// Steps of a point; a power of two.
    width: u64,
    buckets: Vec<Bucket>,
}

/// The steps of a point: those whose number, divided by the width, is the same.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    last: u64,
    sum: f64,
    count: u64,
    eval_loss: Option<f64>,
}

impl Default for Curve {
    fn default() -> Self {
        Self {
            width: 1,
            buckets: Vec::new(),
        }
    }
}

impl Curve {
    /// The curve of an earlier pod up to `step`, for one that goes on from there. How many steps a
    /// point was the mean of is told by how far it is from the one before.
    pub(super) fn resumed(points: &[Point], step: u64) -> Self {
        let mut curve = Self::default();
        let mut before = 0;
        for point in points.iter().take_while(|point| point.step <= step) {
            let count = point.step.saturating_sub(before).max(1);
            before = point.step;
            curve.width = curve.width.max(count.next_power_of_two());
            curve.buckets.push(Bucket {
                last: point.step,
                sum: point.loss * count as f64,
                count,
                eval_loss: point.eval_loss,
            });
        }
        curve
    }

    /// The loss of a step. One that is no finite number leaves no trace.
    pub(super) fn step(&mut self, step: u64, loss: f64) {
        if !loss.is_finite() {
            return;
        }
        self.add(Bucket {
            last: step,
            sum: loss,
            count: 1,
            eval_loss: None,
        });
        while self.buckets.len() > MAX_CURVE {
            self.width *= 2;
            for bucket in std::mem::take(&mut self.buckets) {
                self.add(bucket);
            }
        }
    }

    /// What was held back had this loss after a step that was told.
    pub(super) fn evaluated(&mut self, loss: f64) {
        if let Some(bucket) = self.buckets.last_mut().filter(|_| loss.is_finite()) {
            bucket.eval_loss = Some(loss);
        }
    }

    pub(super) fn points(&self) -> Vec<Point> {
        let point = |bucket: &Bucket| Point {
            step: bucket.last,
            loss: bucket.sum / bucket.count as f64,
            eval_loss: bucket.eval_loss,
        };
        self.buckets.iter().map(point).collect()
    }

    fn add(&mut self, new: Bucket) {
        let number = |step: u64| step.saturating_sub(1) / self.width;
        match self.buckets.last_mut() {
            Some(last) if number(last.last) == number(new.last) => {
                last.last = new.last;
                last.sum += new.sum;
                last.count += new.count;
                last.eval_loss = new.eval_loss.or(last.eval_loss);
            }
            _ => self.buckets.push(new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(steps: u64) -> Curve {
        let mut curve = Curve::default();
        for step in 1..=steps {
            curve.step(step, step as f64);
            if step % 100 == 0 {
                curve.evaluated(1.0 / step as f64);
            }
        }
        curve
    }

    #[test]
    fn a_curve_keeps_few_points_that_are_means_of_the_steps_between_them() {
        assert_eq!(of(32).points().len(), 32);
        let points = of(1000).points();
        assert_eq!(points.len(), 32);
        assert_eq!(points.last().map(|point| point.step), Some(1000));
        let mut before = 0;
        for point in &points {
            let mean = (before + 1 + point.step) as f64 / 2.0;
            assert!((point.loss - mean).abs() < 1e-9, "{point:?}");
            before = point.step;
        }
        assert_eq!(points.iter().filter(|p| p.eval_loss.is_some()).count(), 10);
    }

    #[test]
    fn a_curve_goes_on_where_the_one_before_was() {
        let mut resumed = Curve::resumed(&of(500).points(), 500);
        let mut whole = of(500);
        for step in 501..=700 {
            resumed.step(step, step as f64);
            whole.step(step, step as f64);
        }
        let steps = |curve: &Curve| curve.points().iter().map(|p| p.step).collect::<Vec<_>>();
        assert_eq!(steps(&resumed), steps(&whole));
        assert!(Curve::resumed(&of(500).points(), 300).points().len() < 32);
    }

    #[test]
    fn what_is_no_number_leaves_no_trace() {
        let mut curve = Curve::default();
        curve.evaluated(1.0);
        curve.step(1, f64::NAN);
        assert!(curve.points().is_empty());
    }
}
