use proptest::prelude::*;

use super::*;

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, &[])
}

const FREE: Option<&mut Only> = None;

/// Allows some tokens, and counts how often all of them were asked for.
#[derive(Default)]
struct Only {
    tokens: Vec<u32>,
    mask: Vec<u32>,
    masks: usize,
}

impl Only {
    fn these(tokens: impl IntoIterator<Item = u32>) -> Self {
        let tokens = tokens.into_iter().collect();
        Self {
            tokens,
            ..Self::default()
        }
    }
}

impl Allowed for Only {
    type Error = std::convert::Infallible;

    fn allows(&mut self, token: u32) -> Result<bool, Self::Error> {
        Ok(self.tokens.contains(&token))
    }

    fn mask(&mut self) -> Result<&[u32], Self::Error> {
        self.masks += 1;
        let words = self.tokens.iter().max().map_or(0, |most| most / 32 + 1);
        self.mask = vec![0; words as usize];
        for token in &self.tokens {
            self.mask[*token as usize / 32] |= 1 << (token % 32);
        }
        Ok(&self.mask)
    }
}

/// Samples with nothing banned and nothing told.
fn next(sampler: &mut Sampler, logits: &[f32]) -> Result<u32, SampleError> {
    let (mut logits, mut scratch) = (logits.to_vec(), Scratch::default());
    sampler
        .sample(&mut logits, &[], FREE, Tell::Token, &mut scratch)
        .map(|sampled| sampled.token)
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..Default::default()
    }
}

fn shares(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
    let mut counts = vec![0_u32; logits.len()];
    let mut sampler = sampler(params.clone());
    let (mut row, mut scratch) = (logits.to_vec(), Scratch::default());
    for _ in 0..draws {
        row.copy_from_slice(logits);
        let sampled = sampler.sample(&mut row, &[], FREE, Tell::Token, &mut scratch);
        counts[sampled.unwrap().token as usize] += 1;
    }
    counts
        .into_iter()
        .map(|count| f64::from(count) / f64::from(draws))
        .collect()
}

#[test]
fn temperature_zero_takes_the_lowest_of_the_likeliest() {
    let mut sampler = sampler(greedy());
    let logits = [0.0, 3.0, 1.0, 3.0];
    assert_eq!(next(&mut sampler, &logits), Ok(1));
    let mut scratch = Scratch::default();
    let sampled = sampler.sample(&mut logits.clone(), &[1], FREE, Tell::Token, &mut scratch);
    assert_eq!(sampled.unwrap().token, 3);
}

#[test]
fn shares_follow_the_distribution_and_the_temperature() {
    let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    let seeded = SamplingParams {
        seed: Some(1),
        ..Default::default()
    };
    for (share, expected) in shares(&seeded, &logits, 50_000).iter().zip([0.5, 0.3, 0.2]) {
        assert!((share - expected).abs() < 0.01, "{share} {expected}");
    }
    let sharp = SamplingParams {
        temperature: 0.5,
        ..seeded
    };
    for (share, expected) in shares(&sharp, &logits, 50_000)
        .iter()
        .zip([0.25, 0.09, 0.04])
    {
        assert!((share - expected / 0.38).abs() < 0.01, "{share} {expected}");
    }
}

