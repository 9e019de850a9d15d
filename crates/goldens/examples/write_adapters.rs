//! Writes adapters of the tiny models for PEFT, which `make.py written` then loads.
//!
//! ```sh
//! cargo run -p hyprstream-goldens --example write_adapters DIR
//! python make.py written DIR
//! ```
#![allow(clippy::print_stdout, reason = "it is a program for the terminal")]

use std::path::Path;

use hyprstream_goldens::{ADAPTED, Adapters};

fn main() {
    let root = std::env::args().nth(1).expect("a folder is needed");
    for model in ADAPTED {
        for (name, _, _) in Adapters::read(model).write_some(Path::new(&root)) {
            println!("{name}");
        }
    }
}
