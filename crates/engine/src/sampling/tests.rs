use proptest::prelude::*;

use super::*;

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, &[])
}

fn shares(params: &SamplingParams, logits: &[f32], draws: u32) -> Vec<f64> {
    let mut counts = vec![0_u32; logits.len()];
    let mut sampler = sampler(params.clone());
    for _ in 0..draws {
        let token = sampler
            .sample(&mut logits.to_vec(), &[], None)
            .unwrap()
            .token;
        counts[token as usize] += 1;
    }
    counts
        .into_iter()
        .map(|count| f64::from(count) / f64::from(draws))
        .collect()
}

#[test]
fn temperature_zero_takes_the_lowest_of_the_likeliest() {
    let mut greedy = sampler(SamplingParams {
        temperature: 0.0,
        ..Default::default()
    });
    let mut logits = [0.0, 3.0, 1.0, 3.0];
    assert_eq!(greedy.sample(&mut logits, &[], None).unwrap().token, 1);
    assert_eq!(
        greedy
            .sample(&mut [0.0, 3.0, 1.0, 3.0], &[1], None)
            .unwrap()
            .token,
        3
    );
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
            .map(|_| {
                sampler
                    .sample(&mut logits.clone(), &[], None)
                    .unwrap()
                    .token
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn penalties_and_bias_change_the_choice() {
    let greedy = SamplingParams {
        temperature: 0.0,
        ..Default::default()
    };
    let next = |params: SamplingParams, prompt: &[u32]| {
        let mut sampler = Sampler::new(params, prompt);
        let mut take = || {
            sampler
                .sample(&mut [2.0, 1.5, -1.0], &[], None)
                .unwrap()
                .token
        };
        (take(), take())
    };
    assert_eq!(next(greedy.clone(), &[]), (0, 0));
    assert_eq!(
        next(
            SamplingParams {
                presence_penalty: 1.0,
                ..greedy.clone()
            },
            &[0]
        ),
        (0, 1)
    );
    assert_eq!(
        next(
            SamplingParams {
                frequency_penalty: 1.0,
                ..greedy.clone()
            },
            &[0]
        ),
        (0, 1)
    );
    assert_eq!(
        next(
            SamplingParams {
                repetition_penalty: 2.0,
                ..greedy.clone()
            },
            &[0]
        ),
        (1, 0)
    );
    let bias = vec![(2, 100.0)];
    assert_eq!(
        next(
            SamplingParams {
                logit_bias: bias,
                ..greedy
            },
            &[]
        ),
        (2, 2)
    );
}

#[test]
fn logprobs_are_the_models_own() {
    let params = SamplingParams {
        logit_bias: vec![(2, 100.0)],
        ..Default::default()
    };
    let mut logits: Vec<f32> = [0.5_f32, 0.3, 0.2].iter().map(|p| p.ln() + 7.0).collect();
    let sampled = sampler(params).sample(&mut logits, &[], Some(2)).unwrap();
    assert_eq!(sampled.token, 2);
    let told = sampled.logprobs.unwrap();
    assert!((told.chosen - 0.2_f32.ln()).abs() < 1e-5);
    assert_eq!(told.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    assert!((told.top[0].1 - 0.5_f32.ln()).abs() < 1e-5);
}

#[test]
fn hopeless_logits_are_an_error_and_not_a_panic() {
    for temperature in [0.0, 1.0] {
        let mut sampler = sampler(SamplingParams {
            temperature,
            ..Default::default()
        });
        let mut sample = |mut logits: Vec<f32>| sampler.sample(&mut logits, &[], None);
        assert_eq!(sample(vec![f32::NAN, 1.0]), Err(SampleError::NotANumber));
        assert_eq!(
            sample(vec![f32::NEG_INFINITY; 3]),
            Err(SampleError::NothingPossible)
        );
        assert_eq!(sample(vec![]), Err(SampleError::NothingPossible));
        assert_eq!(sample(vec![0.0, f32::INFINITY]).unwrap().token, 1);
    }
}

proptest! {
    #[test]
    fn whatever_the_logits_a_possible_token_is_chosen(
        logits in prop::collection::vec(prop_oneof![-50.0..50.0_f32, Just(f32::NEG_INFINITY)], 1..200),
        temperature in 0.0..3.0_f32, top_p in 0.001..=1.0_f32, top_k in 0..20_usize,
        min_p in 0.0..=1.0_f32, seed in any::<u64>(),
    ) {
        let params = SamplingParams {
            temperature, top_p, top_k, min_p, seed: Some(seed), ..Default::default()
        };
        match sampler(params).sample(&mut logits.clone(), &[], None) {
            Ok(sampled) => prop_assert!(logits[sampled.token as usize] > f32::NEG_INFINITY),
            Err(error) => {
                prop_assert_eq!(error, SampleError::NothingPossible);
                prop_assert!(logits.iter().all(|logit| *logit == f32::NEG_INFINITY));
            }
        }
    }
}
