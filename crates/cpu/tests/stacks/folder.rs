//! Model folders whose weights can be changed.

use std::{collections::BTreeMap, fs, path::Path};

use hyprstream_cpu::{AdapterLayer, AdapterWeights, LowRank};
use hyprstream_goldens::Tiny;
use serde_json::{Value, json};

/// A model's configuration and its weights in f32.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Folder {
    /// The tiny model of this name.
    pub(crate) fn of(name: &str) -> Self {
        let dir = Tiny::read(name).dir().to_owned();
        let config = fs::read(dir.join("config.json")).unwrap();
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let data = &bytes[8 + length..];
        let entries = header.as_object().unwrap().iter();
        let tensors = entries.filter(|(name, _)| *name != "__metadata__");
        let tensors = tensors.map(|(name, entry)| {
            let sizes = |key: &str| -> Vec<usize> {
                let list = entry[key].as_array().unwrap().iter();
                list.map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let offsets = sizes("data_offsets");
            let numbers = &data[offsets[0]..offsets[1]];
            let numbers = match entry["dtype"].as_str().unwrap() {
                "F32" => numbers.as_chunks::<4>().0.iter(),
                other => panic!("{name} is {other}"),
            };
            let numbers = numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect();
            (name.clone(), (sizes("shape"), numbers))
        });
        Self {
            tensors: tensors.collect(),
            config: serde_json::from_slice(&config).unwrap(),
        }
    }

    /// The same with sizes that fewer bits can have, and other weights.
    pub(crate) fn widened(mut self) -> Self {
        let narrow = self.number("intermediate_size");
        let wide = narrow.next_multiple_of(32);
        self.config["intermediate_size"] = wide.into();
        let mut random = fastrand::Rng::with_seed(8);
        for (shape, numbers) in self.tensors.values_mut() {
            for size in shape.iter_mut().filter(|size| **size == narrow) {
                *size = wide;
            }
            numbers.clear();
            let norm = shape.len() == 1;
            numbers.resize_with(shape.iter().product(), || {
                let number = random.f32() - 0.5;
                if norm { 1.0 + 0.2 * number } else { number }
            });
        }
        self
    }

    /// The same with a head of its own.
    pub(crate) fn untied(mut self) -> Self {
        self.config["tie_word_embeddings"] = false.into();
        let table = self.tensors["model.embed_tokens.weight"].clone();
        self.tensors
            .entry("lm_head.weight".to_owned())
            .or_insert(table);
        self
    }

    pub(crate) fn number(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    fn head_dim(&self) -> usize {
        let all = self.number("hidden_size") / self.number("num_attention_heads");
        self.config["head_dim"].as_u64().map_or(all, |n| n as usize)
    }

    pub(crate) fn layers(&self) -> usize {
        self.number("num_hidden_layers")
    }

    /// Inputs and outputs of a map.
    fn sizes(&self, map: &str) -> (usize, usize) {
        let (hidden, inner) = (self.number("hidden_size"), self.number("intermediate_size"));
        let queries = self.number("num_attention_heads") * self.head_dim();
        let keys = self.number("num_key_value_heads") * self.head_dim();
        match map {
            "query" => (hidden, queries),
            "key" | "value" => (hidden, keys),
            "output" => (queries, hidden),
            "gate" | "up" => (hidden, inner),
            "embedding" => (self.number("vocab_size"), hidden),
            "head" => (hidden, self.number("vocab_size")),
            _ => (inner, hidden),
        }
    }

    /// An adapter with random factors that changes `maps`.
    pub(crate) fn adapter(&self, maps: &[&str], rank: usize, seed: u64) -> AdapterWeights {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut change = |map: &str| {
            let (inputs, outputs) = self.sizes(map);
            let mut numbers =
                |count: usize| -> Vec<f32> { (0..count).map(|_| random.f32() - 0.5).collect() };
            LowRank {
                rank,
                a: numbers(rank * inputs),
                b: numbers(outputs * rank),
                scale: 0.5,
            }
        };
        let mut adapter = AdapterWeights {
            layers: vec![AdapterLayer::default(); self.layers()],
            embedding: maps.contains(&"embedding").then(|| change("embedding")),
            head: maps.contains(&"head").then(|| change("head")),
        };
        for layer in &mut adapter.layers {
            for map in maps.iter().filter(|map| MAPS.contains(map)) {
                *place(layer, map) = Some(change(map));
            }
        }
        adapter
    }

    /// The same with `scale` times `adapter` in its weights.
    pub(crate) fn changed(&self, adapter: &AdapterWeights, scale: f32) -> Self {
        let mut changed = self.clone();
        if let Some(change) = &adapter.embedding {
            let name = "model.embed_tokens.weight";
            let (tokens, hidden) = self.sizes("embedding");
            let sums = sums(change, (tokens, hidden), scale);
            let table = &mut changed.tensors.get_mut(name).unwrap().1;
            for token in 0..tokens {
                for h in 0..hidden {
                    table[token * hidden + h] += sums[h * tokens + token];
                }
            }
        }
        if let Some(change) = &adapter.head {
            let sums = sums(change, self.sizes("head"), scale).into_iter();
            let head = &mut changed.tensors.get_mut("lm_head.weight").unwrap().1;
            head.iter_mut()
                .zip(sums)
                .for_each(|(weight, sum)| *weight += sum);
        }
        for (index, layer) in adapter.layers.iter().enumerate() {
            let mut layer = layer.clone();
            for map in MAPS {
                let Some(change) = place(&mut layer, map).take() else {
                    continue;
                };
                let sums = sums(&change, self.sizes(map), scale);
                let weight = changed.weight(index, map).iter_mut();
                weight.zip(sums).for_each(|(weight, sum)| *weight += sum);
            }
        }
        changed
    }

    /// The weights of a map, `[outputs, inputs]`.
    fn weight(&mut self, layer: usize, map: &str) -> &mut [f32] {
        let name = match map {
            "query" => "self_attn.q_proj",
            "key" => "self_attn.k_proj",
            "value" => "self_attn.v_proj",
            "output" => "self_attn.o_proj",
            "gate" => "mlp.gate_proj",
            "up" => "mlp.up_proj",
            _ => "mlp.down_proj",
        };
        let name = format!("model.layers.{layer}.{name}.weight");
        &mut self.tensors.get_mut(&name).unwrap().1
    }

    pub(crate) fn write(&self, dir: &Path) {
        let config = serde_json::to_vec(&self.config).unwrap();
        fs::write(dir.join("config.json"), config).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (shape, numbers)) in &self.tensors {
            let start = data.len();
            data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            let entry =
                json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name.clone(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        fs::write(dir.join("model.safetensors"), bytes).unwrap();
    }
}

/// `scale` times what a change adds, `[outputs, inputs]`.
fn sums(change: &LowRank, (inputs, outputs): (usize, usize), scale: f32) -> Vec<f32> {
    let factor = f64::from(change.scale) * f64::from(scale);
    let mut sums = Vec::new();
    for o in 0..outputs {
        for i in 0..inputs {
            let each = (0..change.rank).map(|r| {
                let (a, b) = (change.a[r * inputs + i], change.b[o * change.rank + r]);
                f64::from(a) * f64::from(b)
            });
            sums.push((factor * each.sum::<f64>()) as f32);
        }
    }
    sums
}

/// All maps of a layer.
pub(crate) const MAPS: [&str; 7] = ["query", "key", "value", "output", "gate", "up", "down"];

pub(crate) fn place<'a>(layer: &'a mut AdapterLayer, map: &str) -> &'a mut Option<LowRank> {
    match map {
        "query" => &mut layer.query,
        "key" => &mut layer.key,
        "value" => &mut layer.value,
        "output" => &mut layer.output,
        "gate" => &mut layer.gate,
        "up" => &mut layer.up,
        _ => &mut layer.down,
    }
}
