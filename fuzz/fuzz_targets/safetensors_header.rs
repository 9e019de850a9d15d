//! Files of weights: any bytes are a checkpoint whose tensors lie within the file, or refused.
//!
//! With an odd first byte the rest begins with a header of JSON, whose length is put before it.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use hyprstream_models::Checkpoint;
use libfuzzer_sys::fuzz_target;

/// In memory where there is such a place: the file is written for each input.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = PathBuf::from("/dev/shm");
    let root = if root.is_dir() {
        root
    } else {
        std::env::temp_dir()
    };
    let folder = root.join(format!("hyprstream-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    folder
});

fuzz_target!(|data: &[u8]| {
    let [kind, rest @ ..] = data else { return };
    let mut bytes = Vec::with_capacity(data.len() + 8);
    if kind % 2 == 1 {
        let header = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
        bytes.extend((header as u64).to_le_bytes());
    }
    bytes.extend(rest);
    fs::write(FOLDER.join("model.safetensors"), &bytes).expect("the file can be written");
    let Ok(mut checkpoint) = Checkpoint::open(&FOLDER) else {
        return;
    };
    let total = checkpoint.bytes();
    assert!(total <= bytes.len() as u64, "tensors beyond the file");
    for shape in [&[1][..], &[2, 3], &[0], &[]] {
        if let Ok(tensor) = checkpoint.take("a", shape) {
            assert_eq!(tensor.len(), shape.iter().product::<usize>());
            // Reads every byte: one outside of the file would be the end.
            let _ = tensor.bytes().iter().fold(0_u8, |sum, byte| sum ^ byte);
            let _ = tensor.to_f32();
        }
    }
    let _ = checkpoint.finish();
});
