//! Adapters of the tiny models, made by PEFT, and what PEFT computes with them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use hyprstream_models::{
    Checkpoint, DecoderConfig, WeightNames, Weights,
    adapter::{Adapter, AdapterFiles, AdapterLimits, Linear, Site},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;
use serde_json::Value;

use crate::{Tiny, data, read};

/// Names of the tiny models that have adapters: one of each family, and one with every bias.
pub const ADAPTED: [&str; 8] = [
    "tied", "biases", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3",
];

/// Largest difference of a logit with an adapter in f32.
pub const ADAPTER_TOLERANCE: f32 = 1e-4;

/// The adapters of one tiny model.
#[derive(Debug)]
pub struct Adapters {
    tiny: Tiny,
    config: DecoderConfig,
    weights: Weights,
    /// Tensors and logits of all cases.
    file: Vec<u8>,
    description: Description,
}

#[derive(Debug, Deserialize)]
struct Description {
    cases: BTreeMap<String, Value>,
    stacks: BTreeMap<String, Vec<(String, f32)>>,
}

impl Adapters {
    /// Those of the tiny model of this name.
    pub fn read(name: &str) -> Self {
        let tiny = Tiny::read(name);
        let (config, _) = DecoderConfig::read(tiny.dir()).unwrap();
        let weights = Weights::take(&config, Checkpoint::open(tiny.dir()).unwrap()).unwrap();
        let folder = data().join("adapters");
        Self {
            file: fs::read(folder.join(format!("{name}.safetensors"))).unwrap(),
            description: read(&folder.join(format!("{name}.json"))),
            tiny,
            config,
            weights,
        }
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        self.tiny.name()
    }

    /// The model's configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The model's weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Names of the adapters; `adapters.py` says what each shows.
    pub fn cases(&self) -> impl Iterator<Item = &str> {
        self.description.cases.keys().map(String::as_str)
    }

    /// Stacks: adapters with their scales, by name.
    pub fn stacks(&self) -> impl Iterator<Item = (&str, &[(String, f32)])> {
        let stacks = self.description.stacks.iter();
        stacks.map(|(name, stack)| (name.as_str(), stack.as_slice()))
    }

    /// PEFT's configuration of an adapter.
    pub fn peft_config(&self, case: &str) -> Value {
        self.description.cases[case].clone()
    }

    /// The tokens that the logits are of.
    pub fn tokens(&self) -> &[u32] {
        let count = self.stored(&format!("{}/logits", self.cases().next().unwrap()));
        &self.tiny.tokens()[..count.shape()[0]]
    }

    /// PEFT's logits with an adapter, or a stack.
    pub fn logits(&self, name: &str) -> Vec<Vec<f32>> {
        let logits = self.stored(&format!("{name}/logits"));
        numbers(&logits)
            .chunks(logits.shape()[1])
            .map(<[f32]>::to_vec)
            .collect()
    }

    /// Puts the files of an adapter, as PEFT names them, into a folder.
    pub fn extract(&self, case: &str, folder: &Path) -> AdapterFiles {
        let config = &self.description.cases[case];
        extract(&self.file, &format!("{case}/"), config, folder)
    }

    /// The adapter as it is read from PEFT's files.
    #[track_caller]
    pub fn adapter(&self, case: &str) -> Adapter {
        let dir = tempfile::tempdir().unwrap();
        self.load(&self.extract(case, dir.path()))
    }

