//! The same model in f64 and as plainly as it can be written.
#![allow(
    clippy::many_single_char_names,
    reason = "the names that the formulas have"
)]

use std::path::Path;

use hyprstream_models::{
    Activation, Checkpoint, DecoderConfig, LayerWeights, LinearWeights, StoredTensor, Weights,
    adapter::{Linear, Site},
};
use hyprstream_training::{Dropout, Parameters, Segment};

/// A model and its weights in f64.
pub(crate) struct Reference {
    pub(crate) config: DecoderConfig,
    layers: Vec<LayerMaps>,
    embedding: Vec<f64>,
    head: Vec<f64>,
    norm: Vec<f64>,
    scale: f64,
}

struct LayerMaps {
    /// In the order of [`Linear::ALL`].
    maps: Vec<Map>,
    norms: [Option<Vec<f64>>; 6],
}

struct Map {
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

/// An adapter and what falls out of its inputs.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) parameters: &'a Parameters,
    pub(crate) values: &'a [f64],
    pub(crate) dropout: Dropout,
}

fn numbers(tensor: &StoredTensor) -> Vec<f64> {
    tensor.to_f32().into_iter().map(f64::from).collect()
}

/// The nearest number that bf16 has.
fn bf16(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f64::from(f32::from_bits(rounded))
}

impl Reference {
    /// The model in `dir`, its matrices in bf16 if `half`.
    pub(crate) fn load(dir: &Path, half: bool) -> Self {
        let (config, _) = DecoderConfig::read(dir).unwrap();
        let weights = Weights::take(&config, Checkpoint::open(dir).unwrap()).unwrap();
        let matrix = |tensor: &StoredTensor| {
            let mut all = numbers(tensor);
            if half {
                for value in &mut all {
                    *value = bf16(*value);
                }
            }
            all
        };
        let norm = |tensor: &StoredTensor| {
            let plus = if config.norm_plus_one { 1.0 } else { 0.0 };
            numbers(tensor).into_iter().map(|w| w + plus).collect()
        };
        let map = |linear: &LinearWeights| Map {
            weight: matrix(&linear.weight),
            bias: linear.bias.as_ref().map(numbers),
        };
        let layer = |layer: &LayerWeights| LayerMaps {
            maps: [
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.output,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]
            .map(map)
            .into(),
            norms: [
                Some(&layer.attention_norm),
                layer.query_norm.as_ref(),
                layer.key_norm.as_ref(),
                layer.attention_post_norm.as_ref(),
                Some(&layer.mlp_norm),
                layer.mlp_post_norm.as_ref(),
            ]
            .map(|tensor| tensor.map(norm)),
        };
        let scale = f64::from(config.embedding_scale as f32);
        Self {
            layers: weights.layers.iter().map(layer).collect(),
            embedding: numbers(&weights.embedding),
            head: matrix(weights.head.as_ref().unwrap_or(&weights.embedding)),
            norm: norm(&weights.norm),
            scale: if half { bf16(scale) } else { scale },
            config,
        }
    }

