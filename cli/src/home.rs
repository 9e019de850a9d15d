//! What is tracked on this machine, and the folders that are served of it.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};

use hyprstream_git2db::{
    CommitId, Git2DB, Include, Reference, RepositoryHandle, checkout,
    manager::{Name, Tracked},
    tree::Limits,
};
use hyprstream_openai::Provenance;
use hyprstream_worker::server::Identity;

use crate::{
    commands::{
        clone::{self, CloneArgs},
        history::history,
        sync,
    },
    credentials::CredentialArgs,
    failure::{Context as _, Failure, chain},
    reference::{self, Place},
    server::Served,
};

/// The folder of all that is tracked. It is made when it is first needed.
#[derive(Debug)]
pub(crate) struct Home {
    root: PathBuf,
    registry: OnceCell<Git2DB>,
}

impl Home {
    /// The folder that was asked for, or the user's own for data.
    pub(crate) fn new(given: Option<PathBuf>) -> Result<Self, Failure> {
        let root = match given {
            Some(root) => root,
            None => data_folder()?.join("hyprstream"),
        };
        Ok(Self {
            root,
            registry: OnceCell::new(),
        })
    }

    /// The tracked repositories.
    pub(crate) fn registry(&self) -> Result<&Git2DB, Failure> {
        if let Some(registry) = self.registry.get() {
            return Ok(registry);
        }
        let registry = Git2DB::open(&self.root).map_err(clone::failure)?;
        Ok(self.registry.get_or_init(|| registry))
    }

    /// A tracked repository, to work with.
    pub(crate) fn repository(&self, name: &Name) -> Result<RepositoryHandle, Failure> {
        self.registry()?.repository(name).map_err(clone::failure)
    }

    /// The folder of a model, fetched if it must be.
    pub(crate) fn serve(
        &self,
        place: &Place,
        name: Option<&str>,
        credentials: &CredentialArgs,
    ) -> Result<Served, Failure> {
        match place {
            Place::Folder(folder) => folder_of(folder, name),
            Place::Tracked {
                name: tracked,
                branch,
                commit,
            } => {
                let tracked = parse(tracked)?;
                let found = self.registry()?.get(&tracked).map_err(clone::failure)?;
                let revision = commit.as_deref().or(branch.as_deref());
                let chosen = self.commit(&found, branch.as_deref(), commit.as_deref())?;
                self.checkout(&found, revision, &chosen, name, credentials)
            }
            Place::Remote { url, reference } => {
                let found = self.clone_of(url, reference.as_deref(), credentials)?;
                let chosen = self.commit(&found, reference.as_deref(), None)?;
                self.checkout(&found, reference.as_deref(), &chosen, name, credentials)
            }
        }
    }

    /// The clone of a URL, made if there is none.
    fn clone_of(
        &self,
        url: &str,
        reference: Option<&str>,
        credentials: &CredentialArgs,
    ) -> Result<Tracked, Failure> {
        let parsed = reference::url(url)?;
        let all = self.registry()?.list().map_err(clone::failure)?;
        let same = all
            .into_iter()
            .find(|tracked| tracked.url.as_ref() == Some(&parsed));
        if let Some(tracked) = same {
            let moves = matches!(tracked.reference, Reference::Head | Reference::Branch(_));
            if reference.is_none() && !moves {
                return Err(Failure::usage(format!(
                    "{url} is tracked as {}, which follows no branch",
                    tracked.name
                ))
                .hint(format!(
                    "ask for {}, for {url}@BRANCH, or clone it under another --name",
                    tracked.name
                )));
            }
            let has = reference.is_none_or(|reference| {
                self.repository(&tracked.name)
                    .is_ok_and(|repository| find(&repository, reference).is_ok())
            });
            if !has {
                sync::fetch(self, &tracked, credentials)?;
            }
            return Ok(tracked);
        }
        clone::make(self, &CloneArgs::of(url, reference, credentials.clone()))
    }

