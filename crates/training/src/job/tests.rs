use super::*;

const LEAST: &str = "model: m\ndata: {path: d.jsonl}\noutput: o\n";

#[test]
fn a_job_of_three_lines_has_the_defaults() {
    let job = Job::parse(LEAST).unwrap();
    assert_eq!(job.method, Method::Sft);
    assert_eq!(job.data.loss, Loss::Assistant);
    assert_eq!((job.data.max_length, job.data.packing), (1024, false));
    assert_eq!(job.training.batch, 16);
    assert!((job.learning_rate() - 2e-4).abs() < 1e-12);
    assert_eq!(job.training.decay, Decay::Cosine);
    assert!((job.training.optimiser.clip - 1.0).abs() < 1e-12);
    assert_eq!(job.micro_batch_tokens(), 2048);
    assert!(job.eval.is_none());
}

#[test]
fn a_job_is_read_back_as_it_was_written_in_both_languages() {
    let text = format!(
        "{LEAST}method: dpo\nbeta: 0.2\nadapter: {{rank: 8, targets: [q_proj, v_proj], rsLora: true}}\n\
         training: {{steps: 10, decay: linear, optimiser: {{weightDecay: 0.1}}}}\n\
         eval: {{fraction: 0.1, every: 5, keepBest: true}}\nseed: 7\n\
         gates: [{{metric: evalLoss, max: 0, baseline: lastKnownGood}}, \
         {{metric: jsonSchema, min: 0.5, path: p, schema: {{type: object}}}}]\n"
    );
    let job = Job::parse(&text).unwrap();
    assert_eq!(
        job.adapter.targets,
        Some(Targets::Named(vec!["q_proj".into(), "v_proj".into()]))
    );
    let json = serde_json::to_string(&job).unwrap();
    assert_eq!(Job::parse(&json).unwrap(), job);
    let yaml = serde_yaml::to_string(&job).unwrap();
    assert_eq!(Job::parse(&yaml).unwrap(), job);
    let all = format!("{LEAST}adapter: {{targets: all-linear}}");
    let all = Job::parse(&all).unwrap().adapter.targets;
    assert_eq!(all, Some(Targets::AllLinear));
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    for (more, field) in [
        ("adapter: {rank: 0}", "adapter.rank"),
        ("adapter: {alpha: 0}", "adapter.alpha"),
        ("adapter: {dropout: 1.0}", "adapter.dropout"),
        ("adapter: {from: a, rank: 8}", "adapter.rank"),
        ("method: dpo\nadapter: {dropout: 0.1}", "adapter.dropout"),
        ("beta: 0.1", "beta"),
        ("method: dpo\nbeta: 0", "beta"),
        ("training: {epochs: 1, steps: 5}", "training.epochs"),
        ("training: {epochs: 0}", "training.epochs"),
        ("training: {batch: 0}", "training.batch"),
        ("training: {learningRate: -1}", "training.learningRate"),
        ("training: {learningRate: .nan}", "training.learningRate"),
        ("training: {warmup: 2}", "training.warmup"),
        ("eval: {every: 5}", "eval"),
        ("eval: {fraction: 0.1, records: 3}", "eval"),
        ("eval: {fraction: 1.0}", "eval.fraction"),
        ("eval: {records: 0}", "eval.records"),
        ("checkpoints: {keep: 0}", "checkpoints.keep"),
        ("gates: [{metric: stopRate, min: 1}]", "gates"),
        ("gates: [{metric: stopRate, path: p}]", "gates"),
        ("gates: [{metric: stopRate, min: .inf, path: p}]", "gates"),
        (
            "gates: [{metric: stopRate, min: 1, path: p, maxTokens: 0}]",
            "gates",
        ),
        (
            "gates: [{metric: stopRate, min: 1, path: p, schema: {}}]",
            "gates",
        ),
    ] {
        match Job::parse(&format!("{LEAST}{more}\n")) {
            Err(JobError::Field { field: found, why }) => {
                assert_eq!(found, field, "{more}");
                assert!(why.contains("set") || why.contains("remove") || why.contains("keep"));
            }
            other => panic!("{more}: {other:?}"),
        }
    }
}

#[test]
fn a_field_that_is_not_known_is_refused_by_name() {
    for more in [
        "lr: 1",
        "training: {learning_rate: 1}",
        "data2: x",
        "method: kto",
        "gates: [{metric: servingParity, max: 1}]",
        "training: {optimiser: {momentum: 1}}",
        "adapter: {targets: all}",
    ] {
        let error = Job::parse(&format!("{LEAST}{more}\n")).unwrap_err();
        assert!(matches!(error, JobError::Form(_)), "{more}: {error}");
    }
}
