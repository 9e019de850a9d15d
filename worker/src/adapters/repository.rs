//! The adapters that a model's repository has itself.

use std::path::Path;

use hyprstream_contract::adapters::BaseCommitPolicy;
use hyprstream_models::adapter::AdapterFiles;

use super::{entry::Wish, packer::PackError};

/// The adapters in the folder `adapters` of the model in `dir`, by name. What is none has its error
/// beside what would have been asked for.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn list(
    dir: &Path,
) -> Result<Vec<(String, Result<Wish, (Wish, PackError)>)>, PackError> {
    let listed = AdapterFiles::list(dir)?;
    let wishes = listed.into_iter().map(|adapter| {
        let wish = match adapter.files {
            Ok(files) => Ok(wish(dir, files)),
            Err(error) => {
                // The file that is not there is named in the error.
                let path = dir.join("adapters").join(&adapter.name);
                let files = AdapterFiles {
                    tensors: path.clone(),
                    config: path,
                };
                Err((wish(dir, files), error.into()))
            }
        };
        (adapter.name, wish)
    });
    Ok(wishes.collect())
}

fn wish(dir: &Path, files: AdapterFiles) -> Wish {
    let path = files.tensors.strip_prefix(dir).unwrap_or(&files.tensors);
    Wish {
        scale: 1.0,
        source: path.display().to_string(),
        commit: None,
        folder: None,
        files,
        // It lies in the very commit that is served, and was trained on one before.
        base_commit: BaseCommitPolicy::Ignore,
    }
}
