//! LFS objects that a repository had and was told to let go.
//!
//! A note says why, `<repository>.git/hyprstream/let-go/<sha256>`, and whoever asks for the object
//! hears it. It is written before the object goes, so that after a kill none is missing without a
//! word; while the object is there, the note says nothing. A push of the object takes it away.

use std::{
    collections::HashMap,
    fs, io,
    time::{Duration, Instant},
};

use hyprstream_git2db::Digest;
use parking_lot::Mutex;

use crate::{
    layout::{Layout, make_folder},
    names::Repository,
};

/// Longer than a push takes from being told what it need not send to the ref that needs it.
const PATIENCE: Duration = Duration::from_mins(30);
/// How many objects are remembered before it is looked for promises that are over.
const MANY: usize = 100_000;

/// Objects of which clients were told that they need not be sent, and which therefore stay for
/// now: the push that needs them is still to come.
#[derive(Default)]
pub(crate) struct Promised(Mutex<HashMap<(Repository, Digest), Instant>>);

impl Promised {
    /// From now on the object stays in the repository, if it is there.
    pub(crate) fn promise(&self, repository: &Repository, oid: &Digest) {
        let mut promised = self.0.lock();
        if promised.len() >= MANY {
            promised.retain(|_, at| at.elapsed() < PATIENCE);
        }
        promised.insert((repository.clone(), oid.clone()), Instant::now());
    }

    /// The object is not there, so that it has to be sent.
    pub(crate) fn forget(&self, repository: &Repository, oid: &Digest) {
        self.0.lock().remove(&(repository.clone(), oid.clone()));
    }

    /// Lets an object of the repository go, for the reason `why`, unless it was promised. Its size
    /// in bytes if it was there and is gone. Blocks.
    pub(crate) fn let_go(
        &self,
        layout: &Layout,
        repository: &Repository,
        oid: &Digest,
        why: &str,
    ) -> io::Result<Option<u64>> {
        // Held until it is gone, so that nobody is told meanwhile that it is there.
        let promised = self.0.lock();
        let key = (repository.clone(), oid.clone());
        let is_promised = promised.get(&key).is_some_and(|at| at.elapsed() < PATIENCE);
        let Some(size) = layout
            .member_size(repository, oid)?
            .filter(|_| !is_promised)
        else {
            return Ok(None);
        };
        let note = layout.let_go(repository, oid);
        if let Some(folder) = note.parent() {
            make_folder(folder)?;
        }
        fs::write(&note, why)?;
        fs::remove_file(layout.member(repository, oid))?;
        Ok(Some(size))
    }
}

/// What is said to those who ask for an object that the repository does not have, if it was let
/// go.
pub(crate) fn why(layout: &Layout, repository: &Repository, oid: &Digest) -> Option<String> {
    let text = fs::read_to_string(layout.let_go(repository, oid)).ok()?;
    let why = match text.trim() {
        "" => "its repository keeps the large files of newer commits only",
        why => why,
    };
    Some(format!("LFS object {oid} was let go on purpose: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_stays_and_what_goes_leaves_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        let repository: Repository = "a/m".parse().unwrap();
        layout.create(&repository).unwrap();
        let promised = Promised::default();
        let [gone, stays] = [b"old", b"new"].map(|bytes| {
            let oid = layout.store().insert_bytes(bytes).unwrap();
            layout.add_member(&repository, &oid).unwrap();
            oid
        });
        promised.promise(&repository, &stays);
        let go = |oid: &Digest| {
            promised
                .let_go(&layout, &repository, oid, "so it is")
                .unwrap()
        };
        assert_eq!((go(&gone), go(&gone), go(&stays)), (Some(3), None, None));
        let why = |oid: &Digest| why(&layout, &repository, oid);
        assert!(why(&gone).unwrap().ends_with("on purpose: so it is"));
        assert_eq!(why(&stays), None);
        layout.add_member(&repository, &gone).unwrap();
        assert_eq!(why(&gone), None);
    }
}
