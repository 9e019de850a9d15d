//! The adapters that a model's repository has itself.

use std::path::Path;

use hyprstream_contract::adapters::BaseCommitPolicy;
use hyprstream_models::adapter::AdapterFiles;

use super::{entry::Wish, packer::PackError};

/// An adapter of a repository, or what looks like one.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    /// Files that are not there are named as they would be.
    pub(super) wish: Wish,
    /// Why there is none.
    pub(super) error: Option<PackError>,
}

/// The adapters in the folder `adapters` of the model in `dir`.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn list(dir: &Path) -> Result<Vec<Listed>, PackError> {
    let listed = AdapterFiles::list(dir)?;
    let listed = listed.into_iter().map(|adapter| {
        let (files, error) = match adapter.files {
            Ok(files) => (files, None),
            Err(error) => {
                let path = dir.join("adapters").join(&adapter.name);
                let files = AdapterFiles {
                    tensors: path.clone(),
                    config: path,
                };
                (files, Some(error.into()))
            }
        };
        Listed {
            name: adapter.name,
            wish: wish(dir, files),
            error,
        }
    });
    Ok(listed.collect())
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
