//! Model folders whose weights can be changed.

use std::{collections::BTreeMap, fs, path::Path};

use hyprstream_goldens::Tiny;
use hyprstream_models::{
    DecoderConfig,
    adapter::{Adapter, BaseName, Linear, LowRank, Matrix, Site},
};
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

    /// What the model's configuration means.
    pub(crate) fn decoder(&self) -> DecoderConfig {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        DecoderConfig::read(dir.path()).unwrap().0
    }

    /// An adapter with random factors that changes these maps of all layers.
    pub(crate) fn adapter(&self, maps: &[Linear], rank: usize, seed: u64) -> Adapter {
        self.adapter_of(self.sites(maps), rank, seed)
    }

    /// An adapter with random factors that changes these places.
    pub(crate) fn adapter_of(&self, sites: Vec<Site>, rank: usize, seed: u64) -> Adapter {
        self.with_parts(self.parts(sites, rank, seed))
    }

    /// These maps of all layers.
    pub(crate) fn sites(&self, maps: &[Linear]) -> Vec<Site> {
        let layers = 0..self.number("num_hidden_layers");
        let each = layers.flat_map(|index| maps.iter().map(move |map| Site::Layer(index, *map)));
        each.collect()
    }

    /// Random changes of these places.
    pub(crate) fn parts(&self, sites: Vec<Site>, rank: usize, seed: u64) -> Parts {
        let (config, mut random) = (self.decoder(), fastrand::Rng::with_seed(seed));
        let mut matrix = |rows: usize, columns: usize| {
            let numbers = (0..rows * columns).map(|_| random.f32() - 0.5);
            Matrix::new(rows, numbers.collect())
        };
        let each = sites.into_iter().map(|site| {
            let (outputs, inputs) = site.size(&config);
            let part = LowRank {
                a: matrix(rank, inputs),
                b: matrix(outputs, rank),
                scaling: 0.5,
                magnitude: None,
            };
            (site, part)
        });
        each.collect()
    }

    /// The same changes with DoRA.
    pub(crate) fn with_magnitudes(mut parts: Parts, seed: u64) -> Parts {
        let mut random = fastrand::Rng::with_seed(seed);
        for part in parts.values_mut() {
            let (outputs, _) = part.size();
            let lengths = (0..outputs).map(|_| 1.0 + random.f32());
            part.magnitude = Some(lengths.collect());
        }
        parts
    }

    /// An adapter of these parts.
    pub(crate) fn with_parts(&self, parts: Parts) -> Adapter {
        Adapter::new(&self.decoder(), parts, BaseName::default())
    }

    /// The same with `scale` times `adapter` in its weights.
    pub(crate) fn changed(&self, adapter: &Adapter, scale: f32) -> Self {
        let mut changed = self.clone();
        for (site, part) in adapter.parts() {
            let (outputs, inputs) = part.size();
            let weight = changed.weight(site);
            // The table of embeddings is the other way round.
            let place = |at: usize| match site {
                Site::Embedding => at % inputs * outputs + at / inputs,
                Site::Layer(..) | Site::Head => at,
            };
            let base: Vec<_> = (0..weight.len()).map(|at| weight[place(at)]).collect();
            for (at, added) in part.delta(&base).into_iter().enumerate() {
                weight[place(at)] += scale * added;
            }
        }
        changed
    }

    /// The weights at a place.
    pub(crate) fn weight(&mut self, site: Site) -> &mut [f32] {
        let name = format!("{site}.weight");
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

/// The changes of an adapter.
pub(crate) type Parts = BTreeMap<Site, LowRank>;