    /// The commit that a branch or tag, and the beginning of a commit, name.
    fn commit(
        &self,
        tracked: &Tracked,
        branch: Option<&str>,
        commit: Option<&str>,
    ) -> Result<CommitId, Failure> {
        let repository = self.repository(&tracked.name)?;
        let tip = match branch {
            Some(branch) => find(&repository, branch)?,
            None => followed(&repository, &tracked.reference)?,
        };
        let Some(commit) = commit else {
            return Ok(tip);
        };
        let chosen = repository.resolve(commit).map_err(history)?;
        let base = repository.merge_base(&chosen, &tip).map_err(history)?;
        if base.as_ref() == Some(&chosen) {
            return Ok(chosen);
        }
        Err(Failure::not_found(format!(
            "commit {chosen} is not on {}",
            branch.unwrap_or("the branch that is followed")
        )))
    }

    /// The files of a commit; large ones that are missing are downloaded.
    fn checkout(
        &self,
        tracked: &Tracked,
        revision: Option<&str>,
        commit: &CommitId,
        name: Option<&str>,
        credentials: &CredentialArgs,
    ) -> Result<Served, Failure> {
        let registry = self.registry()?;
        let (include, limits) = (Include::all(), Limits::default());
        let source = checkout::Source {
            bare: &tracked.path,
            commit,
            include: &include,
            limits,
            store: registry.store(),
        };
        sync::download(
            tracked,
            &self.repository(&tracked.name)?,
            commit,
            credentials,
        )?;
        let made = checkout::materialise(&source, registry.root())
            .context("the files cannot be checked out")?;
        let repository = tracked.url.as_ref().map_or_else(
            || tracked.path.display().to_string(),
            |url| url.as_str().to_owned(),
        );
        let served = folder_of(&made.path, Some(name.unwrap_or(tracked.name.as_str())))?;
        Ok(Served {
            provenance: Some(Provenance {
                repository,
                reference: revision.map(str::to_owned),
                commit: commit.to_string(),
                ..Provenance::default()
            }),
            ..served
        })
    }
}

/// A branch, then a tag, a branch of the upstream, a commit.
fn find(repository: &RepositoryHandle, revision: &str) -> Result<CommitId, Failure> {
    repository
        .branch_tip(revision)
        .or_else(|_| repository.resolve(revision))
        .or_else(|error| {
            repository
                .resolve(&format!("refs/remotes/origin/{revision}"))
                .map_err(|_| error)
        })
        .map_err(history)
}

pub(crate) fn followed(
    repository: &RepositoryHandle,
    reference: &Reference,
) -> Result<CommitId, Failure> {
    match reference {
        Reference::Head => repository.resolve("HEAD").map_err(history),
        Reference::Branch(name) | Reference::Tag(name) => find(repository, name),
        Reference::Commit(commit) => Ok(commit.clone()),
    }
}

pub(crate) fn parse(name: &str) -> Result<Name, Failure> {
    name.parse().map_err(|error| Failure::usage(chain(&error)))
}

fn folder_of(folder: &Path, name: Option<&str>) -> Result<Served, Failure> {
    if !folder.join("config.json").is_file() {
        let why = if folder.exists() {
            "has no config.json"
        } else {
            "does not exist"
        };
        return Err(
            Failure::not_found(format!("{} {why}", folder.display())).hint(
                "a model is in Hugging Face's layout: config.json, *.safetensors, tokenizer.json",
            ),
        );
    }
    let found = Identity::read(folder, name.map(str::to_owned), None)
        .map_err(|error| Failure::usage(chain(&error)))?;
    Ok(Served {
        folder: folder.to_owned(),
        name: found.name,
        provenance: found.provenance,
    })
}

fn data_folder() -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = variable("XDG_DATA_HOME") {
        return Ok(folder.into());
    }
    match variable("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(".local/share")),
        None => Err(Failure::usage("neither HYPRSTREAM_HOME nor HOME is set")),
    }
}
