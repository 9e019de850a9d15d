//! Staging what an overlay's upper changed.
//!
//! An upper holds what differs from the folders below it, in the kernel's own notes: a deleted
//! file is a device, a moved folder names where it was, a file whose mode changed has no content
//! (<https://docs.kernel.org/filesystems/overlayfs.html>). The new tree is put together from the
//! trees of the commit and from these, so that nothing is read that was not written.

mod folder;
mod notes;

use std::path::Path;

use git2::{Oid, Repository, TreeWalkMode, TreeWalkResult};

use self::folder::{Below, Folders, Pass};
use super::{CommitError, Staged, invalid, stage::Stager};
use crate::{
    CommitId, Include, repo,
    store::ObjectStore,
    tree::{self, check_link},
};

/// An upper of the kernel's overlay on the checkout of a commit.
///
/// Not one of `fuse-overlayfs`, whose notes are its own.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// The folder of the upper. Nobody writes to it while it is staged.
    pub folder: &'a Path,
    /// The commit whose checkout lies below.
    pub base: &'a CommitId,
    /// Which of its files that checkout has. Others stay as they are.
    pub include: &'a Include,
    /// Whether it was mounted so; see [`crate::storage::mount::How::user_attributes`].
    pub user_attributes: bool,
}

/// Stages what the overlay shows: the files of the commit with what was added, changed, moved and
/// deleted in the upper. What goes to LFS is decided as by [`super::stage()`]; files that were only
/// moved, or whose mode alone changed, are not read. Folders without files are none to git, and
/// what lies in `.hyprstream` is the node plugin's.
///
/// [`Staged::objects`] are those of files that were written with another content.
///
/// # Errors
/// [`CommitError::Rights`] without CAP_SYS_ADMIN, unless the notes are attributes of users;
/// [`CommitError::InvalidPath`] for what git cannot hold: sockets, devices, links that lead out.
pub fn stage_upper(
    bare: &Path,
    upper: &Upper<'_>,
    store: &ObjectStore,
) -> Result<Staged, CommitError> {
    notes::check_rights(upper)?;
    let repo = repo::open(bare).map_err(CommitError::Repo)?;
    let access = |e| CommitError::Repo(repo::access(bare)(e));
    let root = repo
        .find_commit(upper.base.oid())
        .and_then(|commit| commit.tree())
        .map_err(access)?
        .id();
    let rules_of =
        |tree| tree::attributes(&repo, bare, tree, upper.base).map_err(CommitError::Tree);
    let old_rules = rules_of(root)?;
    let whole = Below {
        path: String::new(),
        tree: root,
    };
    let mut folders = Folders {
        repo: &repo,
        upper,
        root,
        stager: Stager::new(&repo, bare, store, root),
        pass: Pass::Attributes,
        untracked: Vec::new(),
    };
    // Attributes first: they decide about the other files.
    let first = folders.tree(upper.folder, "", Some(&whole))?;
    let new_rules = rules_of(first)?;
    folders.pass = Pass::All {
        old_rules: &old_rules,
        new_rules: &new_rules,
    };
    let tree = folders.tree(upper.folder, "", Some(&whole))?;
    let (mut stager, untracked) = (folders.stager, folders.untracked);
    stager.tree = tree;
    stager.track(&untracked)?;
    check_links(&repo, bare, stager.tree)?;
    Ok(Staged {
        base: Some(upper.base.clone()),
        tree: stager.tree.to_string(),
        objects: stager.objects,
    })
}

/// A link of the new tree must not lead out of it, also by way of the others.
fn check_links(repo: &Repository, bare: &Path, tree: Oid) -> Result<(), CommitError> {
    let access = |e| CommitError::Repo(repo::access(bare)(e));
    let mut found = Vec::new();
    repo.find_tree(tree)
        .and_then(|tree| {
            tree.walk(TreeWalkMode::PreOrder, |folder, entry| {
                if entry.filemode() == i32::from(git2::FileMode::Link) {
                    let name = String::from_utf8_lossy(entry.name_bytes());
                    found.push((format!("{folder}{name}"), entry.id()));
                }
                TreeWalkResult::Ok
            })
        })
        .map_err(access)?;
    let mut links = std::collections::HashMap::new();
    for (path, id) in found {
        let blob = repo.find_blob(id).map_err(access)?;
        let target = std::str::from_utf8(blob.content())
            .map_err(|_| invalid(&path, "its target is not UTF-8"))?;
        links.insert(path, target.to_owned());
    }
    for (path, target) in &links {
        check_link(path, target, &links).map_err(|refusal| invalid(path, &refusal.to_string()))?;
    }
    Ok(())
}
