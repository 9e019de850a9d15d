//! Load routes: what somebody asks for by a path below the root.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hyprstream_contract::{
    adapters::{BaseCommitPolicy, MAX_ADAPTERS},
    model_ref::check_adapter_name,
    worker_adapters::Origin,
};
use hyprstream_models::adapter::{AdapterError, AdapterFiles};
use tokio::time::Instant;

use super::{
    LoadRequest, RequestError,
    entry::{Entry, Wish, base_commit},
    packer::{PackError, aside},
    room::Amount,
    state::State,
    store::{From, Store},
};

impl std::convert::From<PackError> for RequestError {
    fn from(error: PackError) -> Self {
        Self::Refused {
            reason: error.reason,
            message: error.message,
        }
    }
}

impl Store {
    /// See [`super::Adapters::load`].
    pub(super) async fn load(&self, request: LoadRequest) -> Result<(), RequestError> {
        let start = Instant::now();
        let Some(root) = self.options.root.clone() else {
            return Err(RequestError::NoRoot);
        };
        check_name(&request.name, &self.options.model)?;
        check_free(&self.state(), &request)?;
        let path = request.path.clone();
        let files = aside(move || find(&root, &path)).await??;
        let unpacked = self.read(files.clone()).await?;
        let found = unpacked.packed.digest.to_string();
        if let Some(expected) = &request.expected_digest
            && !expected.eq_ignore_ascii_case(&found)
        {
            return Err(RequestError::OtherDigest {
                expected: expected.clone(),
                found,
            });
        }
        let (revision, commit) = (&unpacked.packed.revision, &self.options.commit);
        let policy = BaseCommitPolicy::Warn;
        let warning = base_commit(policy, revision.as_deref(), commit.as_deref())?;
        let key = (request.name.clone(), Origin::Request);
        let (credit, keep) = {
            let state = self.state();
            let old = state.entries.get(&key).and_then(|e| e.serving.as_ref());
            let resident = old.filter(|record| record.resident().is_some());
            let credit = Amount::of(resident.map(|record| record.bytes));
            let keep: BTreeSet<u64> = old.map(|record| record.id).into_iter().collect();
            (credit, keep)
        };
        let from = From {
            files: files.clone(),
            folder: None,
            scale: 1.0,
        };
        let record = self.place(unpacked, from, credit, &keep).await?;
        let digest = record.digest;
        let wish = Wish {
            scale: 1.0,
            source: files.tensors.display().to_string(),
            commit: None,
            folder: None,
            files,
            base_commit: policy,
        };
        self.change(|state| {
            // Somebody else may have been faster.
            check_free(state, &request)?;
            let mut entry = Entry::new(wish);
            entry.serve(record, warning);
            state.entries.insert(key, entry);
            Ok::<_, RequestError>(())
        })?;
        self.loaded(&request.name, &digest, start);
        Ok(())
    }

    /// See [`super::Adapters::unload`].
    pub(super) fn unload(&self, name: &str) -> Result<(), RequestError> {
        self.change(|state| {
            let key = (name.to_owned(), Origin::Request);
            if state.entries.remove(&key).is_some() {
                tracing::info!(adapter = name, "adapter unloaded");
                return Ok(());
            }
            let mut named = state.named(name);
            match named.next() {
                Some(((_, origin), _)) => Err(not_ours(name, *origin)),
                None => Err(RequestError::NotLoaded(name.to_owned())),
            }
        })
    }
}

fn check_name(name: &str, model: &str) -> Result<(), RequestError> {
    let why = match check_adapter_name(name) {
        Err(why) => why,
        Ok(()) if name == model => "it is the model's own",
        Ok(()) => return Ok(()),
    };
    Err(RequestError::Name {
        name: name.chars().take(80).collect(),
        why: why.to_owned(),
    })
}

fn not_ours(name: &str, origin: Origin) -> RequestError {
    let owner = match origin {
        Origin::Followed => "an Adapter resource",
        Origin::Repository | Origin::Request => "the repository of the model",
    };
    RequestError::NotOurs {
        name: name.to_owned(),
        owner,
    }
}

/// Whether the name may mean what is asked for.
fn check_free(state: &State, request: &LoadRequest) -> Result<(), RequestError> {
    let name = &request.name;
    if let Some(((_, origin), entry)) = state.named(name).next() {
        if *origin != Origin::Request {
            return Err(not_ours(name, *origin));
        }
        if entry.serving.is_some() && !request.in_place {
            return Err(RequestError::AlreadyLoaded(name.clone()));
        }
        return Ok(());
    }
    let requested = state.entries.keys().filter(|key| key.1 == Origin::Request);
    if requested.count() >= MAX_ADAPTERS {
        return Err(RequestError::Refused {
            reason: "TooMany".to_owned(),
            message: format!("{MAX_ADAPTERS} adapters were loaded on request: unload some first"),
        });
    }
    Ok(())
}

/// The files of the adapter at `path`, which lie below `root` wherever links lead.
fn find(root: &Path, path: &str) -> Result<AdapterFiles, RequestError> {
    let not_found = || {
        let path: String = path.chars().take(200).collect();
        RequestError::NotFound(format!(
            "there is no adapter at {path:?} below the folder of --adapter-root"
        ))
    };
    let root = root.canonicalize().map_err(|_| not_found())?;
    let below = |path: &Path| -> Result<PathBuf, RequestError> {
        let path = path.canonicalize().map_err(|_| not_found())?;
        path.starts_with(&root)
            .then_some(path)
            .ok_or_else(not_found)
    };
    // An absolute path takes the place of the root.
    let found = below(&root.join(path))?;
    let files = AdapterFiles::find(&found).map_err(|error| match error {
        AdapterError::MissingFile { .. } => RequestError::NotFound(error.to_string()),
        error => PackError::from(error).into(),
    })?;
    below(&files.tensors)?;
    below(&files.config)?;
    Ok(files)
}
