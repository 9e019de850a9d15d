//! The small layer above a checkout: `.hyprstream/manifest.json`.

use std::{io, path::PathBuf};

use hyprstream_contract::{Manifest, VolumeAttributes, manifest::MANIFEST_PATH};

use crate::{
    error::Error,
    fetch::Checkout,
    journal::write_durably,
    layout::{LayerKey, Layout},
    mount::sync_folder,
};

/// The folder of the layer, made if it is not there. It appears complete or not at all.
pub fn ensure_layer(
    layout: &Layout,
    key: &LayerKey,
    volume: &VolumeAttributes,
    checkout: &Checkout,
) -> Result<PathBuf, Error> {
    let folder = layout.layer(key);
    if folder.join(MANIFEST_PATH).is_file() {
        return Ok(folder);
    }
    let manifest = Manifest {
        repository: volume.source.clone(),
        reference: volume.reference.clone(),
        commit: volume.commit.clone(),
        files: checkout.files.clone(),
    };
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is JSON");

    // Two volumes of one layer may be staged at once: each builds its own, one of them wins.
    let unique = format!("{key}.{:?}", std::thread::current().id());
    let new = layout.tmp().join(unique);
    let file = new.join(MANIFEST_PATH);
    let inner = file.parent().unwrap_or(&new).to_owned();
    let write = || -> Result<(), Error> {
        std::fs::create_dir_all(&inner).map_err(|e| Error::io("create", &inner, e))?;
        write_durably(&file, &text)?;
        sync_folder(&new).map_err(|e| Error::io("sync", &new, e))
    };
    write().inspect_err(|_| {
        // On a full disk half a layer would take the space of the next one.
        let _ = std::fs::remove_dir_all(&new);
    })?;
    match std::fs::rename(&new, &folder) {
        Ok(()) => {}
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            std::fs::remove_dir_all(&new).map_err(|e| Error::io("remove", &new, e))?;
        }
        Err(e) => return Err(Error::io("create", &folder, e)),
    }
    let parent = layout.layers();
    sync_folder(&parent).map_err(|e| Error::io("sync", &parent, e))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::{manifest::ManifestFile, volume::VolumeMode};

    use super::*;
    use crate::layout::CheckoutKey;

    #[test]
    fn the_manifest_tells_source_commit_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path()).unwrap();
        layout.create().unwrap();
        let volume = VolumeAttributes {
            repository: "mirror/1".into(),
            commit: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            source: "https://example.org/m".into(),
            reference: Some("main".into()),
            include: vec![],
            mode: VolumeMode::ReadOnly,
        };
        let files = vec![ManifestFile {
            path: "config.json".into(),
            size_bytes: 2,
            sha256: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a".into(),
        }];
        let checkout = Checkout {
            path: "/c".into(),
            files: files.clone(),
        };
        let key = LayerKey::of(&CheckoutKey::of(&volume).unwrap(), &volume);
        let layer = ensure_layer(&layout, &key, &volume, &checkout).unwrap();
        assert_eq!(
            ensure_layer(&layout, &key, &volume, &checkout).unwrap(),
            layer
        );

        let text = std::fs::read(layer.join(MANIFEST_PATH)).unwrap();
        let manifest: Manifest = serde_json::from_slice(&text).unwrap();
        assert_eq!(manifest.repository, "https://example.org/m");
        assert_eq!(manifest.commit, volume.commit);
        assert_eq!(manifest.files, files);
        assert_eq!(std::fs::read_dir(layout.tmp()).unwrap().count(), 0);
    }
}
