//! The optimiser that the goldens' losses were made with.

/// torch's AdamW on one flat array, for tests of learners; trainers have their own.
///
/// ```text
/// p *= 1 - lr * decay
/// m = b1 m + (1 - b1) g                v = b2 v + (1 - b2) g^2
/// p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
/// ```
///
/// with `g` clipped to `max_norm / (norm + 1e-6)`, b1 0.9, b2 0.999 and eps 1e-8
/// (<https://arxiv.org/abs/1711.05101>; `torch.optim.AdamW`, `clip_grad_norm_`).
#[derive(Clone, Debug)]
pub struct AdamW {
    first: Vec<f64>,
    second: Vec<f64>,
    step: i32,
}

impl AdamW {
    /// For so many parameters, before the first step.
    pub fn new(len: usize) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
            step: 0,
        }
    }

    /// Takes a step and returns the norm of the gradient before it was clipped.
    ///
    /// # Panics
    /// When there are more or fewer numbers than it was made for.
    #[track_caller]
    pub fn step(
        &mut self,
        parameters: &mut [f32],
        gradient: &[f32],
        learning_rate: f64,
        decay: f64,
        max_norm: Option<f64>,
    ) -> f64 {
        const BETAS: (f64, f64) = (0.9, 0.999);
        const EPSILON: f64 = 1e-8;
        assert_eq!(
            (parameters.len(), gradient.len()),
            (self.first.len(), self.first.len())
        );
        let squares = gradient.iter().map(|x| f64::from(*x) * f64::from(*x));
        let norm = squares.sum::<f64>().sqrt();
        let clip = max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        self.step += 1;
        let rate = learning_rate / (1.0 - BETAS.0.powi(self.step));
        let unbiased = (1.0 - BETAS.1.powi(self.step)).sqrt();
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
            let g = f64::from(*g) * clip;
            *m += (1.0 - BETAS.0) * (g - *m);
            *v = BETAS.1 * *v + (1.0 - BETAS.1) * g * g;
            let decayed = f64::from(*p) * (1.0 - learning_rate * decay);
            *p = (decayed - rate * *m / (v.sqrt() / unbiased + EPSILON)) as f32;
        }
        norm
    }
}
