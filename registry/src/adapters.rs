//! Which adapters the workers of each Model have, see `hyprstream_contract::adapters`.
//!
//! The operator says it and the nodes ask; neither needs the other to run at the same time. A list
//! is a file, `adapters/<namespace>/<model>.json`, replaced whole. All of them are read at start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{self, Duration},
};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, Path as AxumPath, State as AxumState},
    http::{StatusCode, request::Parts},
};
use hyprstream_contract::adapters::{
    AdapterList, Changes, ChangesRequest, ListedModels, ModelName, Stored,
};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, time::Instant};

use crate::{
    access::Who,
    api::{Admin, parse},
    auth::Principal,
    clock::Clock,
    layout::sync_folders,
    names::Repository,
    refusal::Refusal,
    state::{State, blocking},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a repository can be read that a list has ceased to name, as long as nodes keep the
/// files.
const STAYS_OPEN: Duration = Duration::from_mins(10);
/// Models of one call for changes: far more than a node has pods.
const MAX_KNOWN: usize = 4096;

/// The Model of a path.
pub(crate) struct Owner(ModelName);

/// The lists, in memory and on the disk.
pub(crate) struct Lists {
    folder: PathBuf,
    /// Where files are made before they get their place.
    tmp: PathBuf,
    kept: RwLock<BTreeMap<ModelName, Kept>>,
    /// Held while a file changes, so that memory and disk never tell of different lists.
    writing: Mutex<()>,
    /// How often any of them changed.
    changes: watch::Sender<u64>,
    /// Repositories that a Model's list named before, and until when. A restart forgets them.
    left: Mutex<BTreeMap<ModelName, BTreeMap<String, time::Instant>>>,
    clock: Clock,
}

#[derive(Clone)]
enum Kept {
    List {
        revision: String,
        list: Arc<AdapterList>,
    },
    /// The file cannot be read: nobody is told that there are no adapters. The operator's next
    /// list mends it.
    Unreadable,
}

impl Lists {
    /// Reads what is there below `root`.
    pub(crate) fn open(root: &Path, tmp: PathBuf, clock: Clock) -> io::Result<Self> {
        let folder = root.join("adapters");
        fs::create_dir_all(&folder)?;
        let mut kept = BTreeMap::new();
        for namespace in fs::read_dir(&folder)?.flatten() {
            let Ok(files) = fs::read_dir(namespace.path()) else {
                continue;
            };
            for file in files.flatten() {
                let (namespace, name) = (namespace.file_name(), file.file_name());
                let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
                let (Some(namespace), Some(model)) = (namespace.to_str(), name) else {
                    continue;
                };
                let Ok(owner) = format!("{namespace}/{model}").parse::<ModelName>() else {
                    continue;
                };
                let read = read(&file.path()).unwrap_or_else(|error| {
                    tracing::error!(%owner, %error, "a list of adapters cannot be read");
                    Kept::Unreadable
                });
                kept.insert(owner, read);
            }
        }
        Ok(Self {
            folder,
            tmp,
            kept: RwLock::new(kept),
            writing: Mutex::default(),
            changes: watch::Sender::new(0),
            left: Mutex::default(),
            clock,
        })
    }

    /// Keeps a list in place of the one before. Returns its revision. Blocks.
    fn put(&self, owner: &ModelName, list: AdapterList) -> io::Result<String> {
        let revision = list.revision();
        let _one = self.writing.lock();
        let before = self.kept.read().get(owner).cloned();
        if matches!(before, Some(Kept::List { revision: ref old, .. }) if *old == revision) {
            return Ok(revision);
        }
        let path = self.path(owner);
        let parent = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(parent)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.tmp)?;
        serde_json::to_writer(&mut file, &list)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        sync_folders(parent, &self.folder)?;
        self.note_left(owner, before.as_ref(), &list);
        let new = Kept::List {
            revision: revision.clone(),
            list: Arc::new(list),
        };
        self.kept.write().insert(owner.clone(), new);
        self.changes.send_modify(|count| *count += 1);
        Ok(revision)
    }

    /// Forgets a list; nothing to do if there is none. Blocks.
    fn remove(&self, owner: &ModelName) -> io::Result<()> {
        let _one = self.writing.lock();
        match fs::remove_file(self.path(owner)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let before = self.kept.read().get(owner).cloned();
        self.note_left(owner, before.as_ref(), &AdapterList::default());
        let was_there = self.kept.write().remove(owner).is_some();
        // Goes only once it is empty.
        let _ = fs::remove_dir(self.folder.join(owner.namespace()));
        if was_there {
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    fn get(&self, owner: &ModelName) -> Kept {
        self.kept.read().get(owner).cloned().unwrap_or_else(|| {
            let list = AdapterList::default();
            Kept::List {
                revision: list.revision(),
                list: Arc::new(list),
            }
        })
    }

    /// The lists that differ from what is known.
    fn differing(&self, known: &BTreeMap<ModelName, String>) -> Changes {
        let mut changes = Changes::default();
        for (owner, old) in known {
            if let Kept::List { revision, list } = self.get(owner)
                && revision != *old
            {
                let list = AdapterList::clone(&list);
                changes.lists.insert(owner.clone(), list);
            }
        }
        changes
    }

    /// The same; waits up to `patience` for one.
    async fn changed(&self, known: &BTreeMap<ModelName, String>, patience: Duration) -> Changes {
        let until = Instant::now() + patience;
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let found = self.differing(known);
            let waited = tokio::time::timeout_at(until, changes.changed());
            if !found.lists.is_empty() || waited.await.is_err() {
                return found;
            }
        }
    }

    /// Notes until when what a list named and the next one does not can still be read.
    fn note_left(&self, owner: &ModelName, before: Option<&Kept>, next: &AdapterList) {
        let (mut left, now) = (self.left.lock(), self.clock.now());
        left.retain(|_, repositories| {
            repositories.retain(|_, until| *until > now);
            !repositories.is_empty()
        });
        let Some(Kept::List { list, .. }) = before else {
            return;
        };
        let named: BTreeSet<&str> = next.adapters.iter().map(|a| &*a.repository).collect();
        for adapter in &list.adapters {
            if !named.contains(&*adapter.repository) {
                let own = left.entry(owner.clone()).or_default();
                own.insert(adapter.repository.clone(), now + STAYS_OPEN);
            }
        }
    }

    /// Whether the list of that Model names the repository, or named it a short while ago.
    pub(crate) fn opens(&self, owner: &ModelName, repository: &Repository) -> bool {
        let is_it = |name: &str| {
            name.parse()
                .is_ok_and(|named: Repository| named == *repository)
        };
        if let Some(Kept::List { list, .. }) = self.kept.read().get(owner)
            && list.adapters.iter().any(|a| is_it(&a.repository))
        {
            return true;
        }
        let now = self.clock.now();
        let left = self.left.lock();
        left.get(owner).is_some_and(|repositories| {
            repositories
                .iter()
                .any(|(name, until)| *until > now && is_it(name))
        })
    }

    /// All Models of which there is a list, also one that cannot be read.
    fn models(&self) -> BTreeSet<ModelName> {
        self.kept.read().keys().cloned().collect()
    }

    /// Whether workers have an adapter of that repository, so that it has to stay.
    pub(crate) fn names(&self, repository: &Repository) -> bool {
        let name = repository.to_string();
        let kept = self.kept.read();
        kept.values().any(|kept| match kept {
            Kept::List { list, .. } => list.adapters.iter().any(|a| a.repository == name),
            Kept::Unreadable => false,
        })
    }

    /// Whether workers have an adapter of that commit.
    pub(crate) fn names_commit(&self, repository: &Repository, commit: &str) -> bool {
        let name = repository.to_string();
        let kept = self.kept.read();
        kept.values().any(|kept| match kept {
            Kept::List { list, .. } => list
                .adapters
                .iter()
                .any(|a| a.repository == name && a.commit.as_str() == commit),
            // Who knows.
            Kept::Unreadable => true,
        })
    }

    fn path(&self, owner: &ModelName) -> PathBuf {
        let folder = self.folder.join(owner.namespace());
        folder.join(format!("{}.json", owner.model()))
    }
}

fn read(path: &Path) -> io::Result<Kept> {
    let list: AdapterList = serde_json::from_slice(&fs::read(path)?)?;
    list.check().map_err(io::Error::other)?;
    Ok(Kept::List {
        revision: list.revision(),
        list: Arc::new(list),
    })
}

impl FromRequestParts<Arc<State>> for Owner {
    type Rejection = Refusal;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<State>,
    ) -> Result<Self, Self::Rejection> {
        let names = AxumPath::<(String, String)>::from_request_parts(parts, state).await;
        let AxumPath((namespace, model)) =
            names.map_err(|_| Refusal::bad_request("the path cannot be read"))?;
        let text = format!("{namespace}/{model}");
        text.parse().map(Self).map_err(|error| {
            let text: String = text.chars().take(140).collect();
            Refusal::bad_request(format!("{text:?} is no Model: {error}"))
        })
    }
}

/// `GET /api/v1/adapters`
pub(crate) async fn models(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
) -> Json<ListedModels> {
    let models = state.adapters.models();
    Json(ListedModels { models })
}

/// `PUT /api/v1/adapters/NAMESPACE/MODEL`
pub(crate) async fn put(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    Owner(owner): Owner,
    body: Bytes,
) -> Result<Json<Stored>, Refusal> {
    let list: AdapterList = parse(&body)?;
    list.check()
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    blocking(move || state.adapters.put(&owner, list))
        .await?
        .map(|revision| Json(Stored { revision }))
        .map_err(|error| State::io_refusal("keeping the list of adapters", &error))
}

/// `DELETE /api/v1/adapters/NAMESPACE/MODEL`
pub(crate) async fn remove(
    AxumState(state): AxumState<Arc<State>>,
    _: Admin,
    Owner(owner): Owner,
) -> Result<StatusCode, Refusal> {
    blocking(move || state.adapters.remove(&owner))
        .await?
        .map(|()| StatusCode::NO_CONTENT)
        .map_err(|error| State::io_refusal("removing the list of adapters", &error))
}

/// `GET /api/v1/adapters/NAMESPACE/MODEL`
pub(crate) async fn get(
    AxumState(state): AxumState<Arc<State>>,
    Who(who): Who,
    Owner(owner): Owner,
) -> Result<Json<AdapterList>, Refusal> {
    if !may_read(&state, &who, &owner, None) {
        return Err(Refusal::forbidden("this token does not allow this list"));
    }
    match state.adapters.get(&owner) {
        Kept::List { list, .. } => Ok(Json(AdapterList::clone(&list))),
        Kept::Unreadable => {
            let error = io::Error::other("its file is damaged; the operator's next list mends it");
            Err(Refusal::internal("reading the list of adapters", &error))
        }
    }
}

/// `POST /api/v1/adapters/changes`
pub(crate) async fn changes(
    AxumState(state): AxumState<Arc<State>>,
    Who(who): Who,
    body: Bytes,
) -> Result<Json<Changes>, Refusal> {
    let is_node = matches!(
        who,
        Principal::Admin | Principal::Node { .. } | Principal::Volume(_)
    );
    if !is_node {
        return Err(Refusal::forbidden("this token does not allow the API"));
    }
    let ChangesRequest { mut known, words } = parse(&body)?;
    if known.len() > MAX_KNOWN || words.len() > MAX_KNOWN {
        let message = format!("at most {MAX_KNOWN} Models can be asked for in one call");
        return Err(Refusal::bad_request(message));
    }
    let may = |model: &ModelName| may_read(&state, &who, model, words.get(model));
    let mut refused: BTreeSet<ModelName> = known.keys().filter(|m| !may(m)).cloned().collect();
    known.retain(|model, _| !refused.contains(model));
    // Who is refused hears so at once, with what there is for others.
    let patience = if refused.is_empty() {
        PATIENCE
    } else {
        Duration::ZERO
    };
    let mut changes = tokio::select! {
        changes = state.adapters.changed(&known, patience) => changes,
        () = state.shutdown.cancelled() => Changes::default(),
    };
    // A right may have gone while the call waited.
    refused.extend(changes.lists.keys().filter(|m| !may(m)).cloned());
    changes.lists.retain(|model, _| !refused.contains(model));
    changes.refused = refused;
    Ok(Json(changes))
}

/// Whether who asks may read the list of that Model, by its token or by a word that it shows.
fn may_read(state: &State, who: &Principal, model: &ModelName, word: Option<&String>) -> bool {
    match who {
        Principal::Admin | Principal::Node { reads_all: true } => true,
        Principal::Volume(granted) => granted.opens_list(model),
        Principal::Node { reads_all: false } => word
            .and_then(|word| state.auth.granted(word))
            .is_some_and(|granted| granted.opens_list(model)),
        Principal::Namespace { .. } | Principal::Kubernetes(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_a_list_names_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let lists = Lists::open(dir.path(), dir.path().to_owned(), Clock::default()).unwrap();
        let id = "ab".repeat(32);
        let list: AdapterList = serde_json::from_value(serde_json::json!({"adapters": [{
            "name": "sql", "scale": 1.0, "repository": format!("mirror/{id}"),
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "weights": "w", "config": "c", "source": "s",
        }]}))
        .unwrap();
        let (owner, mirror) = (
            "a/m".parse().unwrap(),
            Repository::Mirror(id.parse().unwrap()),
        );
        assert!(!lists.names(&mirror));
        lists.put(&owner, list).unwrap();
        assert!(lists.names(&mirror));
        assert!(!lists.names(&Repository::Mirror("cd".repeat(32).parse().unwrap())));
        lists.remove(&owner).unwrap();
        assert!(!lists.names(&mirror));
    }
}
