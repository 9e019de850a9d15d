//! Following the folder that a node shows.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Weak,
};

use hyprstream_contract::adapters::{AdapterFolder, FOLDER_FILE, MAX_ADAPTERS};
use tokio::time::sleep;

use super::{
    packer::{Stamp, stamp, stamp_of},
    store::Store,
};

/// Largest list that is read, in bytes: the longest there is, with room.
const MAX_LIST_BYTES: u64 = 32 << 20;

/// What a look at the list shows.
enum Look {
    Unchanged,
    Changed(Stamp, Result<AdapterFolder, String>),
}

/// Turns the store to what `dir` lists, whenever that changes, until the store is gone.
pub(super) async fn run(weak: Weak<Store>, dir: PathBuf) {
    let mut seen = None;
    loop {
        let Some(store) = weak.upgrade() else { return };
        let path = dir.join(FOLDER_FILE);
        // On a pool of the runtime's own: a folder may hang.
        let looked = tokio::task::spawn_blocking(move || look(&path, seen)).await;
        if let Ok(Look::Changed(stamp, read)) = looked {
            seen = Some(stamp);
            match read {
                Ok(list) => {
                    let (revision, adapters) = (list.revision.clone(), list.adapters.len());
                    store.change(|state| state.adopt(&dir, list));
                    tracing::info!(revision, adapters, "list of adapters read");
                }
                // Once for each file that is none.
                Err(why) => tracing::error!(
                    folder = %dir.display(), why,
                    "the list of adapters is not one: what was read before stays"
                ),
            }
        }
        let pause = store.options.timing.look;
        drop(store);
        sleep(pause).await;
    }
}

fn look(path: &Path, seen: Option<Stamp>) -> Look {
    if seen.is_some() && stamp(path) == seen {
        return Look::Unchanged;
    }
    // The node's plugin makes it, and replaces it by renaming: it is there or will be.
    let Ok(file) = File::open(path) else {
        return Look::Unchanged;
    };
    let Ok(metadata) = file.metadata() else {
        return Look::Unchanged;
    };
    let read = read(file).map_err(|error| error.to_string());
    Look::Changed(stamp_of(&metadata), read)
}

fn read(file: File) -> io::Result<AdapterFolder> {
    let mut text = Vec::new();
    file.take(MAX_LIST_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_LIST_BYTES {
        return Err(io::Error::other("it is too long"));
    }
    let list: AdapterFolder = serde_json::from_slice(&text)?;
    if list.adapters.len() > MAX_ADAPTERS {
        let found = list.adapters.len();
        let why = format!("it has {found} adapters, and {MAX_ADAPTERS} is the most");
        return Err(io::Error::other(why));
    }
    let mut names: Vec<&str> = list.adapters.iter().map(|a| a.name.as_str()).collect();
    names.sort_unstable();
    if let Some([name, ..]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let why = format!("it has two adapters of the name {name:?}");
        return Err(io::Error::other(why));
    }
    Ok(list)
}
