//! Cutting a distribution down to some of its tokens without sorting the vocabulary.

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
fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// Keeps the `k` likeliest, in no particular order. Linear in the number of candidates.
pub(crate) fn keep_top_k(candidates: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, likelier);
        candidates.truncate(k);
    }
}

/// Keeps the fewest likeliest that reach the share `p` of the weight `total`; at least one. Tokens
/// that are too light to be among them may be left out beforehand, but count in `total`. Linear
/// in the number of candidates.
pub(crate) fn keep_top_p(candidates: &mut Vec<Candidate>, p: f32, total: f64) {
    if p >= 1.0 || candidates.len() < 2 {
        return;
    }
    let target = f64::from(p) * total;
    keep_first(candidates, target, |candidate| *candidate, likelier);
}

/// The weight below which no token is among the likeliest that reach the share `p` of `total`: all
/// of the `count` tokens together, if they were lighter, would weigh less than what may be cut.
pub(crate) fn least_in_top_p(p: f32, total: f64, count: usize) -> f32 {
    (total * f64::from(1.0 - p) / count.max(1) as f64) as f32
}

/// Keeps the fewest tokens that reach the share `p` of the whole weight, those first whose
/// information is nearest to the expected one (locally typical sampling,
/// <https://arxiv.org/abs/2202.00666>); at least one. Linear in the number of candidates.
/// `ranked` is memory to work in.
pub(crate) fn keep_typical(
    candidates: &mut Vec<Candidate>,
    p: f32,
    ranked: &mut Vec<(f64, Candidate)>,
) {
    candidates.retain(|c| c.weight > 0.0);
    if p >= 1.0 || candidates.len() < 2 {
        return;
    }
    let total = weight(candidates);
    let mut expected = 0.0;
    // Logarithms are taken once and not in every comparison.
    ranked.clear();
    ranked.extend(candidates.drain(..).map(|candidate| {
        let share = f64::from(candidate.weight) / total;
        let information = -share.ln();
        expected += share * information;
        (information, candidate)
    }));
    for (rank, _) in ranked.iter_mut() {
        *rank = (*rank - expected).abs();
    }
    let order = |a: &(f64, Candidate), b: &(f64, Candidate)| {
        a.0.total_cmp(&b.0).then(a.1.token.cmp(&b.1.token))
    };
    keep_first(ranked, f64::from(p) * total, |entry| entry.1, order);
    candidates.extend(ranked.iter().map(|(_, candidate)| *candidate));
}

/// Keeps the first by `order` that together reach the weight `target`; at least one. Each round
/// halves what is left to look at.
fn keep_first<T>(
    items: &mut Vec<T>,
    target: f64,
    candidate: impl Fn(&T) -> Candidate,
    order: impl Fn(&T, &T) -> Ordering,
) {
    // Invariant: the first `low` come first, weigh `sum` < `target`, and are kept; what is kept
    // ends at `high` at the latest.
    let (mut low, mut high, mut sum) = (0, items.len(), 0.0);
    while high - low > 1 {
        let half = (high - low) / 2;
        let window = &mut items[low..high];
        window.select_nth_unstable_by(half - 1, &order);
        let upper: f64 = window[..half]
            .iter()
            .map(|item| f64::from(candidate(item).weight))
            .sum();
        if sum + upper >= target {
            high = low + half;
        } else {
            sum += upper;
            low += half;
        }
    }
    items.truncate(high.max(1));
}

/// The weight of all `candidates`.
pub(crate) fn weight(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
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
        of.sort_by(likelier);
        of
    }

    /// What is kept of `sorted`, most wanted first, and nothing else.
    fn check_share(
        kept: &[Candidate],
        sorted: &[Candidate],
        share: f32,
    ) -> Result<(), TestCaseError> {
        let len = kept.len();
        prop_assert!(len > 0);
        let ids = |of: &[Candidate]| {
            of.iter()
                .map(|c| c.token)
                .collect::<std::collections::BTreeSet<_>>()
        };
        prop_assert_eq!(ids(kept), ids(&sorted[..len]));
        let (total, slack) = (weight(sorted), 1e-6 * weight(sorted));
        prop_assert!(weight(&sorted[..len]) >= f64::from(share) * total - slack);
        prop_assert!(weight(&sorted[..len - 1]) <= f64::from(share) * total + slack);
        Ok(())
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
            let mut kept = of.clone();
            // Those that cannot be kept make no difference, if they are counted.
            let least = least_in_top_p(p, weight(&of), of.len());
            kept.retain(|c| c.weight >= least);
            keep_top_p(&mut kept, p, weight(&of));
            check_share(&kept, &sorted(of), p)?;
        }

        #[test]
        fn typical_is_what_sorting_would_keep(of in candidates(), p in 0.001..0.999_f32) {
            let mut kept = of.clone();
            keep_typical(&mut kept, p, &mut Vec::new());
            let total = weight(&of);
            let mut sorted: Vec<_> = of.into_iter().filter(|c| c.weight > 0.0).collect();
            let share = |c: &Candidate| f64::from(c.weight) / total;
            let entropy: f64 = sorted.iter().map(|c| -share(c) * share(c).ln()).sum();
            let key = |c: &Candidate| (entropy + share(c).ln()).abs();
            sorted.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.token.cmp(&b.token)));
            check_share(&kept, &sorted, p)?;
        }
    }
}
