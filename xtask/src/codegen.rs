//! Generated files that are checked in.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    paths::{Checkout, write_atomically},
    proc,
};

/// The custom resource definitions.
const CRDS: &str = "crds/models.hyprstream.io.yaml";

/// Generates anew, or with `check` says whether what is there is current.
pub(crate) fn run(checkout: &Checkout, check: bool) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let text = proc::output(
        Command::new(cargo)
            .current_dir(checkout.root())
            .env_remove("CARGO_MANIFEST_DIR")
            .args(["run", "--quiet", "--package", "hyprstream-operator", "--", "crds"]),
    )
    .context("cannot generate the CRDs")?;
    let path = checkout.join(CRDS);
    let current = fs::read_to_string(&path).unwrap_or_default();
    if current == text {
        println!("{CRDS} is current");
        return Ok(());
    }
    if check {
        bail!("{CRDS} is not what the types say; run `cargo xtask codegen` and commit it");
    }
    write_atomically(&path, text)?;
    println!("{CRDS} is written");
    Ok(())
}