#[test]
fn each_cut_leaves_out_what_it_should() {
    let logits: Vec<f32> = [0.5_f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
    let base = SamplingParams {
        seed: Some(3),
        ..Default::default()
    };
    for (params, kept) in [
        (
            SamplingParams {
                top_k: 2,
                ..base.clone()
            },
            2,
        ),
        (
            SamplingParams {
                top_p: 0.79,
                ..base.clone()
            },
            2,
        ),
        (
            SamplingParams {
                top_p: 0.81,
                ..base.clone()
            },
            3,
        ),
        (
            SamplingParams {
                top_p: 1e-9,
                ..base.clone()
            },
            1,
        ),
        (
            SamplingParams {
                min_p: 0.29,
                ..base.clone()
            },
            3,
        ),
        (
            SamplingParams {
                min_p: 1.0,
                ..base.clone()
            },
            1,
        ),
        // 0.5 and 0.3 become 0.625 and 0.375 once the others are gone.
        (
            SamplingParams {
                top_k: 2,
                top_p: 0.6,
                ..base.clone()
            },
            1,
        ),
    ] {
        let shares = shares(&params, &logits, 4_000);
        assert_eq!(
            shares.iter().filter(|share| **share > 0.0).count(),
            kept,
            "{params:?}"
        );
    }
}

#[test]
fn a_seed_reproduces_the_choice_and_another_changes_it() {
    let logits = vec![0.0; 1000];
    let draw = |seed| {
        let mut sampler = sampler(SamplingParams {
            seed: Some(seed),
            ..Default::default()
        });
        (0..8)
            .map(|_| next(&mut sampler, &logits).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

/// The first two tokens that greedy sampling takes from logits that do not change.
fn first_two(params: SamplingParams, prompt: &[u32]) -> (u32, u32) {
    let mut sampler = Sampler::new(params, prompt);
    let mut take = || next(&mut sampler, &[2.0, 1.5, -1.0]).unwrap();
    (take(), take())
}

#[test]
fn penalties_and_bias_change_the_choice() {
    for (params, prompt, expected) in [
        (greedy(), vec![], (0, 0)),
        (
            SamplingParams {
                presence_penalty: 1.0,
                ..greedy()
            },
            vec![0],
            (0, 1),
        ),
        (
            SamplingParams {
                frequency_penalty: 1.0,
                ..greedy()
            },
            vec![0],
            (0, 1),
        ),
        (
            SamplingParams {
                repetition_penalty: 2.0,
                ..greedy()
            },
            vec![0],
            (1, 0),
        ),
        (
            SamplingParams {
                logit_bias: vec![(2, 100.0)],
                ..greedy()
            },
            vec![],
            (2, 2),
        ),
    ] {
        assert_eq!(first_two(params.clone(), &prompt), expected, "{params:?}");
    }
}

#[test]
fn the_frequency_counts_and_the_presence_does_not() {
    let take = |params, count| -> Vec<u32> {
        let mut sampler = sampler(params);
        (0..count)
            .map(|_| next(&mut sampler, &[2.0, 1.2]).unwrap())
            .collect()
    };
    let frequency = SamplingParams {
        frequency_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(take(frequency, 4), [0, 0, 1, 0]);
    let presence = SamplingParams {
        presence_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(take(presence, 4), [0, 0, 0, 0]);
}

#[test]
fn a_negative_logit_is_multiplied_by_the_repetition_penalty() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        ..greedy()
    };
    let mut sampler = Sampler::new(params, &[0]);
    assert_eq!(next(&mut sampler, &[-1.0, -1.5]), Ok(1));
}

#[test]
fn only_allowed_tokens_are_chosen_and_bad_words_are_not_completed() {
    let allowed = SamplingParams {
        allowed_tokens: Some([2, 1].into()),
        ..greedy()
    };
    assert_eq!(first_two(allowed, &[]), (1, 1));
    let bad = |words: &[&[u32]]| SamplingParams {
        bad_words: words.iter().map(|word| word.to_vec()).collect(),
        ..greedy()
    };
    assert_eq!(first_two(bad(&[&[0]]), &[]), (1, 1));
    assert_eq!(
        first_two(bad(&[&[0, 0]]), &[0]),
        (0, 1),
        "the prompt does not count"
    );
    assert_eq!(first_two(bad(&[&[1, 0]]), &[]), (0, 0));
    let mut hopeless = sampler(bad(&[&[0], &[1]]));
    assert_eq!(
        next(&mut hopeless, &[1.0, 1.0]),
        Err(SampleError::NothingPossible)
    );
}

#[test]
fn what_a_grammar_forbids_is_not_chosen() {
    let mut sampler = sampler(greedy());
    let logits: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let mut scratch = Scratch::default();
    let mut choose = |grammar: &mut Only, banned: &[u32]| {
        let (mut logits, grammar) = (logits.clone(), Some(grammar));
        let sampled = sampler.sample(&mut logits, banned, grammar, Tell::Token, &mut scratch);
        sampled.map(|sampled| sampled.token)
    };
    let mut grammar = Only::these((0..=32).chain([34]));
    assert_eq!(choose(&mut grammar, &[34]), Ok(32));
    assert_eq!(choose(&mut grammar, &[]), Ok(34));
    assert_eq!(grammar.masks, 2);
    // What is chosen anyway needs no look at all the others.
    let mut grammar = Only::these([3, 99]);
    assert_eq!(choose(&mut grammar, &[]), Ok(99));
    assert_eq!(grammar.masks, 0);
    let nothing = choose(&mut Only::these([7]), &[7]);
    assert_eq!(nothing, Err(SampleError::NothingPossible));
}

#[test]
fn a_grammar_leaves_the_shares_of_what_it_allows() {
    let logits: Vec<f32> = (0..300_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 6.0)
        .collect();
    for (params, masks) in [
        (SamplingParams::default(), true),
        (
            SamplingParams {
                top_k: 12,
                top_p: 0.8,
                ..Default::default()
            },
            false,
        ),
        (
            SamplingParams {
                top_k: 100,
                ..Default::default()
            },
            true,
        ),
        (
            SamplingParams {
                top_p: 0.5,
                ..Default::default()
            },
            true,
        ),
    ] {
        // Every third token: the likeliest are among them and are not.
        let allowed: Vec<u32> = (0..300).filter(|token| token % 3 == 0).collect();
        let mut masked = vec![f32::NEG_INFINITY; 300];
        for &token in &allowed {
            masked[token as usize] = logits[token as usize];
        }
        let exact = reference(&params, &masked);
        let draws = 40_000;
        let mut counts = vec![0_u32; 300];
        let seed = Some(5);
        let mut sampler = sampler(SamplingParams { seed, ..params });
        let (mut grammar, mut scratch) = (Only::these(allowed), Scratch::default());
        for _ in 0..draws {
            let grammar = Some(&mut grammar);
            let sampled = sampler
                .sample(&mut logits.clone(), &[], grammar, Tell::Token, &mut scratch)
                .unwrap();
            counts[sampled.token as usize] += 1;
        }
        let weight: f64 = exact.iter().sum();
        for (count, exact) in counts.iter().zip(exact) {
            let (share, exact) = (f64::from(*count) / f64::from(draws), exact / weight);
            let spread = (exact / f64::from(draws)).sqrt();
            assert!(
                (share - exact).abs() <= 5.0 * spread + 1e-9,
                "{share} for {exact}"
            );
        }
        assert_eq!(grammar.masks > 0, masks, "{:?}", grammar.masks);
    }
}

#[test]
fn logprobs_are_the_models_own() {
    let raw: Vec<f32> = [0.5_f32, 0.3, 0.2].iter().map(|p| p.ln() + 7.0).collect();
    for params in [
        SamplingParams {
            logit_bias: vec![(2, 50.0), (2, 50.0)],
            ..Default::default()
        },
        SamplingParams {
            allowed_tokens: Some([2].into()),
            ..Default::default()
        },
        SamplingParams {
            repetition_penalty: 1e6,
            presence_penalty: 1.0,
            logit_bias: vec![(2, 1e5)],
            ..greedy()
        },
    ] {
        let mut sampler = Sampler::new(params, &[2]);
        let mut scratch = Scratch::default();
        let mut logits = raw.clone();
        let tell = Tell::Logprobs(2);
        let sampled = sampler
            .sample(&mut logits, &[], FREE, tell, &mut scratch)
            .unwrap();
        assert_eq!(sampled.token, 2);
        let told = sampled.logprobs.unwrap();
        assert!((told.chosen - 0.2_f32.ln()).abs() < 1e-5);
        assert_eq!(told.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
        assert!((told.top[0].1 - 0.5_f32.ln()).abs() < 1e-5);
    }
    let scored = logprobs_of::<()>(&raw, 1, 1).unwrap();
    assert!((scored.chosen - 0.3_f32.ln()).abs() < 1e-5);
    assert_eq!(scored.top[0].0, 0);
    assert!(logprobs_of::<()>(&[f32::NAN], 0, 1).is_err());
}

#[test]
fn hopeless_logits_are_an_error_and_not_a_panic() {
    for temperature in [0.0, 1.0] {
        let mut sampler = sampler(SamplingParams {
            temperature,
            ..Default::default()
        });
        let mut sample = |logits: Vec<f32>| next(&mut sampler, &logits);
        assert_eq!(sample(vec![f32::NAN, 1.0]), Err(SampleError::NotANumber));
        assert_eq!(
            sample(vec![f32::NEG_INFINITY; 3]),
            Err(SampleError::NothingPossible)
        );
        assert_eq!(sample(vec![]), Err(SampleError::NothingPossible));
        assert_eq!(sample(vec![0.0, f32::INFINITY]), Ok(1));
    }
}

/// The distribution that sampling should have, found by sorting the vocabulary: temperature,
/// then top-k, min-p, top-p and typical, each on what the ones before have left.
fn reference(params: &SamplingParams, logits: &[f32]) -> Vec<f64> {
    let scaled: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(*logit) / f64::from(params.temperature))
        .collect();
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut kept: Vec<(usize, f64)> = scaled.iter().map(|l| (l - max).exp()).enumerate().collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        kept.truncate(params.top_k);
    }
    kept.retain(|(_, weight)| *weight >= f64::from(params.min_p) && *weight > 0.0);
    let up_to = |kept: &mut Vec<(usize, f64)>, share: f32| {
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let mut sum = 0.0;
        kept.retain(|(_, weight)| {
            let wanted = sum < f64::from(share) * total;
            sum += weight;
            wanted
        });
    };
    if params.top_p < 1.0 {
        up_to(&mut kept, params.top_p);
    }
    if params.typical_p < 1.0 {
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let entropy: f64 = kept.iter().map(|k| -k.1 / total * (k.1 / total).ln()).sum();
        let distance = |k: &(usize, f64)| (-(k.1 / total).ln() - entropy).abs();
        kept.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.0.cmp(&b.0)));
        up_to(&mut kept, params.typical_p);
    }
    let total: f64 = kept.iter().map(|k| k.1).sum();
    let mut shares = vec![0.0; logits.len()];
    for (token, weight) in kept {
        shares[token] = weight / total;
    }
    shares
}

/// Pearson's test: the sum of squared deviations against what chance allows at about one in ten
/// thousand (Wilson and Hilferty's approximation of the quantile). Seeds are fixed, so it passes
/// always or never.
#[track_caller]
fn check_distribution(params: &SamplingParams, logits: &[f32]) {
    const DRAWS: u32 = 4_000;
    let expected = reference(params, logits);
    let found = shares(params, logits, DRAWS);
    let mut chi = 0.0;
    let mut cells: f64 = 0.0;
    // Rare tokens are taken together, or the test is none.
    let (mut rare, mut rare_found) = (0.0, 0.0);
    for (&share, &seen) in expected.iter().zip(&found) {
        assert!(share > 0.0 || seen == 0.0, "a token that was cut");
        let (wanted, seen) = (share * f64::from(DRAWS), seen * f64::from(DRAWS));
        if wanted < 10.0 {
            rare += wanted;
            rare_found += seen;
        } else {
            chi += (seen - wanted).powi(2) / wanted;
            cells += 1.0;
        }
    }
    if rare > 10.0 {
        chi += (rare_found - rare).powi(2) / rare;
        cells += 1.0;
    }
    let freedom = (cells - 1.0).max(1.0);
    let spread = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - spread + 3.72 * spread.sqrt()).powi(3);
    assert!(
        chi <= limit,
        "{chi} > {limit} with {freedom} degrees of freedom: {params:?}"
    );
}

