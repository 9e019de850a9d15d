//! A registry: `git http-backend`, LFS and lists of adapters from memory, behind a token.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use hyprstream_contract::{
    VolumeAttributes,
    adapters::{
        AdapterEntry, AdapterList, BaseCommitPolicy, CHANGES_PATH, Changes, ChangesRequest,
        ModelName,
    },
    grants::Word,
    persistent_volumes::{KnownVolume, KnownVolumes, VOLUMES_PATH, VolumesRequest},
    volume::{VolumeContent, VolumeMode},
};
use hyprstream_git2db::Digest;

use super::remote::{
    git::{Work, backend, basic, git},
    http::{Response, Server},
    lfs::answer,
};

pub const TOKEN: &str = "node-token-of-the-tests";
pub const REPOSITORY: &str = "mirror/m1";
/// A repository of somebody else, who pushes the same commits but has none of the objects.
pub const POINTERS_ONLY: &str = "git/other/m";

pub struct Registry {
    work: Work,
    server: Server,
    objects: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    lists: Arc<Mutex<BTreeMap<String, AdapterList>>>,
    /// PersistentVolumes of the cluster, by name.
    volumes: Arc<Mutex<BTreeMap<String, KnownVolume>>>,
    down: Arc<AtomicBool>,
    doors: Arc<Mutex<Doors>>,
    /// Object downloads wait while it is locked.
    pub gate: Arc<Mutex<()>>,
    /// Objects whose downloads break off after half of the bytes and then get no further.
    halved: Arc<Mutex<HashSet<String>>>,
    /// Objects whose downloads wait.
    held: Arc<Mutex<HashSet<String>>>,
}

/// Who is let in.
struct Doors {
    node_reads_all: bool,
    /// What words open: a repository, or `adapters/NAMESPACE/MODEL`.
    words: BTreeMap<String, String>,
}

impl Doors {
    fn opens(&self, header: Option<&str>, repository: &str) -> bool {
        let is = |token: &str| header == Some(&basic("x-access-token", token));
        let mut words = self.words.iter();
        self.node_reads_all && is(TOKEN)
            || words.any(|(word, opened)| {
                // No list of these tests names a repository but this one.
                let is_listed = opened.starts_with("adapters/") && repository == REPOSITORY;
                is(word) && (opened == repository || is_listed)
            })
    }

    fn opens_list(&self, word: Option<&String>, model: &str) -> bool {
        let opened = word.and_then(|word| self.words.get(word));
        self.node_reads_all || opened == Some(&format!("adapters/{model}"))
    }
}

