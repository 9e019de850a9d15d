//! Direct preference optimisation (<https://arxiv.org/abs/2305.18290>), as TRL's `sigmoid`.

use crate::learner::Score;

/// What a pair of answers comes to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    /// `-log sigmoid(margin)`.
    pub(super) loss: f64,
    /// `beta ((chosen - chosen of the reference) - (rejected - rejected of the reference))`, each a
    /// log-likelihood.
    pub(super) margin: f64,
    /// The derivative of the loss by the negative log-likelihood of the chosen answer; by that of
    /// the other it is the negative of this.
    pub(super) slope: f64,
}

/// The pairs of these scores, chosen before rejected, of the policy and of the reference.
pub(super) fn pairs(policy: &[Score], reference: &[Score], beta: f64) -> Vec<Pair> {
    let each = policy.chunks_exact(2).zip(reference.chunks_exact(2));
    each.map(|(policy, reference)| {
        // Losses are negative log-likelihoods.
        let gain = |index: usize| reference[index].loss - policy[index].loss;
        let margin = beta * (gain(0) - gain(1));
        Pair {
            loss: softplus(-margin),
            margin,
            slope: beta / (1.0 + margin.exp()),
        }
    })
    .collect()
}

/// `log(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(losses: [f64; 2]) -> [Score; 2] {
        losses.map(|loss| Score {
            loss,
            tokens: 1,
            correct: 0,
        })
    }

    #[test]
    fn without_a_difference_the_loss_is_that_of_a_coin() {
        let same = scores([3.0, 5.0]);
        let pair = pairs(&same, &same, 0.1)[0];
        assert!((pair.loss - std::f64::consts::LN_2).abs() < 1e-15);
        assert!((pair.slope - 0.05).abs() < 1e-15);
    }

    #[test]
    fn the_slope_is_that_of_the_loss() {
        let reference = scores([3.0, 5.0]);
        let loss = |chosen, rejected| pairs(&scores([chosen, rejected]), &reference, 0.7)[0].loss;
        let slope = pairs(&scores([2.0, 4.5]), &reference, 0.7)[0].slope;
        let by_chosen = (loss(2.0 + 1e-6, 4.5) - loss(2.0 - 1e-6, 4.5)) / 2e-6;
        let by_rejected = (loss(2.0, 4.5 + 1e-6) - loss(2.0, 4.5 - 1e-6)) / 2e-6;
        assert!((by_chosen - slope).abs() < 1e-8 && (by_rejected + slope).abs() < 1e-8);
    }

    #[test]
    fn far_apart_answers_do_not_overflow() {
        let far = pairs(&scores([1e6, 0.0]), &scores([0.0, 0.0]), 1.0)[0];
        assert!((far.loss - 1e6).abs() < 1e-6 && (far.slope - 1.0).abs() < 1e-12);
        let near = pairs(&scores([0.0, 1e6]), &scores([0.0, 0.0]), 1.0)[0];
        assert!(near.loss < 1e-12 && near.slope < 1e-12);
    }
}
