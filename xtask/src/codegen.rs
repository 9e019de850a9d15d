//! Generated files that are checked in.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{
    paths::{Checkout, write_atomically},
    proc,
    ui::say,
};

/// The custom resource definitions, and their copy in the chart: Helm reads nothing outside of it.
const CRDS: [&str; 2] = [
    "crds/models.hyprstream.io.yaml",
    "charts/hyprstream/files/crds/models.hyprstream.io.yaml",
];

/// Generates anew, or with `check` says whether what is there is current.
pub(crate) fn run(checkout: &Checkout, check: bool) -> Result<()> {
    let text = proc::output(proc::cargo(checkout.root()).args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "hyprstream-operator",
        "--",
        "crds",
    ]))
    .context("cannot generate the CRDs")?;
    for file in CRDS {
        let path = checkout.join(file);
        if fs::read_to_string(&path).unwrap_or_default() == text {
            say(format_args!("{file} is current"));
        } else if check {
            bail!("{file} is not what the types say; run `cargo xtask codegen` and commit it");
        } else {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            write_atomically(&path, &text)?;
            say(format_args!("{file} is written"));
        }
    }
    Ok(())
}