impl Registry {
    pub fn start() -> Self {
        let work = Work::new();
        work.write(
            ".gitattributes",
            "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        );
        let objects: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let (down, gate) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let root = work.dir.path().to_owned();
        let (shared, is_down, waits) = (objects.clone(), down.clone(), gate.clone());
        let nothing = Mutex::default();
        let lists: Arc<Mutex<BTreeMap<String, AdapterList>>> = Arc::default();
        let kept = lists.clone();
        let volumes: Arc<Mutex<BTreeMap<String, KnownVolume>>> = Arc::default();
        let known = volumes.clone();
        let halved = Arc::new(Mutex::new(HashSet::new()));
        let held = Arc::new(Mutex::new(HashSet::new()));
        let (halves, holds) = (halved.clone(), held.clone());
        let doors = Arc::new(Mutex::new(Doors {
            node_reads_all: true,
            words: BTreeMap::new(),
        }));
        let guarded = doors.clone();
        let server = Server::start(move |request| {
            if is_down.load(Ordering::SeqCst) {
                return Response::new(503);
            }
            if request.path.starts_with("/obj/") {
                let _open = waits.lock().unwrap_or_else(|e| e.into_inner());
                let oid = request.path.trim_start_matches("/obj/").to_owned();
                for _ in 0..3000 {
                    if !holds.lock().unwrap().contains(&oid) {
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                let mut response = answer(request, &shared);
                if halves.lock().unwrap().contains(&oid) {
                    response.declared = Some(response.body.len());
                    let half = match request.header("range") {
                        None => response.body.len() / 2,
                        Some(_) => 0,
                    };
                    response.body.truncate(half);
                }
                return response;
            }
            let is_volumes = request.path == VOLUMES_PATH;
            if request.path == CHANGES_PATH || is_volumes {
                let token = format!("Bearer {TOKEN}");
                if request.header("authorization") != Some(&token) {
                    return Response::new(401);
                }
                if is_volumes {
                    return known_volumes(&request.body, &known);
                }
                return changes(&request.body, &kept, &is_down, &guarded);
            }
            let below = |repository: &str| {
                let rest = request.path.strip_prefix(&format!("/{repository}.git"));
                rest.map(str::to_owned)
            };
            let (name, rest, owned) = match (below(REPOSITORY), below(POINTERS_ONLY)) {
                (Some(rest), _) => ("origin", rest, &*shared),
                (_, Some(rest)) => ("other", rest, &nothing),
                _ => return Response::new(404),
            };
            let repository = if name == "origin" {
                REPOSITORY
            } else {
                POINTERS_ONLY
            };
            let header = request.header("authorization");
            if !guarded.lock().unwrap().opens(header, repository) {
                return Response::new(401).header("WWW-Authenticate", "Basic realm=\"git\"");
            }
            if rest.starts_with("/info/lfs") {
                return answer(request, owned);
            }
            let mut request = request.clone();
            request.path = format!("/{name}.git{rest}");
            backend(&root, &request)
        });
        Self {
            work,
            server,
            objects,
            lists,
            volumes,
            down,
            doors,
            gate,
            halved,
            held,
        }
    }

    pub fn url(&self) -> String {
        self.server.url("")
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        self.work.write(path, content);
        self
    }

    /// Writes the pointer of an LFS object and keeps the object.
    pub fn write_lfs(&self, path: &str, content: &[u8]) -> &Self {
        let oid = Digest::of(content).to_string();
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {}\n",
            content.len()
        );
        self.objects.lock().unwrap().insert(oid, content.to_vec());
        self.write(path, pointer)
    }

    pub fn symlink(&self, path: &str, target: &str) -> &Self {
        std::os::unix::fs::symlink(target, self.work.work().join(path)).unwrap();
        self
    }

    pub fn commit(&self) -> String {
        self.work.commit().to_string()
    }

    /// Says which adapters a Model has.
    pub fn put_list(&self, model: &str, adapters: &[AdapterEntry]) {
        let list = AdapterList {
            adapters: adapters.to_vec(),
        };
        self.lists.lock().unwrap().insert(model.to_owned(), list);
    }

    /// Makes a PersistentVolume with this handle.
    pub fn put_volume(&self, name: &str, handle: &str) {
        let volume = KnownVolume {
            uid: format!("uid of {name}"),
            handle: handle.to_owned(),
        };
        self.volumes.lock().unwrap().insert(name.to_owned(), volume);
    }

    pub fn remove_volume(&self, name: &str) {
        assert!(self.volumes.lock().unwrap().remove(name).is_some());
    }

    /// How often PersistentVolumes were asked for.
    pub fn volume_calls(&self) -> usize {
        let requests = self.server.requests().into_iter();
        requests.filter(|r| r.path == VOLUMES_PATH).count()
    }

    /// An adapter of `NAME.safetensors` and `NAME.json` in a commit.
    pub fn adapter(&self, name: &str, commit: &str) -> AdapterEntry {
        AdapterEntry {
            name: name.to_owned(),
            scale: 1.0,
            repository: REPOSITORY.to_owned(),
            commit: commit.parse().unwrap(),
            weights: format!("{name}.safetensors"),
            config: format!("{name}.json"),
            source: "https://example.org/m".to_owned(),
            base_commit: BaseCommitPolicy::Warn,
        }
    }

    /// The volume of a Model's adapters.
    pub fn adapters_of(model: &str) -> BTreeMap<String, String> {
        VolumeContent::Adapters(model.parse().unwrap()).to_map()
    }

    /// Calls for lists, in order.
    pub fn list_calls(&self) -> usize {
        let requests = self.server.requests().into_iter();
        requests.filter(|r| r.path == CHANGES_PATH).count()
    }

    /// Takes an object away, or puts other bytes in its place.
    pub fn spoil(&self, content: &[u8], instead: Option<&[u8]>) {
        let oid = Digest::of(content).to_string();
        let mut objects = self.objects.lock().unwrap();
        match instead {
            Some(bytes) => objects.insert(oid, bytes.to_vec()),
            None => objects.remove(&oid),
        };
    }

    pub fn restore(&self, content: &[u8]) {
        self.objects
            .lock()
            .unwrap()
            .insert(Digest::of(content).to_string(), content.to_vec());
    }

    /// Lets downloads of an object break off halfway for good, or no longer.
    pub fn halve(&self, content: &[u8], halve: bool) {
        change(&self.halved, content, halve);
    }

    /// Lets downloads of an object wait, or no longer.
    pub fn hold(&self, content: &[u8], hold: bool) {
        change(&self.held, content, hold);
    }

    /// Whether somebody has begun to download the object.
    pub fn is_asked_for(&self, content: &[u8]) -> bool {
        self.downloads().contains(&Digest::of(content).to_string())
    }

    /// From now on the nodes' token opens nothing.
    pub fn close(&self) {
        self.doors.lock().unwrap().node_reads_all = false;
    }

    /// Lets a word open a repository, or `adapters/NAMESPACE/MODEL`.
    pub fn grant(&self, word: &Word, opens: &str) {
        let mut doors = self.doors.lock().unwrap();
        doors
            .words
            .insert(word.expose().to_owned(), opens.to_owned());
    }

    pub fn revoke(&self, word: &Word) {
        self.doors.lock().unwrap().words.remove(word.expose());
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Objects that were downloaded, in order.
    pub fn downloads(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        requests
            .filter_map(|r| r.path.strip_prefix("/obj/").map(str::to_owned))
            .collect()
    }

    pub fn volume(&self, commit: &str, mode: VolumeMode) -> BTreeMap<String, String> {
        Self::volume_of(REPOSITORY, commit, mode)
    }

    /// The commit in the repository of somebody else, whose pointers name objects of this one.
    pub fn pointers_only(&self, commit: &str, mode: VolumeMode) -> BTreeMap<String, String> {
        let root = self.work.dir.path();
        git(root, &["clone", "-q", "--bare", "origin.git", "other.git"]);
        Self::volume_of(POINTERS_ONLY, commit, mode)
    }

    fn volume_of(repository: &str, commit: &str, mode: VolumeMode) -> BTreeMap<String, String> {
        let volume = VolumeAttributes {
            repository: repository.into(),
            commit: commit.parse().unwrap(),
            source: "https://example.org/m".into(),
            reference: Some("main".into()),
            include: vec![],
            mode,
        };
        volume.to_map()
    }
}

fn known_volumes(body: &[u8], volumes: &Mutex<BTreeMap<String, KnownVolume>>) -> Response {
    let request: VolumesRequest = serde_json::from_slice(body).unwrap();
    let volumes = volumes.lock().unwrap();
    let names = request.names.into_iter();
    let volumes = names.map(|name| (name.clone(), volumes.get(&name).cloned()));
    let known = KnownVolumes {
        volumes: volumes.collect(),
    };
    Response::new(200).body(serde_json::to_vec(&known).unwrap())
}

/// The lists that differ from what is known; waits up to 30 s for one.
fn changes(
    body: &[u8],
    lists: &Mutex<BTreeMap<String, AdapterList>>,
    down: &AtomicBool,
    doors: &Mutex<Doors>,
) -> Response {
    let request: ChangesRequest = serde_json::from_slice(body).unwrap();
    let opens = |model: &ModelName| {
        let doors = doors.lock().unwrap();
        doors.opens_list(request.words.get(model), &model.to_string())
    };
    for _ in 0..6000 {
        let mut changes = Changes::default();
        for (model, known) in &request.known {
            if !opens(model) {
                changes.refused.insert(model.clone());
                continue;
            }
            let list = lists
                .lock()
                .unwrap()
                .get(&model.to_string())
                .cloned()
                .unwrap_or_default();
            if list.revision() != *known {
                changes.lists.insert(model.clone(), list);
            }
        }
        if down.load(Ordering::SeqCst) {
            return Response::new(503);
        }
        if !changes.lists.is_empty() || !changes.refused.is_empty() {
            return Response::new(200).body(serde_json::to_vec(&changes).unwrap());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Response::new(200).body(serde_json::to_vec(&Changes::default()).unwrap())
}

fn change(set: &Mutex<HashSet<String>>, content: &[u8], insert: bool) {
    let oid = Digest::of(content).to_string();
    let mut set = set.lock().unwrap();
    if insert {
        set.insert(oid);
    } else {
        set.remove(&oid);
    }
}
