//! Trains an adapter of a tiny model and saves it for PEFT, which `make.py trained` then loads.
//!
//! ```sh
//! cargo run -p hyprstream-cpu --example save_adapters DIR
//! python crates/goldens/make.py trained DIR
//! ```

use std::path::Path;

use hyprstream_cpu::{CpuLearner, LearnOptions};
use hyprstream_goldens::training::{PLAIN, Saved};
use hyprstream_models::DType;

fn main() {
    let root = std::env::args().nth(1).expect("a folder is needed");
    let folder = Path::new(&root).join("cpu-plain");
    let mut saved = Saved::train(&folder, PLAIN, |dir, parameters| {
        let options = LearnOptions {
            dtype: DType::Float32,
            ..LearnOptions::default()
        };
        let learner = CpuLearner::load(dir, parameters, &options);
        Box::new(learner.expect("a tiny model is loaded"))
    });
    saved.write(&folder.join("adapter"));
}