#[test]
fn what_is_drawn_has_the_distribution_that_was_asked_for() {
    let logits = |count: u32| -> Vec<f32> {
        (0..count)
            .map(|i| (i * 7919 % count) as f32 * 8.0 / count as f32)
            .collect()
    };
    let base = SamplingParams {
        seed: Some(11),
        ..Default::default()
    };
    // More than what is summed up together.
    check_distribution(&base, &logits(1101));
    let logits = logits(300);
    for params in [
        SamplingParams {
            temperature: 0.6,
            ..base.clone()
        },
        SamplingParams {
            temperature: 1.7,
            ..base.clone()
        },
        SamplingParams {
            top_k: 40,
            ..base.clone()
        },
        SamplingParams {
            top_k: 270,
            ..base.clone()
        },
        SamplingParams {
            top_p: 0.7,
            ..base.clone()
        },
        SamplingParams {
            min_p: 0.1,
            ..base.clone()
        },
        SamplingParams {
            typical_p: 0.4,
            ..base.clone()
        },
        SamplingParams {
            top_k: 200,
            top_p: 0.8,
            min_p: 0.05,
            temperature: 0.9,
            ..base.clone()
        },
        SamplingParams {
            top_p: 0.9,
            typical_p: 0.5,
            ..base.clone()
        },
    ] {
        check_distribution(&params, &logits);
    }
}

