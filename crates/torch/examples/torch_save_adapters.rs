//! Trains adapters of a tiny model and saves them for PEFT, which `make.py trained` then loads.
//!
//! ```sh
//! cargo run -p hyprstream-torch --example torch_save_adapters DIR
//! python crates/goldens/make.py trained DIR
//! ```

use std::path::Path;

use hyprstream_goldens::training::{EVERYTHING, PLAIN, Saved};
use hyprstream_torch::{DType, LearnOptions, load_learner};

fn main() {
    let root = std::env::args().nth(1).expect("a folder is needed");
    for (name, adapter) in [("plain", PLAIN), ("everything", EVERYTHING)] {
        let folder = Path::new(&root).join(format!("libtorch-{name}"));
        let mut saved = Saved::train(&folder, adapter, |dir, parameters| {
            let options = LearnOptions {
                dtype: DType::Float32,
                ..LearnOptions::default()
            };
            let learner = load_learner(dir, parameters, &options);
            Box::new(learner.expect("a tiny model is loaded"))
        });
        saved.write(&folder.join("adapter"));
    }
}
