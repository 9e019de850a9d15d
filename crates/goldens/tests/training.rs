//! That the goldens of training can be read, and say what they are to say.
#![allow(clippy::unwrap_used)]

use hyprstream_goldens::training::{
    AdamW, Masks, Optimiser, Preferences, Schedule, TRAINED, Trained,
};
use hyprstream_models::adapter::Site;

#[test]
fn every_tiny_model_has_cases_whose_gradients_fit_their_values() {
    let mut cases = 0;
    for model in TRAINED {
        for case in Trained::read(model) {
            let len = case.parameters().len;
            assert_eq!((case.values().len(), case.gradient().len()), (len, len));
            let whole = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite() && *x != 0.0);
            assert!(whole(case.values()), "{}", case.name());
            assert_eq!(case.losses().len(), 10);
            let batch = case.batch(9);
            assert_eq!(batch.tokens(), 31 + 18);
            assert!(batch.segments.iter().all(|segment| !segment.trained[0]));
            cases += 1;
        }
    }
    assert_eq!(cases, TRAINED.len() + 6);
}

#[test]
fn parts_of_a_fused_module_share_a() {
    for case in Trained::read("phi3") {
        let parts = &case.parameters().parts;
        let layer = |part: &&hyprstream_training::Part| matches!(part.site, Site::Layer(0, _));
        let of: Vec<_> = parts.iter().filter(layer).collect();
        assert_eq!(of.len(), 7);
        assert!(of[0].a == of[1].a && of[0].a == of[2].a && of[4].a == of[5].a);
        assert!(of[0].a != of[3].a);
    }
}

#[test]
fn recorded_gradients_give_the_parameters_of_torch() {
    for record in Optimiser::read() {
        let mut parameters = record.start.clone();
        let mut optimiser = AdamW::new(parameters.len());
        for step in &record.steps {
            let norm = optimiser.step(
                &mut parameters,
                &step.gradient,
                step.learning_rate,
                record.weight_decay,
                record.max_norm,
            );
            assert!((norm / step.norm - 1.0).abs() < 1e-7);
            for (ours, theirs) in parameters.iter().zip(&step.parameters) {
                let off = (ours - theirs).abs();
                assert!(off < 1e-7, "{}: {ours} is not {theirs}", record.name);
            }
        }
    }
}

#[test]
fn schedules_are_what_their_formulas_say() {
    for schedule in Schedule::read() {
        for (&step, &factor) in schedule.steps.iter().zip(&schedule.factors) {
            let (s, w, t) = (step as f64, schedule.warmup as f64, schedule.total as f64);
            let progress = (s - w) / (t - w).max(1.0);
            let expected = match schedule.kind.as_str() {
                _ if s < w => s / w.max(1.0),
                "constant" => 1.0,
                "linear" => ((t - s) / (t - w).max(1.0)).max(0.0),
                _ => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            };
            assert!((factor - expected).abs() < 1e-12, "{schedule:?} at {step}");
        }
    }
}

#[test]
fn preferences_begin_at_the_logarithm_of_2() {
    let pairs = Preferences::read();
    assert!((pairs.first_loss() - 2.0_f64.ln()).abs() < 1e-6);
    assert_eq!(pairs.batch().segments.len(), 2 * pairs.policy().len());
    let differences = pairs.policy().iter().zip(pairs.reference());
    let losses = differences.map(|(policy, reference)| {
        let learnt = (policy[0] - reference[0]) - (policy[1] - reference[1]);
        (1.0 + (-pairs.beta() * learnt).exp()).ln()
    });
    let loss = losses.sum::<f64>() / pairs.policy().len() as f64;
    assert!((loss - pairs.loss()).abs() < 1e-6);
}

#[test]
fn what_assistants_wrote_holds_each_answer_and_the_end_of_its_turn() {
    let templates = Masks::read();
    assert_eq!(templates.len(), 13);
    for template in templates {
        for chat in &template.chats {
            let written = chat.written();
            let answers = chat.messages.iter().filter(|m| m["role"] == "assistant");
            let answers: Vec<_> = answers.map(|m| m["content"].as_str().unwrap()).collect();
            // Some mark what ends the last turn on its own.
            assert!(written.len() >= answers.len(), "{}", template.name);
            let all = written.concat();
            for answer in answers {
                let last = answer.rsplit("</think>").next().unwrap().trim();
                assert!(all.contains(last), "{}/{}", template.name, chat.name);
                assert!(all.len() > last.len());
            }
        }
    }
}