proptest! {
    #[test]
    fn whatever_the_logits_a_token_is_chosen_that_sorting_would_leave(
        logits in prop::collection::vec(prop_oneof![5 => -50.0..50.0_f32, 1 => Just(f32::NEG_INFINITY)], 1..200),
        temperature in 0.1..3.0_f32, top_p in prop_oneof![0.001..1.0_f32, Just(1.0)],
        top_k in 0..20_usize, min_p in prop_oneof![0.0..=1.0_f32, Just(0.0)],
        typical_p in prop_oneof![0.05..1.0_f32, Just(1.0)], seed in any::<u64>(),
    ) {
        let params = SamplingParams {
            temperature, top_p, top_k, min_p, typical_p, seed: Some(seed), ..Default::default()
        };
        match next(&mut sampler(params.clone()), &logits) {
            Ok(token) => {
                prop_assert!(logits[token as usize] > f32::NEG_INFINITY);
                // Sums of floats differ in the last places, so a share may be cut elsewhere.
                let at_an_edge = [-1e-4, 0.0, 1e-4].into_iter().any(|slack| {
                    let moved = SamplingParams {
                        top_p: if top_p < 1.0 { (top_p + slack).clamp(1e-6, 1.0) } else { 1.0 },
                        typical_p: if typical_p < 1.0 { (typical_p + slack).min(1.0) } else { 1.0 },
                        min_p: (min_p - slack).clamp(0.0, 1.0),
                        ..params.clone()
                    };
                    reference(&moved, &logits)[token as usize] > 0.0
                });
                prop_assert!(at_an_edge, "{token}");
            }
            Err(error) => {
                prop_assert_eq!(error, SampleError::NothingPossible);
                prop_assert!(logits.iter().all(|logit| *logit == f32::NEG_INFINITY));
            }
        }
    }
}
