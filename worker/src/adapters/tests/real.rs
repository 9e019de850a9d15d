//! A tiny model's real weights, and adapters that PEFT made for it.

use hyprstream_engine::Backend;
use hyprstream_goldens::{Adapters as Made, Tiny};
use hyprstream_models::DType;

use super::{
    super::{ModelPacker, Packer},
    *,
};

/// The model that has adapters of all kinds.
const MODEL: &str = "qwen2";

struct Real {
    rig: Adapters,
    engine: EngineHandle,
    root: tempfile::TempDir,
}

/// The model on every backend of this build.
fn backends() -> Vec<(Box<dyn Backend>, Arc<dyn Packer>)> {
    let tiny = Tiny::read(MODEL);
    let options = hyprstream_cpu::LoadOptions {
        dtype: DType::Float32,
        threads: Some(1),
        kv_cache_bytes: Some(1 << 20),
        ..hyprstream_cpu::LoadOptions::default()
    };
    let backend = hyprstream_cpu::load(tiny.dir(), &options).unwrap();
    let packer = ModelPacker::open(tiny.dir(), backend.adapter_packer()).unwrap();
    #[allow(unused_mut, reason = "some builds have more of them")]
    let mut all: Vec<(Box<dyn Backend>, Arc<dyn Packer>)> =
        vec![(Box::new(backend), Arc::new(packer))];
    #[cfg(feature = "torch")]
    {
        let options = hyprstream_torch::LoadOptions {
            device: hyprstream_models::Device::Cpu,
            dtype: DType::Float32,
            threads: Some(1),
            kv_cache_bytes: Some(1 << 20),
            ..hyprstream_torch::LoadOptions::default()
        };
        let backend = hyprstream_torch::load(tiny.dir(), &options).unwrap();
        let packer = ModelPacker::open(tiny.dir(), backend.adapter_packer()).unwrap();
        all.push((Box::new(backend), Arc::new(packer)));
    }
    all
}

fn real(
    (backend, packer): (Box<dyn Backend>, Arc<dyn Packer>),
    made: &Made,
    prepare: impl FnOnce(&Path),
) -> Real {
    let engine = Engine::start(
        backend,
        Arc::new(fake::tokenizer()),
        EngineConfig::default(),
        Arc::new(NoObserver),
    )
    .unwrap();
    let root = tempfile::tempdir().unwrap();
    made.extract("all-linear", &root.path().join("good"));
    made.extract("dora", &root.path().join("dora"));
    Made::read("gemma2").extract("all-linear", &root.path().join("other"));
    prepare(root.path());
    let options = Options {
        root: Some(root.path().to_owned()),
        ..Options::default()
    };
    Real {
        rig: Adapters::new(engine.clone(), packer, options),
        engine,
        root,
    }
}

#[tokio::test]
async fn what_peft_made_is_served_and_answers_as_there() {
    for backend in backends() {
        answers_as_peft(backend).await;
    }
}

async fn answers_as_peft(backend: (Box<dyn Backend>, Arc<dyn Packer>)) {
    let made = Made::read(MODEL);
    let real = real(backend, &made, |_| {});
    let load = super::request::load("good", "good");
    real.rig.load(load).await.unwrap();
    let told = real.rig.list().data.remove(0);
    let serving = told.serving.unwrap();
    let adapter = made.adapter("all-linear");
    assert_eq!(serving.digest, adapter.digest().to_string());
    assert_eq!(serving.rank as usize, adapter.rank());
    let file = real.root.path().join("good/adapter_model.safetensors");
    assert_eq!(serving.size, fs::metadata(file).unwrap().len());
    assert!(serving.resident && serving.bytes > 0);
    assert_eq!(real.rig.load_seconds().unwrap().get_sample_count(), 1);

    let wanted = Wanted {
        name: "good".to_owned(),
        scale: None,
    };
    let taken = real.rig.take(&[wanted]).await.unwrap().remove(0);
    let request = Request {
        prompt: made.tokens().to_vec(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        stop: StopRules {
            max_tokens: Some(1),
            ..StopRules::default()
        },
        adapters: vec![(taken.adapter.clone(), taken.scale)],
        ..Request::default()
    };
    let mut stream = real.engine.submit(request).unwrap();
    let first = stream.next().await.unwrap().unwrap().tokens[0];
    let logits = made.logits("all-linear");
    let last = logits.last().unwrap();
    let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b]));
    assert_eq!(Some(first as usize), best);
}

#[tokio::test]
async fn what_the_model_cannot_compute_with_is_refused_by_name() {
    for backend in backends() {
        refuses_by_name(backend).await;
    }
}

async fn refuses_by_name(backend: (Box<dyn Backend>, Arc<dyn Packer>)) {
    let made = Made::read(MODEL);
    let cut = |root: &Path, name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let files = made.extract("all-linear", &root.join(name));
        let mut bytes = fs::read(&files.tensors).unwrap();
        change(&mut bytes);
        fs::write(files.tensors, bytes).unwrap();
    };
    let real = real(backend, &made, |root| {
        cut(root, "cut", &|bytes| bytes.truncate(bytes.len() - 7));
        cut(root, "empty", &Vec::clear);
        // The last numbers become NaN, in f32 as in halves.
        cut(root, "nan", &|bytes| {
            let end = bytes.len();
            bytes[end - 8..].fill(0xff);
        });
        cut(root, "pointer", &|bytes| {
            *bytes = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
        });
    });
    for (path, expected) in [
        ("cut", "DamagedFile"),
        ("empty", "DamagedFile"),
        ("nan", "NotFinite"),
        ("pointer", "NotFetched"),
        ("other", "UnknownTarget"),
    ] {
        let refused = real.rig.load(super::request::load("a", path)).await;
        let super::super::RequestError::Refused { reason, message } = refused.unwrap_err() else {
            panic!("{path} is refused")
        };
        assert_eq!(reason, expected, "{message}");
    }
    assert!(real.rig.list().data.is_empty());
    real.rig
        .load(super::request::load("a", "dora"))
        .await
        .unwrap();
}
