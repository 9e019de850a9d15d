//! Cutting a distribution down to its likeliest tokens without sorting the vocabulary.

use std::cmp::Ordering;

/// A token and its weight, which is its probability up to a common factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) token: u32,
    pub(crate) weight: f32,
}

/// Likelier first; among equals the lower id, so that a result depends on nothing else.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that sorting wants"
)]
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// Keeps the `k` likeliest, in no particular order. Linear in the number of candidates.
pub(crate) fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, order);
        candidates.truncate(k);
    }
}

/// Keeps the fewest likeliest that reach the share `p` of the whole weight; at least one. Linear
/// in the number of candidates: each round halves what is left to look at.
pub(crate) fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 || candidates.len() < 2 {
        return;
    }
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let target = f64::from(p) * total;
    // All tokens below this weight together weigh less than what may be cut, so none of them is
    // kept: what remains to be searched is small.
    let least = ((total - target) / candidates.len() as f64) as f32;
    candidates.retain(|c| c.weight >= least);

    // Invariant: the first `low` are the likeliest, weigh `sum` < `target`, and are kept; what
    // is kept ends at `high` at the latest.
    let (mut low, mut high, mut sum) = (0, candidates.len(), 0.0);
    while high - low > 1 {
        let half = (high - low) / 2;
        let window = &mut candidates[low..high];
        window.select_nth_unstable_by(half - 1, order);
        let upper: f64 = window[..half].iter().map(|c| f64::from(c.weight)).sum();
        if sum + upper >= target {
            high = low + half;
        } else {
            sum += upper;
            low += half;
        }
    }
    candidates.truncate(high.max(1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec(prop_oneof![0.0..1.0_f32, Just(0.25), Just(0.0)], 1..300).prop_map(
            |weights| {
                let mut of: Vec<_> = weights
                    .into_iter()
                    .enumerate()
                    .map(|(token, weight)| Candidate {
                        token: token as u32,
                        weight,
                    })
                    .collect();
                of[0].weight += 0.01;
                of
            },
        )
    }

    fn sorted(mut of: Vec<Candidate>) -> Vec<Candidate> {
        of.sort_by(order);
        of
    }

    proptest! {
        #[test]
        fn top_k_is_what_sorting_would_keep(of in candidates(), k in 0..310_usize) {
            let mut expected = sorted(of.clone());
            if k > 0 {
                expected.truncate(k);
            }
            let mut kept = of;
            keep_top_k(&mut kept, k);
            prop_assert_eq!(sorted(kept), expected);
        }

        #[test]
        fn top_p_is_what_sorting_would_keep(of in candidates(), p in 0.001..0.999_f32) {
            let total: f64 = of.iter().map(|c| f64::from(c.weight)).sum();
            let mut kept = of.clone();
            keep_top_p(&mut kept, p);
            let kept = sorted(kept);
            prop_assert!(!kept.is_empty());
            prop_assert_eq!(&kept[..], &sorted(of)[..kept.len()]);
            let sum = |of: &[Candidate]| of.iter().map(|c| f64::from(c.weight)).sum::<f64>();
            let slack = 1e-6 * total;
            prop_assert!(sum(&kept) >= f64::from(p) * total - slack);
            prop_assert!(sum(&kept[..kept.len() - 1]) <= f64::from(p) * total + slack);
        }
    }
}
