//! What is written for PEFT. That PEFT computes the same with it is in the goldens.

use proptest::prelude::*;

use super::*;

fn write(adapter: &Adapter, base: &Base) -> (tempfile::TempDir, AdapterFiles) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("adapters")).unwrap();
    let files = AdapterFiles::numbered(dir.path(), 7, "sql");
    adapter.write(&files, &base.config).unwrap();
    (dir, files)
}

#[track_caller]
fn back(files: &AdapterFiles, base: &Base) -> Adapter {
    let limits = AdapterLimits::default();
    Adapter::read(files, &base.config, &base.weights, limits).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_is_written_reads_back_the_same() {
    let everything = ["_proj", "lm_head", "embed_tokens"];
    for base in [&*TIED, &*PHI3] {
        let adapter = Files::peft(base, &everything)
            .with("target_modules", json!("(.*_proj)|lm_head|.*embed_tokens"))
            .with("base_model_name_or_path", "some/model")
            .read(base);
        let (dir, files) = write(&adapter, base);
        let read = back(&files, base);
        assert_eq!(read.digest(), adapter.digest());
        assert_eq!(read.base(), adapter.base());
        let listed = AdapterFiles::list(dir.path()).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (&*listed[0].name, listed[0].files.as_ref().unwrap()),
            ("sql", &files)
        );
        // Nothing else was left.
        let left = fs::read_dir(dir.path().join("adapters")).unwrap();
        assert_eq!(left.count(), 2);
    }
}

#[test]
fn ranks_and_scales_of_their_own_become_patterns() {
    let mut files = Files::peft(&TIED, &["q_proj"]);
    files.add(&TIED, "model.layers.1.mlp.up_proj", 5);
    let adapter = files
        .with("target_modules", json!(["q_proj", "up_proj"]))
        .with("rank_pattern", json!({"up_proj": 5}))
        .with("use_rslora", true)
        .with("layers_to_transform", json!([0, 1]))
        .with("exclude_modules", json!(["layers.0.mlp.up_proj"]))
        .read(&TIED);
    let (_dir, files) = write(&adapter, &TIED);
    let config: Value = serde_json::from_slice(&fs::read(&files.config).unwrap()).unwrap();
    assert_eq!(
        config["target_modules"],
        json!(["model.layers.1.mlp.up_proj", "q_proj"])
    );
    assert_eq!(
        config["rank_pattern"],
        json!({"model.layers.1.mlp.up_proj": 5})
    );
    assert_eq!(back(&files, &TIED).digest(), adapter.digest());
}

#[test]
fn a_magnitude_for_only_some_is_refused() {
    let parts = |linears: &[(Linear, bool)]| {
        let part = |(linear, dora): &(Linear, bool)| {
            let site = Site::Layer(0, *linear);
            let (outputs, inputs) = site.size(&PHI3.config);
            let part = LowRank {
                a: Matrix::new(1, vec![1.0; inputs]),
                b: Matrix::new(outputs, vec![1.0; outputs]),
                scaling: 1.0,
                magnitude: dora.then(|| vec![1.0; outputs].into()),
            };
            (site, part)
        };
        let parts = linears.iter().map(part).collect();
        Adapter::new(&PHI3.config, parts, BaseName::default())
    };
    let dir = tempfile::tempdir().unwrap();
    let files = AdapterFiles {
        tensors: dir.path().join("a.safetensors"),
        config: dir.path().join("a.config.json"),
    };
    for linears in [
        &[(Linear::Gate, true)][..],
        &[(Linear::Gate, true), (Linear::Up, false)],
        &[(Linear::Output, false), (Linear::Down, true)],
    ] {
        let error = parts(linears).write(&files, &PHI3.config).unwrap_err();
        assert_eq!(error.reason(), "Unwritable", "{error}");
        assert!(error.to_string().contains("magnitude (DoRA)"), "{error}");
    }
    assert!(!files.tensors.exists() && !files.config.exists());
    parts(&[(Linear::Gate, true), (Linear::Up, true)])
        .write(&files, &PHI3.config)
        .unwrap();
}

#[test]
fn where_it_cannot_be_written_the_file_is_named() {
    let adapter = Files::peft(&TIED, &["q_proj"]).read(&TIED);
    let dir = tempfile::tempdir().unwrap();
    let files = AdapterFiles::numbered(&dir.path().join("gone"), 1, "a");
    let error = adapter.write(&files, &TIED.config).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");
    assert!(error.to_string().contains("01_a.safetensors"), "{error}");
    assert!(!error.is_final());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_scaling_survives(rank in 1..40_usize, alpha in 0.0..200.0_f64, stabilized: bool) {
        let mut files = Files::peft(&TIED, &[]).with("target_modules", json!(["lm_head"]));
        files.add(&TIED, "lm_head", rank);
        let files = files.with("r", rank).with("lora_alpha", alpha).with("use_rslora", stabilized);
        let adapter = files.read(&TIED);
        let (_dir, files) = write(&adapter, &TIED);
        prop_assert_eq!(back(&files, &TIED).digest(), adapter.digest());
    }

    #[test]
    fn parts_of_a_fused_module_with_matrices_of_their_own_add_the_same(
        ranks in proptest::collection::vec(0..4_usize, 3),
        scalings in proptest::collection::vec(-2.0..2.0_f32, 3),
    ) {
        prop_assume!(ranks.iter().any(|rank| *rank > 0));
        let linears = [Linear::Query, Linear::Key, Linear::Value];
        let mut parts = BTreeMap::new();
        for ((linear, rank), scaling) in linears.into_iter().zip(ranks).zip(scalings) {
            let site = Site::Layer(1, linear);
            let (outputs, inputs) = site.size(&PHI3.config);
            let name = site.to_string();
            if rank > 0 {
                parts.insert(site, LowRank {
                    a: Matrix::new(rank, Stored::new(&name, &[rank, inputs]).values),
                    b: Matrix::new(outputs, Stored::new(&name, &[outputs, rank]).values),
                    scaling,
                    magnitude: None,
                });
            }
        }
        let adapter = Adapter::new(&PHI3.config, parts, BaseName::default());
        let (_dir, files) = write(&adapter, &PHI3);
        let read = back(&files, &PHI3);
        for linear in linears {
            let site = Site::Layer(1, linear);
            let (outputs, inputs) = site.size(&PHI3.config);
            let none = vec![0.0; outputs * inputs];
            let ours = read.get(site).unwrap().delta(&[]);
            let theirs = adapter.get(site).map_or(none, |part| part.delta(&[]));
            let close = ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-4);
            prop_assert!(close, "{site}");
        }
    }
}