    /// The negative log-likelihood of the trained tokens of a segment.
    pub(crate) fn segment(&self, segment: &Segment, change: Option<Change<'_>>) -> f64 {
        let config = &self.config;
        let hidden = config.hidden_size;
        let mut x: Vec<Vec<f64>> = segment
            .tokens
            .iter()
            .map(|token| {
                let row = &self.embedding[*token as usize * hidden..][..hidden];
                row.iter().map(|x| x * self.scale).collect()
            })
            .collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let linear = |map: Linear, x: &[Vec<f64>]| {
                let site = Site::Layer(index, map);
                Self::linear(&layer.maps[map as usize], site, x, segment.sample, change)
            };
            let normed = self.norm_rows(&x, layer.norms[0].as_ref().unwrap());
            let [mut q, mut k, v] =
                [Linear::Query, Linear::Key, Linear::Value].map(|map| linear(map, &normed));
            self.turn(index, &mut q, layer.norms[1].as_deref());
            self.turn(index, &mut k, layer.norms[2].as_deref());
            let attended = self.attend(index, &q, &k, &v);
            let y = linear(Linear::Output, &attended);
            self.join(&mut x, y, layer.norms[3].as_ref());
            let normed = self.norm_rows(&x, layer.norms[4].as_ref().unwrap());
            let (gate, up) = (linear(Linear::Gate, &normed), linear(Linear::Up, &normed));
            let inner: Vec<Vec<f64>> = gate
                .iter()
                .zip(&up)
                .map(|(gate, up)| gate.iter().zip(up).map(|(g, u)| self.act(*g) * u).collect())
                .collect();
            let y = linear(Linear::Down, &inner);
            self.join(&mut x, y, layer.norms[5].as_ref());
        }
        let last = self.norm_rows(&x, &self.norm);
        let mut loss = 0.0;
        for position in 1..segment.tokens.len() {
            if !segment.trained[position] {
                continue;
            }
            let row = &last[position - 1];
            let logits: Vec<f64> = self
                .head
                .chunks_exact(hidden)
                .map(|w| cap(config.logit_softcap, dot(w, row)))
                .collect();
            let most = logits.iter().fold(f64::MIN, |a, b| a.max(*b));
            let sum: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
            loss += most + sum.ln() - logits[segment.tokens[position] as usize];
        }
        loss
    }

    fn linear(
        map: &Map,
        site: Site,
        x: &[Vec<f64>],
        sample: u64,
        change: Option<Change<'_>>,
    ) -> Vec<Vec<f64>> {
        let inputs = x[0].len();
        let mut out: Vec<Vec<f64>> = x
            .iter()
            .map(|x| map.weight.chunks_exact(inputs).map(|w| dot(w, x)).collect())
            .collect();
        for row in &mut out {
            for (y, bias) in row.iter_mut().zip(map.bias.iter().flatten()) {
                *y += bias;
            }
        }
        let Some(change) = change else { return out };
        let parts = &change.parameters.parts;
        let Some(part) = parts.iter().find(|part| part.site == site) else {
            return out;
        };
        let first = parts.iter().find(|other| other.a == part.a).unwrap().site;
        let dropout = change.dropout;
        let (p, a) = (dropout.probability, &change.values[part.a.clone()]);
        let b = &change.values[part.b.clone()];
        for (position, (x, out)) in x.iter().zip(&mut out).enumerate() {
            let x: Vec<f64> = x
                .iter()
                .enumerate()
                .map(|(i, x)| {
                    let draws = dropout.draw(sample, first, position as u32, i as u32 / 4);
                    if draws[i % 4] < p {
                        0.0
                    } else {
                        x / (1.0 - f64::from(p))
                    }
                })
                .collect();
            let u: Vec<f64> = a.chunks_exact(inputs).map(|a| dot(a, &x)).collect();
            for (y, b) in out.iter_mut().zip(b.chunks_exact(part.rank)) {
                *y += f64::from(part.scaling) * dot(b, &u);
            }
        }
        out
    }

    fn norm_rows(&self, x: &[Vec<f64>], weight: &[f64]) -> Vec<Vec<f64>> {
        x.iter().map(|row| self.norm(row, weight)).collect()
    }

    fn norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + self.config.norm_eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * factor * w).collect()
    }

    fn join(&self, x: &mut [Vec<f64>], y: Vec<Vec<f64>>, norm: Option<&Vec<f64>>) {
        for (x, mut y) in x.iter_mut().zip(y) {
            if let Some(norm) = norm {
                y = self.norm(&y, norm);
            }
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        }
    }

    fn turn(&self, index: usize, rows: &mut [Vec<f64>], norm: Option<&[f64]>) {
        let rope = &self.config.ropes[self.config.layers[index].rope];
        let half = rope.frequencies.len();
        for (position, row) in rows.iter_mut().enumerate() {
            for head in row.chunks_exact_mut(self.config.head_dim) {
                if let Some(norm) = norm {
                    let normed = self.norm(head, norm);
                    head.copy_from_slice(&normed);
                }
                for i in 0..half {
                    // The angle is a product in f32 wherever it is computed.
                    let angle = f64::from(position as f32 * rope.frequencies[i]);
                    let factor = f64::from(rope.attention_factor);
                    let (sine, cosine) = (angle.sin() * factor, angle.cos() * factor);
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = a * cosine - b * sine;
                    head[i + half] = b * cosine + a * sine;
                }
            }
        }
    }

    fn attend(
        &self,
        index: usize,
        q: &[Vec<f64>],
        k: &[Vec<f64>],
        v: &[Vec<f64>],
    ) -> Vec<Vec<f64>> {
        let config = &self.config;
        let dim = config.head_dim;
        let window = config.layers[index].window.unwrap_or(usize::MAX);
        let group = config.num_heads / config.num_kv_heads;
        let row = |position: usize| {
            let mut out = Vec::new();
            for head in 0..config.num_heads {
                let kv = head / group * dim..(head / group + 1) * dim;
                let from = (position + 1).saturating_sub(window);
                let scores: Vec<f64> = (from..=position)
                    .map(|key| {
                        let query = &q[position][head * dim..(head + 1) * dim];
                        let score = dot(query, &k[key][kv.clone()]) * config.attention_scale;
                        cap(config.attention_softcap, score)
                    })
                    .collect();
                let most = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
                let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in kv {
                    let values = v[from..=position].iter().map(|v| v[i]);
                    out.push(values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum);
                }
            }
            out
        };
        (0..q.len()).map(row).collect()
    }

    fn act(&self, x: f64) -> f64 {
        match self.config.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + z.tanh())
            }
        }
    }
}

fn cap(cap: Option<f64>, value: f64) -> f64 {
    cap.map_or(value, |cap| cap * (value / cap).tanh())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
