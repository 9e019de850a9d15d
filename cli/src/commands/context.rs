//! Which repository and which worktree a command is about.

use std::path::{Path, PathBuf};

use hyprstream_git2db::{RepositoryHandle, Worktree, manager::Name, store::ObjectStore};

use crate::{
    failure::{Context as _, Failure, Kind, chain},
    home::Home,
};

/// The repository of a command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Which {
    /// Name of a tracked repository; by default that of the worktree in which the command is run.
    #[arg(long, short = 'R', value_name = "NAME", global = true)]
    repo: Option<Name>,
    /// The folder in which the command is run.
    #[arg(short = 'C', value_name = "DIR", global = true)]
    directory: Option<PathBuf>,
}

/// Where a worktree is, and of what repository.
struct Found {
    folder: PathBuf,
    bare: PathBuf,
}

impl Which {
    /// The repository.
    pub(crate) fn repository(&self, home: &Home) -> Result<RepositoryHandle, Failure> {
        if let Some(name) = &self.repo {
            return home.repository(name);
        }
        match self.find()? {
            Some(found) => open(home, &found.bare),
            None => Err(Failure::usage("which repository?").hint(
                "name one with -R NAME (hyprstream list shows them), or run it in a worktree",
            )),
        }
    }

    /// The worktree in which the command is run.
    pub(crate) fn worktree(&self, home: &Home) -> Result<Worktree, Failure> {
        let Some(found) = self.find()? else {
            return Err(
                Failure::usage(format!("{} is in no worktree", self.folder()?.display()))
                    .hint("make one: hyprstream worktree add -R NAME DIR"),
            );
        };
        let repository = open(home, &found.bare)?;
        if let Some(name) = &self.repo
            && home.repository(name)?.path() != repository.path()
        {
            return Err(Failure::usage(format!(
                "{} is a worktree of another repository than {name}",
                found.folder.display()
            )));
        }
        Worktree::open(&repository, &found.folder).context("the worktree cannot be opened")
    }

    /// What a path on the command line means below the root of the worktree.
    pub(crate) fn inside(&self, worktree: &Worktree, path: &Path) -> Result<String, Failure> {
        let folder = self.folder()?;
        let root = worktree
            .path()
            .canonicalize()
            .context(format_args!("cannot find {}", worktree.path().display()))?;
        // The file may be gone, which is a change too: only its folder is looked up.
        let mut whole = folder
            .canonicalize()
            .context(format_args!("cannot find {}", folder.display()))?;
        for part in path.components() {
            match part {
                std::path::Component::ParentDir => {
                    whole.pop();
                }
                std::path::Component::CurDir => {}
                part => whole.push(part),
            }
        }
        let below = whole.strip_prefix(&root).map_err(|_| {
            Failure::usage(format!(
                "{} is outside of the worktree {}",
                path.display(),
                root.display()
            ))
        })?;
        below
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| Failure::usage(format!("{} is not UTF-8", path.display())))
    }

    pub(crate) fn folder(&self) -> Result<PathBuf, Failure> {
        match &self.directory {
            Some(folder) => Ok(folder.clone()),
            None => std::env::current_dir().context("the current folder cannot be found"),
        }
    }

    /// The worktree that the folder lies in.
    fn find(&self) -> Result<Option<Found>, Failure> {
        let folder = self.folder()?;
        let folder = folder
            .canonicalize()
            .map_err(|error| Failure::not_found(format!("{}: {error}", folder.display())))?;
        for folder in folder.ancestors() {
            let dotgit = folder.join(".git");
            if dotgit.is_dir() {
                return Err(Failure::usage(format!(
                    "{} is a repository of git's own",
                    folder.display()
                ))
                .hint(
                    "use git in it; hyprstream clone takes it over, hyprstream serve serves it",
                ));
            }
            if dotgit.is_file() {
                let bare = bare_of(folder, &dotgit)?;
                return Ok(Some(Found {
                    folder: folder.to_owned(),
                    bare,
                }));
            }
        }
        Ok(None)
    }
}

/// `gitdir: BARE/worktrees/NAME`.
fn bare_of(folder: &Path, dotgit: &Path) -> Result<PathBuf, Failure> {
    let text = std::fs::read_to_string(dotgit)
        .context(format_args!("cannot read {}", dotgit.display()))?;
    text.strip_prefix("gitdir:")
        .map(|path| folder.join(path.trim()))
        .filter(|path| {
            path.parent()
                .and_then(Path::file_name)
                .is_some_and(|name| name == "worktrees")
        })
        .and_then(|path| Some(path.parent()?.parent()?.to_owned()))
        .ok_or_else(|| {
            Failure::usage(format!(
                "{} names no worktree of a bare repository",
                dotgit.display()
            ))
        })
}

/// The repository, with the store that lies beside it, which may be of another home than ours.
fn open(home: &Home, bare: &Path) -> Result<RepositoryHandle, Failure> {
    let beside = bare
        .parent()
        .filter(|folder| folder.ends_with("repositories"))
        .and_then(Path::parent)
        .map(|root| root.join("store"))
        .filter(|store| store.is_dir());
    let store = match beside {
        Some(store) => ObjectStore::open(&store).context("the store cannot be opened")?,
        None => home.registry()?.store().clone(),
    };
    RepositoryHandle::open(bare, store).map_err(|error| Failure::new(Kind::NotFound, chain(&error)))
}
