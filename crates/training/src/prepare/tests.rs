use hyprstream_goldens::Tiny;
use hyprstream_models::adapter::Site;

use super::*;
use crate::{Batch, Dropout, LearnError, NoObserver, Policy, Score, render::tests::tokenizer_json};

/// Pulls every number of the adapter towards a half, whatever it is shown.
struct Puller(Parameters);

impl Learner for Puller {
    fn parameters(&self) -> &Parameters {
        &self.0
    }

    fn name(&self) -> String {
        "puller".to_owned()
    }

    fn accumulate(
        &mut self,
        batch: &Batch,
        values: &[f32],
        _: Dropout,
        gradient: &mut [f32],
    ) -> Result<Vec<Score>, LearnError> {
        for (g, value) in gradient.iter_mut().zip(values) {
            *g += value - 0.5;
        }
        self.score(batch, Policy::Adapter(values))
    }

    fn score(&mut self, batch: &Batch, policy: Policy<'_>) -> Result<Vec<Score>, LearnError> {
        let far = match policy {
            Policy::Base => 1.0,
            Policy::Adapter(values) => values.iter().map(|x| f64::from((x - 0.5).abs())).sum(),
        };
        let score = |_| Score {
            loss: far,
            tokens: 1,
            correct: 0,
        };
        Ok(batch.segments.iter().map(score).collect())
    }
}

/// A tiny model with a tokenizer, data of ten records, and a job.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("model");
        fs::create_dir(&to).unwrap();
        for name in ["config.json", "model.safetensors"] {
            let from = Tiny::read(model).dir().join(name);
            fs::copy(from, to.join(name)).unwrap();
        }
        fs::write(to.join("tokenizer.json"), tokenizer_json()).unwrap();
        let records: Vec<String> = (3..13)
            .map(|token| format!("{{\"input_ids\": [{token}, 2, 1, {token}]}}"))
            .collect();
        fs::write(folder.path().join("data.jsonl"), records.join("\n")).unwrap();
        Self { folder }
    }

    fn job(&self, more: &str) -> Job {
        let at = self.folder.path().display();
        let text = format!(
            "model: {at}/model\noutput: {at}/out\n\
             data: {{path: {at}/data.jsonl, maxLength: 64}}\n{more}"
        );
        Job::parse(&text).unwrap()
    }

    #[track_caller]
    fn refused(&self, more: &str, expected: &str) {
        let error = prepare(&self.job(more)).unwrap_err().to_string();
        assert!(error.contains(expected), "{more}: {error}");
    }
}

fn prepare(job: &Job) -> Result<Prepared, PrepareError> {
    super::prepare(job, &Around::default())
}

