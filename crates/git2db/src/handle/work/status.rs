//! What differs between the last commit, what is staged, and the files.

use git2::{Delta, Index, Repository, StatusShow};

use super::WorktreeError;
use crate::Worktree;

/// What a status shows beside changes of tracked files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// Files that git does not know, one by one.
    pub untracked: bool,
    /// Files that a `.gitignore` names, one by one.
    pub ignored: bool,
}

impl Default for StatusOptions {
    /// With untracked files, without ignored ones.
    fn default() -> Self {
        Self {
            untracked: true,
            ignored: false,
        }
    }
}

/// A file that is not as it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// Where it lies. What is not UTF-8 is replaced: a file with such a name is shown, and refused
    /// where it would have to be staged or written.
    pub path: String,
    /// What it is.
    pub state: State,
}

/// What a file of a status is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Git knows it.
    Tracked {
        /// From the last commit to what is staged.
        staged: Option<Change>,
        /// From what is staged to the file. A large file counts as changed if its content has
        /// another digest; one that is still a pointer is not changed.
        unstaged: Option<Change>,
    },
    /// Git does not know it.
    Untracked,
    /// A `.gitignore` names it.
    Ignored,
    /// A merge could not decide what it is to be.
    Conflicted(Conflict),
}

/// What happened to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// Its content or mode is another.
    Modified,
    /// It is gone.
    Deleted,
    /// It moved.
    Renamed {
        /// Where it lay.
        from: String,
    },
    /// A file became a link or the other way round.
    TypeChanged,
}

/// Which sides of a merge have a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Deleted by both (one of them by a rename): `DD`.
    BothDeleted,
    /// Added by us: `AU`.
    AddedByUs,
    /// Deleted by them, changed by us: `UD`.
    DeletedByThem,
    /// Added by them: `UA`.
    AddedByThem,
    /// Deleted by us, changed by them: `DU`.
    DeletedByUs,
    /// Added by both, each in another way: `AA`.
    BothAdded,
    /// Changed by both: `UU`.
    BothModified,
}

impl Conflict {
    /// By which sides have the file; `None` if none has.
    pub(in crate::handle) fn of(base: bool, ours: bool, theirs: bool) -> Option<Self> {
        Some(match (base, ours, theirs) {
            (true, false, false) => Self::BothDeleted,
            (false, true, false) => Self::AddedByUs,
            (true, true, false) => Self::DeletedByThem,
            (false, false, true) => Self::AddedByThem,
            (true, false, true) => Self::DeletedByUs,
            (false, true, true) => Self::BothAdded,
            (true, true, true) => Self::BothModified,
            (false, false, false) => return None,
        })
    }
}

impl Worktree {
    /// Files that are not as they were committed, ordered by path, as `git status`.
    ///
    /// Content of large files is compared by digest, in pieces; files that look as they did when
    /// they were noted are not read.
    pub fn status(&self, options: StatusOptions) -> Result<Vec<FileStatus>, WorktreeError> {
        // An index of its own: it is disguised and never written.
        let (repo, mut index) = self.opened()?;
        let changed = self.refresh(&repo, &mut index)?;
        self.disguise(&mut index, &changed)?;
        self.compare(&repo, &index, options)
    }

    fn compare(
        &self,
        repo: &Repository,
        index: &Index,
        options: StatusOptions,
    ) -> Result<Vec<FileStatus>, WorktreeError> {
        let mut wanted = git2::StatusOptions::new();
        wanted
            .show(StatusShow::IndexAndWorkdir)
            .include_untracked(false)
            .include_ignored(false)
            .renames_head_to_index(true)
            .exclude_submodules(true)
            .no_refresh(true);
        let statuses = repo.statuses(Some(&mut wanted)).map_err(|e| self.fail(e))?;
        let mut found = self.conflicts(index)?;
        for entry in statuses.iter() {
            let status = entry.status();
            if status.is_conflicted() {
                continue;
            }
            let staged = entry.head_to_index();
            let unstaged = entry.index_to_workdir();
            let Some(delta) = unstaged.as_ref().or(staged.as_ref()) else {
                continue;
            };
            let file = match delta.status() {
                Delta::Deleted => delta.old_file(),
                _ => delta.new_file(),
            };
            let path = text(file.path_bytes());
            let state = State::Tracked {
                staged: staged.as_ref().and_then(change),
                unstaged: unstaged.as_ref().and_then(change),
            };
            found.push(FileStatus { path, state });
        }
        // A file that was taken out of the index and is there all the same is two things, as for
        // git.
        if options.untracked || options.ignored {
            let others = self.others(repo, index, options.ignored)?;
            let file = |path: Vec<u8>, state| FileStatus {
                path: text(Some(&path)),
                state,
            };
            let untracked = others.untracked.into_iter().filter(|_| options.untracked);
            found.extend(untracked.map(|path| file(path, State::Untracked)));
            let ignored = others.ignored.into_iter();
            found.extend(ignored.map(|path| file(path, State::Ignored)));
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        unsplit(&mut found);
        Ok(found)
    }

    /// Files that a merge could not decide about.
    pub(super) fn conflicts(&self, index: &Index) -> Result<Vec<FileStatus>, WorktreeError> {
        let mut found = Vec::new();
        for conflict in index.conflicts().map_err(|e| self.fail(e))? {
            let conflict = conflict.map_err(|e| self.fail(e))?;
            let sides = [&conflict.ancestor, &conflict.our, &conflict.their];
            let entry = sides.iter().find_map(|side| side.as_ref());
            let [base, ours, theirs] = sides.map(Option::is_some);
            if let (Some(entry), Some(kind)) = (entry, Conflict::of(base, ours, theirs)) {
                found.push(FileStatus {
                    path: text(Some(&entry.path)),
                    state: State::Conflicted(kind),
                });
            }
        }
        Ok(found)
    }
}

/// libgit2 takes a file that became a link for one that went and one that came, so that the first
/// may seem to have moved. As for git, what is still there has not moved.
fn unsplit(found: &mut [FileStatus]) {
    let staged = |file: &FileStatus| match &file.state {
        State::Tracked { staged, .. } => staged.clone(),
        _ => None,
    };
    let renames: Vec<(usize, String)> = found
        .iter()
        .enumerate()
        .filter_map(|(at, file)| match staged(file) {
            Some(Change::Renamed { from }) => Some((at, from)),
            _ => None,
        })
        .collect();
    for (at, from) in renames {
        let back = found
            .iter()
            .position(|file| file.path == from && staged(file) == Some(Change::Added));
        let Some(back) = back else {
            continue;
        };
        for (at, now) in [(back, Change::TypeChanged), (at, Change::Added)] {
            if let State::Tracked { staged, .. } = &mut found[at].state {
                *staged = Some(now);
            }
        }
    }
}

fn change(delta: &git2::DiffDelta<'_>) -> Option<Change> {
    Some(match delta.status() {
        Delta::Added | Delta::Untracked | Delta::Copied => Change::Added,
        Delta::Deleted => Change::Deleted,
        Delta::Modified => Change::Modified,
        Delta::Typechange => Change::TypeChanged,
        Delta::Renamed => Change::Renamed {
            from: text(delta.old_file().path_bytes()),
        },
        Delta::Unmodified | Delta::Ignored | Delta::Unreadable | Delta::Conflicted => return None,
    })
}

fn text(path: Option<&[u8]>) -> String {
    String::from_utf8_lossy(path.unwrap_or_default()).into_owned()
}
