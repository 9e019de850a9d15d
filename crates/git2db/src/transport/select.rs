//! Which objects of a repository go into a pack.

use std::collections::{HashMap, HashSet, VecDeque};

use git2::{ObjectType, Oid, PackBuilder, Repository};

use super::{Want, receive};
use crate::{CommitId, Observer, remote::RemoteRef};

/// As `git ls-remote` lists them.
pub(super) fn list(repo: &Repository) -> Result<Vec<RemoteRef>, git2::Error> {
    let mut refs = Vec::new();
    let mut add = |name: &str, oid: Oid| {
        refs.push(RemoteRef {
            name: name.to_owned(),
            commit: CommitId::from_oid(oid),
        });
    };
    if let Ok(oid) = repo.refname_to_id("HEAD") {
        add("HEAD", oid);
    }
    for found in repo.references()? {
        let found = found?;
        // One that names nothing, as the HEAD of an empty remote, is no ref for others.
        let Ok(direct) = found.resolve() else {
            continue;
        };
        let (Ok(name), Some(oid)) = (found.name(), direct.target()) else {
            continue;
        };
        add(name, oid);
        if let Ok(tag) = repo.find_tag(oid) {
            add(
                &format!("{name}^{{}}"),
                tag.as_object().peel(ObjectType::Any)?.id(),
            );
        }
    }
    Ok(refs)
}

/// The objects that go into a pack.
pub(super) struct Selection<'a> {
    repo: &'a Repository,
    pub(super) pack: PackBuilder<'a>,
    seen: HashSet<Oid>,
    had: HashSet<Oid>,
    /// The commits whose parents are left out.
    pub(super) boundary: Vec<CommitId>,
    /// Where the source's own history is cut, or that of the receiver shall stay so.
    shallow: HashSet<Oid>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(repo: &'a Repository, want: &Want) -> Result<Self, git2::Error> {
        let mut shallow: HashSet<Oid> = receive::shallow(repo).into_iter().collect();
        shallow.extend(want.shallow.iter().map(CommitId::oid));
        // What led to what they have they have, too. With a depth nothing is presumed.
        let mut had = HashSet::new();
        let mut pending: Vec<Oid> = want.have.iter().map(CommitId::oid).collect();
        while let Some(id) = pending.pop() {
            let Ok(commit) = repo.find_commit(id) else {
                continue;
            };
            if had.insert(id) && !shallow.contains(&id) {
                pending.extend(commit.parent_ids());
            }
        }
        let mut pack = repo.packbuilder()?;
        pack.set_threads(1);
        Ok(Self {
            repo,
            pack,
            seen: HashSet::new(),
            had,
            boundary: Vec::new(),
            shallow,
        })
    }

    pub(super) fn collect(
        &mut self,
        want: &Want,
        observer: &dyn Observer,
    ) -> Result<(), git2::Error> {
        let mut queue = VecDeque::new();
        for wanted in &want.commits {
            if let Some(commit) = self.tip(wanted.oid())? {
                queue.push_back((commit, 1));
            }
        }
        let mut depths: HashMap<Oid, u32> = HashMap::new();
        let mut known_trees = HashSet::new();
        while let Some((id, depth)) = queue.pop_front() {
            if observer.is_cancelled() {
                return Err(git2::Error::from_str("cancelled"));
            }
            // Breadth first: the first visit is the shortest way.
            if self.had.contains(&id) || depths.insert(id, depth).is_some() {
                if self.had.contains(&id) && known_trees.insert(id) {
                    self.skip_tree(self.repo.find_commit(id)?.tree_id())?;
                }
                continue;
            }
            let commit = self.repo.find_commit(id)?;
            self.insert(id)?;
            let is_last = want.depth.is_some_and(|most| depth >= most);
            if self.shallow.contains(&id) {
                self.boundary.push(CommitId::from_oid(id));
                continue;
            }
            let mut cut = false;
            for parent in commit.parent_ids() {
                if is_last || self.repo.find_commit(parent).is_err() {
                    cut = true;
                } else {
                    queue.push_back((parent, depth + 1));
                }
            }
            if cut {
                self.boundary.push(CommitId::from_oid(id));
            }
        }
        // A commit at the boundary of one history may be within another.
        let (repo, shallow) = (self.repo, &self.shallow);
        self.boundary.retain(|id| {
            let sent = |commit: git2::Commit<'_>| {
                let mut parents = commit.parent_ids();
                parents.all(|parent| depths.contains_key(&parent))
            };
            shallow.contains(&id.oid()) || !repo.find_commit(id.oid()).is_ok_and(sent)
        });
        let mut commits: Vec<_> = depths.into_iter().collect();
        commits.sort_by_key(|(_, depth)| *depth);
        for (id, _) in commits {
            let tree = self.repo.find_commit(id)?.tree_id();
            self.insert_tree(tree, observer)?;
        }
        Ok(())
    }

    /// The commit at the end of tags, which are inserted; `None` if it is another object.
    fn tip(&mut self, mut id: Oid) -> Result<Option<Oid>, git2::Error> {
        loop {
            let object = self.repo.find_object(id, None)?;
            match object.kind() {
                Some(ObjectType::Commit) => return Ok(Some(id)),
                Some(ObjectType::Tag) => {
                    self.insert(id)?;
                    id = self.repo.find_tag(id)?.target_id();
                }
                Some(ObjectType::Tree) => {
                    self.insert_tree(id, &())?;
                    return Ok(None);
                }
                _ => {
                    self.insert(id)?;
                    return Ok(None);
                }
            }
        }
    }

    fn insert(&mut self, id: Oid) -> Result<(), git2::Error> {
        if self.seen.insert(id) {
            self.pack.insert_object(id, None)?;
        }
        Ok(())
    }

    /// Whoever has a commit has its files.
    fn skip_tree(&mut self, root: Oid) -> Result<(), git2::Error> {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            if !self.seen.insert(id) {
                continue;
            }
            for entry in &self.repo.find_tree(id)? {
                match entry.kind() {
                    Some(ObjectType::Tree) => pending.push(entry.id()),
                    _ => {
                        self.seen.insert(entry.id());
                    }
                }
            }
        }
        Ok(())
    }

    fn insert_tree(&mut self, root: Oid, observer: &dyn Observer) -> Result<(), git2::Error> {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            if self.seen.contains(&id) {
                continue;
            }
            if observer.is_cancelled() {
                return Err(git2::Error::from_str("cancelled"));
            }
            self.insert(id)?;
            for entry in &self.repo.find_tree(id)? {
                match entry.kind() {
                    Some(ObjectType::Tree) => pending.push(entry.id()),
                    // A submodule names a commit of another repository.
                    Some(ObjectType::Commit) => {}
                    _ => self.insert(entry.id())?,
                }
            }
        }
        Ok(())
    }
}