fn finish(prepared: &Prepared) -> Finished {
    let mut learner = Puller(prepared.parameters.clone());
    let outcome = prepared.train(&mut learner, &mut NoObserver, &Control::default());
    match outcome.unwrap() {
        Outcome::Complete(finished) => finished,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_goes_from_its_file_to_an_adapter_that_serving_reads() {
    for model in ["qwen3", "phi3", "gemma3", "llama3"] {
        let place = Place::new(model);
        let job = place.job("adapter: {rank: 4}\ntraining: {epochs: 2, batch: 4}\n");
        let prepared = prepare(&job).unwrap();
        assert_eq!(prepared.report.records, 10);
        assert!(prepared.resumed.is_none());
        let finished = finish(&prepared);
        assert_eq!(finished.step, 6);
        let (files, digest) = prepared.publish(&finished).unwrap();
        // What went on from there is the same again, with what was one A shared or not.
        let from = files.tensors.display();
        let next = place.job(&format!("adapter: {{from: {from}}}\n"));
        let next = Job {
            output: place.folder.path().join("next"),
            ..next
        };
        let next = prepare(&next).unwrap();
        let adapter = layout::adapter(
            &next.parameters,
            next.reference.as_deref().unwrap(),
            &next.config,
            BaseName::default(),
        );
        assert_eq!(adapter.digest(), digest, "{model}");
    }
}

#[test]
fn a_job_that_ran_before_goes_on_where_it_was() {
    let place = Place::new("qwen3");
    let job = place.job("adapter: {rank: 4}\ntraining: {steps: 7, batch: 4}\n");
    let whole = finish(&prepare(&job).unwrap());
    let again = prepare(&job).unwrap();
    assert_eq!(again.resumed.as_ref().map(|written| written.step), Some(7));
    assert_eq!(finish(&again), whole);
    let other = place.job("adapter: {rank: 8}\ntraining: {steps: 7, batch: 4}\n");
    let error = prepare(&other).unwrap_err();
    assert!(error.to_string().contains("another form"), "{error}");
}

#[test]
fn a_new_adapter_changes_nothing() {
    let place = Place::new("tied");
    let targets = "targets: [q_proj, down_proj, lm_head]";
    let job = place.job(&format!("adapter: {{rank: 4, dora: true, {targets}}}\n"));
    let prepared = prepare(&job).unwrap();
    let values = &prepared.state.values;
    let base = BaseName::default();
    let adapter = layout::adapter(&prepared.parameters, values, &prepared.config, base);
    let weights = weights(&prepared.config, &job.model).unwrap();
    for (site, part) in adapter.parts() {
        assert!(part.b.values().iter().all(|b| *b == 0.0));
        assert!(part.a.values().iter().any(|a| *a != 0.0));
        let gains = part.gains(site, &weights).unwrap().unwrap();
        assert!(gains.iter().all(|gain| (gain - 1.0).abs() < 1e-6), "{site}");
    }
    assert!(adapter.get(Site::Head).is_some());
}

#[test]
fn fused_modules_share_their_a() {
    let place = Place::new("phi3");
    let prepared = prepare(&place.job("adapter: {rank: 4}\n")).unwrap();
    let parts = &prepared.parameters.parts;
    assert_eq!(parts[0].a, parts[1].a);
    assert_eq!(parts[0].a, parts[2].a);
    assert_ne!(parts[0].a, parts[3].a, "the output's is its own");
    assert_eq!(parts.len(), 7 * prepared.config.num_layers());
    // Every number belongs to a part.
    let mut owned = vec![false; prepared.parameters.len];
    for part in parts {
        owned[part.a.clone()].fill(true);
        owned[part.b.clone()].fill(true);
    }
    assert!(owned.into_iter().all(|owned| owned));
}

#[test]
fn what_does_not_fit_the_model_or_the_data_is_refused_with_its_field() {
    let place = Place::new("tied");
    for (more, expected) in [
        (
            "adapter: {rank: 4, targets: [embed_tokens, lm_head]}",
            "one weight",
        ),
        (
            "adapter: {rank: 4, targets: [qkv_proj]}",
            "no qkv_proj: it has q_proj",
        ),
        ("adapter: {rank: 4, targets: []}", "the list is empty"),
        ("adapter: {rank: 4096}", "adapter.rank: 4096 is more than"),
        (
            "eval: {records: 10}",
            "eval.records: nothing would be left of 10",
        ),
        (
            "eval: {fraction: 0.99}",
            "eval.fraction: nothing would be left",
        ),
        ("eval: {path: /nowhere}", "eval.path"),
        ("adapter: {from: /nowhere}", "adapter.from"),
        ("method: dpo", "set method to sft"),
    ] {
        place.refused(more, expected);
    }
    let mut job = place.job("");
    job.data.max_length = 100_000;
    let error = prepare(&job).unwrap_err().to_string();
    assert!(error.contains("data.maxLength: the model has"), "{error}");
    job.data.max_length = 64;
    job.data.path = place.folder.path().join("none.jsonl");
    assert!(matches!(
        prepare(&job),
        Err(PrepareError::Data(DataError::Read { .. }))
    ));
}

#[test]
fn data_of_a_folder_leave_out_what_eval_and_gates_name() {
    let place = Place::new("qwen3");
    let at = place.folder.path();
    let data = at.join("data");
    fs::create_dir(&data).unwrap();
    let records = |name: &str, count: usize, token: u32| {
        let line = format!("{{\"input_ids\":[{token},2,1]}}\n");
        fs::write(data.join(name), line.repeat(count)).unwrap();
    };
    records("train.jsonl", 5, 3);
    records("valid.jsonl", 3, 4);
    records("checks.jsonl", 2, 5);
    let shown = data.display();
    let more = format!(
        "adapter: {{rank: 4}}\neval: {{path: {shown}/valid.jsonl}}\n\
         gates: [{{metric: exactMatch, min: 1, path: {shown}/checks.jsonl}}]\n"
    );
    let mut job = place.job(&more);
    job.data.path.clone_from(&data);
    let prepared = prepare(&job).unwrap();
    assert_eq!(prepared.train.len(), 5);
    assert_eq!(prepared.report.left_out, ["checks.jsonl", "valid.jsonl"]);
    assert_eq!(prepared.eval.as_ref().map(Subset::len), Some(3));
    // As in a pod, whose gates stand elsewhere.
    job.gates.clear();
    let around = Around {
        judged_by: vec![data.join("ch*")],
        ..Around::default()
    };
    let prepared = super::prepare(&job, &around).unwrap();
    assert_eq!(prepared.report.left_out, ["checks.jsonl", "valid.jsonl"]);
    // And the other way round: a folder to be judged by, beside a file to learn from.
    job.data.path = data.join("train.jsonl");
    job.eval.as_mut().unwrap().path = Some(data.join("*"));
    let prepared = prepare(&job).unwrap();
    assert_eq!(
        (
            prepared.train.len(),
            prepared.eval.as_ref().map(Subset::len)
        ),
        (5, Some(5))
    );
    assert_eq!(prepared.eval_report.unwrap().left_out, ["train.jsonl"]);
}

#[test]
fn a_job_does_not_go_on_with_another_model_or_adapter_to_begin_with() {
    let place = Place::new("qwen3");
    let at = place.folder.path();
    let first =
        prepare(&place.job("adapter: {rank: 4}\ntraining: {steps: 3, batch: 4}\n")).unwrap();
    let finished = finish(&first);
    let files = first.publish(&finished).unwrap().0;
    let more = |output: &str| {
        let from = files.tensors.display();
        let job = place.job(&format!(
            "adapter: {{from: {from}}}\ntraining: {{steps: 3, batch: 4}}\n"
        ));
        Job {
            output: at.join(output),
            ..job
        }
    };
    let told = |job: &Job| {
        let prepared = prepare(job).unwrap();
        let mut learner = Puller(prepared.parameters.clone());
        let error = prepared.train(&mut learner, &mut NoObserver, &Control::default());
        error.unwrap_err().to_string()
    };
    let job = more("next");
    finish(&prepare(&job).unwrap());
    // The same form with other numbers.
    let mut values = finished.values.clone();
    values[0] += 1.0;
    first
        .publish(&Finished {
            values,
            ..finished.clone()
        })
        .unwrap();
    assert!(told(&job).contains("went on from the adapter"));
    // One number of one tensor of the model.
    first.publish(&finished).unwrap();
    finish(&prepare(&job).unwrap());
    let weights = job.model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert!(told(&job).contains("trained on the model"));
}

#[test]
fn data_that_are_being_read_are_left_when_somebody_wishes_it() {
    let place = Place::new("qwen3");
    let around = Around::default();
    around.control.suspend();
    let error = super::prepare(&place.job("adapter: {rank: 4}\n"), &around).unwrap_err();
    assert!(matches!(error, PrepareError::Ended), "{error}");
}

#[test]
fn an_adapter_on_both_of_one_weight_is_not_gone_on_from() {
    let place = Place::new("tied");
    let with = |target: &str| {
        let targets = format!("targets: [q_proj, {target}]");
        prepare(&place.job(&format!("adapter: {{rank: 4, {targets}}}\n"))).unwrap()
    };
    let of = |prepared: &Prepared| {
        let base = BaseName::default();
        let (parameters, values) = (&prepared.parameters, &prepared.state.values);
        layout::adapter(parameters, values, &prepared.config, base)
    };
    let (embedding, head) = (with("embed_tokens"), with("lm_head"));
    let (embedding, head) = (of(&embedding), of(&head));
    let both = embedding
        .parts()
        .chain(head.parts().filter(|(site, _)| *site == Site::Head));
    let both = both.map(|(site, part)| (site, part.clone())).collect();
    let (config, _) = DecoderConfig::read(&place.job("").model).unwrap();
    let both = hyprstream_models::adapter::Adapter::new(&config, both, BaseName::default());
    let folder = place.folder.path().join("both");
    fs::create_dir(&folder).unwrap();
    let files = AdapterFiles {
        tensors: folder.join("adapter_model.safetensors"),
        config: folder.join("adapter_config.json"),
    };
    both.write(&files, &config).unwrap();
    let more = format!("adapter: {{from: {}}}", folder.display());
    place.refused(&more, "adapter.from: it changes embed_tokens and lm_head");
}