    /// The adapter in these files.
    #[track_caller]
    pub fn load(&self, files: &AdapterFiles) -> Adapter {
        let limits = AdapterLimits::default();
        Adapter::read(files, &self.config, &self.weights, limits).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A folder with the model in f32, into which adapters have been merged at these scales.
    pub fn merged(&self, stack: &[(&Adapter, f32)]) -> tempfile::TempDir {
        let mut model = Merge::of(&self.tiny.dir().join("model.safetensors"));
        let text = fs::read_to_string(self.tiny.dir().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        if self.config.tied_head {
            let table = model.tensors["model.embed_tokens.weight"].clone();
            model.tensors.insert("lm_head.weight".to_owned(), table);
            config["tie_word_embeddings"] = false.into();
        }
        config["dtype"] = "float32".into();
        model.add(stack, &self.config);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        model.write(&dir.path().join("model.safetensors"));
        dir
    }

    /// Writes some of the adapters, and parts of them for what is fused, below `root`, for
    /// `make.py written`: `MODEL/NAME/adapter_model.safetensors` and `adapter_config.json`.
    pub fn write_some(&self, root: &Path) -> Vec<(String, PathBuf, Adapter)> {
        let mut written = Vec::new();
        let mut write = |name: &str, adapter: Adapter| {
            let folder = root.join(self.tiny.name()).join(name);
            fs::create_dir_all(&folder).unwrap();
            let files = AdapterFiles {
                tensors: folder.join("adapter_model.safetensors"),
                config: folder.join("adapter_config.json"),
            };
            adapter.write(&files, &self.config).unwrap();
            written.push((format!("{}/{name}", self.tiny.name()), folder, adapter));
        };
        for case in [
            "all-linear",
            "everything",
            "patterns",
            "patterns-rslora",
            "dora",
            "regex",
        ] {
            write(case, self.adapter(case));
        }
        // With matrices A of their own, and without a part of what is fused.
        let (all, other) = (self.adapter("all-linear"), self.adapter("rslora"));
        let mixed = |with: &dyn Fn(Linear) -> Option<bool>| {
            let mut parts = BTreeMap::new();
            for site in all.parts().map(|(site, _)| site) {
                let Site::Layer(_, linear) = site else {
                    continue;
                };
                let from = match with(linear) {
                    Some(true) => other.get(site).or(all.get(site)),
                    Some(false) => all.get(site),
                    None => None,
                };
                parts.extend(from.map(|part| (site, part.clone())));
            }
            Adapter::new(&self.config, parts, all.base().clone())
        };
        write(
            "own-matrices",
            mixed(&|linear| Some(linear == Linear::Query)),
        );
        write(
            "holes",
            mixed(&|linear| (!matches!(linear, Linear::Key | Linear::Gate)).then_some(false)),
        );
        written
    }

    fn stored(&self, name: &str) -> TensorView<'_> {
        let all = SafeTensors::deserialize(&self.file).unwrap();
        all.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

/// Puts those tensors of `file` whose names begin with `prefix` into a folder as PEFT's files, but
/// what is no part of an adapter.
pub(crate) fn extract(file: &[u8], prefix: &str, config: &Value, folder: &Path) -> AdapterFiles {
    let all = SafeTensors::deserialize(file).unwrap();
    let tensors: BTreeMap<_, _> = all
        .iter()
        .filter_map(|(name, tensor)| {
            let name = name.strip_prefix(prefix)?;
            (name != "logits").then_some((name, tensor))
        })
        .collect();
    let files = AdapterFiles {
        tensors: folder.join("adapter_model.safetensors"),
        config: folder.join("adapter_config.json"),
    };
    fs::create_dir_all(folder).unwrap();
    fs::write(
        &files.tensors,
        safetensors::serialize(tensors, None).unwrap(),
    )
    .unwrap();
    fs::write(&files.config, config.to_string()).unwrap();
    files
}

/// What `make.py written` found that PEFT makes of an adapter that we wrote.
#[derive(Debug, Deserialize)]
pub struct Written {
    /// Of the file of tensors.
    pub tensors_sha256: String,
    /// Of the configuration.
    pub config_sha256: String,
    /// PEFT's, rounded.
    pub logits: Vec<Vec<f32>>,
}

impl Written {
    /// All of them, by `MODEL/NAME`.
    pub fn read() -> BTreeMap<String, Self> {
        read(&data().join("adapters/written.json"))
    }
}

/// Tensors of a model in f32: shape and numbers.
struct Merge {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Merge {
    fn of(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.iter().map(|(name, tensor)| {
            let value = (tensor.shape().to_vec(), numbers(&tensor));
            (name.to_owned(), value)
        });
        Self {
            tensors: tensors.collect(),
        }
    }

    fn add(&mut self, stack: &[(&Adapter, f32)], config: &DecoderConfig) {
        let mut sums: BTreeMap<Site, Vec<f32>> = BTreeMap::new();
        for (adapter, scale) in stack {
            for (site, part) in adapter.parts() {
                let delta = part.delta(&self.weight(site, config));
                let sum = sums.entry(site).or_insert_with(|| vec![0.0; delta.len()]);
                sum.iter_mut()
                    .zip(delta)
                    .for_each(|(sum, x)| *sum += scale * x);
            }
        }
        for (site, sum) in sums {
            let (outputs, inputs) = site.size(config);
            let (name, from) = place(site, config);
            let (_, values) = self.tensors.get_mut(&name).unwrap();
            for (output, row) in sum.chunks(inputs).enumerate() {
                for (input, value) in row.iter().enumerate() {
                    let at = if site == Site::Embedding {
                        input * outputs + output
                    } else {
                        (from + output) * inputs + input
                    };
                    values[at] += value;
                }
            }
        }
    }

    /// `[out, in]`.
    fn weight(&self, site: Site, config: &DecoderConfig) -> Vec<f32> {
        let (outputs, inputs) = site.size(config);
        let (name, from) = place(site, config);
        let (_, values) = &self.tensors[&name];
        if site == Site::Embedding {
            let rows = (0..outputs).flat_map(|row| values.iter().skip(row).step_by(outputs));
            rows.copied().collect()
        } else {
            values[from * inputs..(from + outputs) * inputs].to_vec()
        }
    }

    fn write(&self, path: &Path) {
        let bytes: BTreeMap<_, Vec<u8>> = self
            .tensors
            .iter()
            .map(|(name, (_, values))| {
                (name, values.iter().flat_map(|x| x.to_le_bytes()).collect())
            })
            .collect();
        let views = self.tensors.iter().map(|(name, (shape, _))| {
            let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap();
            (name, view)
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

/// The tensor that holds a weight, and the row at which it begins there.
fn place(site: Site, config: &DecoderConfig) -> (String, usize) {
    let rows = |linear: Linear| linear.size(config).0;
    match site {
        Site::Layer(index, linear) if config.names == WeightNames::Fused => {
            let (name, from) = match linear {
                Linear::Query => ("self_attn.qkv_proj", 0),
                Linear::Key => ("self_attn.qkv_proj", rows(Linear::Query)),
                Linear::Value => (
                    "self_attn.qkv_proj",
                    rows(Linear::Query) + rows(Linear::Key),
                ),
                Linear::Gate => ("mlp.gate_up_proj", 0),
                Linear::Up => ("mlp.gate_up_proj", rows(Linear::Gate)),
                Linear::Output | Linear::Down => return (format!("{site}.weight"), 0),
            };
            (format!("model.layers.{index}.{name}.weight"), from)
        }
        _ => (format!("{site}.weight"), 0),
    }
}

fn numbers(tensor: &TensorView<'_>) -> Vec<f32> {
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let bytes = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => {
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
        Dtype::F16 => {
            let numbers = bytes.chunks(2).map(half);
            numbers.map(|bits| f16::from_bits(bits).to_f32()).collect()
        }
        Dtype::BF16 => {
            let numbers = bytes.chunks(2).map(half);
            numbers.map(|bits| bf16::from_bits(bits).to_f32()).collect()
        }
        other => panic!("{other:?}"),
    }
}
