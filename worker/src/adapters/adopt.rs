//! Turning to a list of the folder that is followed.

use std::{
    collections::{BTreeSet, btree_map},
    path::Path,
};

use hyprstream_contract::{
    adapters::{AdapterFolder, AdapterState, CONFIG_FILE, FolderEntry, WEIGHTS_FILE},
    model_ref::{MAX_SCALE, check_adapter_name},
    worker_adapters::{LoadState, Origin},
};
use hyprstream_models::adapter::AdapterFiles;

use super::{
    entry::{Entry, Job, Wish, base_commit, failed},
    packer::PackError,
    state::State,
};

impl State {
    /// Turns to the list in the folder `dir`.
    pub(super) fn adopt(&mut self, dir: &Path, list: AdapterFolder) {
        self.revision = Some(list.revision);
        let named: BTreeSet<&str> = list.adapters.iter().map(|a| a.name.as_str()).collect();
        self.entries
            .retain(|(name, origin), _| *origin != Origin::Followed || named.contains(&**name));
        for listed in &list.adapters {
            let entry = self.entries.entry((listed.name.clone(), Origin::Followed));
            let wish = followed(dir, listed);
            let is_new = matches!(entry, btree_map::Entry::Vacant(_));
            let entry = entry.or_insert_with(|| Entry::new(wish.clone()));
            let same = !is_new
                && entry.wish.folder == wish.folder
                && entry.wish.base_commit == wish.base_commit;
            entry.wish = wish;
            if let Err(error) = check(listed) {
                entry.rest(failed(&error));
                continue;
            }
            follow(entry, listed, same, self.commit.as_deref());
        }
        self.saw(Origin::Followed);
    }
}

/// What the entry of a list that is followed asks for.
fn followed(dir: &Path, listed: &FolderEntry) -> Wish {
    let folder = dir.join(&listed.folder);
    Wish {
        scale: listed.scale,
        source: listed.source.clone(),
        commit: Some(listed.commit.clone()),
        folder: Some(listed.folder.clone()),
        files: AdapterFiles {
            tensors: folder.join(WEIGHTS_FILE),
            config: folder.join(CONFIG_FILE),
        },
        base_commit: listed.base_commit,
    }
}

/// Refuses what cannot be served, or leads out of the folder.
fn check(listed: &FolderEntry) -> Result<(), PackError> {
    let invalid = |why: &str| Err(PackError::new("InvalidEntry", why, true));
    if let Err(why) = check_adapter_name(&listed.name) {
        return invalid(why);
    }
    if !(-MAX_SCALE..=MAX_SCALE).contains(&listed.scale) {
        return invalid("the scale is not a number from -10 to 10");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if listed.folder.is_empty() || !listed.folder.bytes().all(plain) {
        return invalid("the name of its folder is not one of letters and digits");
    }
    Ok(())
}

/// Turns an entry to what its list says, which is the `same` folder as before or another.
fn follow(entry: &mut Entry, listed: &FolderEntry, same: bool, commit: Option<&str>) {
    let (scale, policy) = (entry.wish.scale, entry.wish.base_commit);
    let verdict = entry.current().map(|record| {
        record.scale = scale;
        base_commit(policy, record.revision.as_deref(), commit)
    });
    match (&listed.state, verdict) {
        (
            AdapterState::Failed {
                reason,
                message,
                transient,
            },
            _,
        ) => {
            entry.rest(LoadState::Failed {
                reason: reason.clone(),
                message: message.clone(),
            });
            entry.is_hindered = *transient;
        }
        // It is in memory, whatever the node does with its files.
        (_, Some(Ok(warning))) => {
            entry.warning = warning;
            entry.rest(LoadState::Loaded);
        }
        (_, Some(Err(error))) => {
            entry.serving = None;
            entry.rest(failed(&error));
        }
        (AdapterState::Pending, None) => entry.rest(LoadState::Loading),
        (AdapterState::Ready, None) => {
            let is_under_way = entry.job != Job::Nothing;
            let is_refused = entry.gave_way();
            if !(same && (is_under_way || is_refused)) {
                entry.load();
            }
        }
    }
}
