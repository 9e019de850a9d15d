//! Adapters: any two files are an adapter that fits the model, or refused with a reason.
//!
//! The first byte picks the model. A configuration follows up to a byte 0, then the JSON of a
//! header of tensors up to the next, then their bytes. Of these there are as many as the header
//! says, up to a bound, so that a short input can be a whole adapter.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use hyprstream_models::{
    Checkpoint, DecoderConfig, Weights,
    adapter::{Adapter, AdapterFiles, AdapterLimits},
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Tiny models of the goldens: one of separate projections whose embedding is the head, and one of
/// fused projections.
const MODELS: [&str; 2] = ["tied", "phi3"];
/// Most bytes of tensors that are added to an input.
const MAX_BYTES: usize = 1 << 20;

struct Base {
    config: DecoderConfig,
    weights: Weights,
}

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/goldens/data");
    let read = |name| {
        let dir = goldens.join(name);
        let (config, _) = DecoderConfig::read(&dir).expect("a golden has a configuration");
        let checkpoint = Checkpoint::open(&dir).expect("a golden has weights");
        let weights = Weights::take(&config, checkpoint).expect("they are those of the model");
        Base { config, weights }
    };
    MODELS.map(read).into()
});

/// In memory where there is such a place: the files are written for each input.
static FILES: LazyLock<AdapterFiles> = LazyLock::new(|| {
    let root = PathBuf::from("/dev/shm");
    let root = if root.is_dir() {
        root
    } else {
        std::env::temp_dir()
    };
    let folder = root.join(format!("hyprstream-fuzz-adapter-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    AdapterFiles {
        tensors: folder.join("adapter_model.safetensors"),
        config: folder.join("adapter_config.json"),
    }
});

fuzz_target!(|data: &[u8]| {
    let [kind, rest @ ..] = data else { return };
    let base = &BASES[usize::from(*kind) % BASES.len()];
    let mut parts = rest.splitn(3, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (config, header, bytes) = (part(), part(), part());
    let mut tensors = Vec::from((header.len() as u64).to_le_bytes());
    tensors.extend(header);
    let end = tensors.len() + said(header).min(MAX_BYTES).max(bytes.len());
    tensors.extend(bytes);
    // Small numbers of every type.
    tensors.resize(end, 0x3c);
    fs::write(&FILES.tensors, &tensors).expect("the file can be written");
    fs::write(&FILES.config, config).expect("the file can be written");

    let limits = AdapterLimits::default();
    match Adapter::read(&FILES, &base.config, &base.weights, limits) {
        Ok(adapter) => {
            assert!(adapter.rank() <= limits.max_rank, "{}", adapter.rank());
            for (site, part) in adapter.parts() {
                assert_eq!(part.size(), site.size(&base.config), "{site}");
                let numbers = part.a.values().iter().chain(part.b.values());
                assert!(part.scaling.is_finite() && numbers.copied().all(f32::is_finite));
            }
            let again = Adapter::read(&FILES, &base.config, &base.weights, limits);
            let again = again.expect("the same files give the same adapter");
            assert_eq!(again.digest(), adapter.digest());
        }
        Err(error) => {
            // Files that are there and are read are not a passing trouble.
            assert!(error.is_final(), "{error}");
            assert!(!error.to_string().is_empty() && !error.reason().is_empty());
        }
    }
});

/// How many bytes of tensors a header speaks of.
fn said(header: &[u8]) -> usize {
    let Ok(Value::Object(tensors)) = serde_json::from_slice(header) else {
        return 0;
    };
    let ends = tensors
        .values()
        .filter_map(|t| t["data_offsets"][1].as_u64());
    ends.max()
        .map_or(0, |end| usize::try_from(end).unwrap_or(usize::MAX))
}
