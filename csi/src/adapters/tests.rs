//! Lists that come, go and cannot be had, over a source of files in memory.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyprstream_contract::{
    VolumeAttributes,
    adapters::{
        AdapterEntry, AdapterFolder, AdapterList, AdapterState, BaseCommitPolicy, CONFIG_FILE,
        ChangesRequest, FOLDER_FILE, ModelName, WEIGHTS_FILE,
    },
    manifest::ManifestFile,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tonic::async_trait;

use super::{Adapters, Following, Lists, Said, Timing, folder::Folder};
use crate::{
    error::Error,
    fetch::{Checkout, Checkouts, FetchError, Progress, fake::WithoutObjects},
    layout::{CheckoutKey, Layout},
    metrics::Metrics,
};

/// A registry of lists; `None` while it is down.
#[derive(Clone)]
pub(crate) struct FakeLists(Arc<watch::Sender<Option<BTreeMap<ModelName, AdapterList>>>>);

impl Default for FakeLists {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Some(BTreeMap::new()))))
    }
}

impl FakeLists {
    pub(crate) fn put(&self, model: &str, adapters: &[AdapterEntry]) {
        let list = AdapterList {
            adapters: adapters.to_vec(),
        };
        self.0.send_modify(|lists| {
            let lists = lists.get_or_insert_default();
            lists.insert(model.parse().unwrap(), list);
        });
    }

    pub(crate) fn set_down(&self) {
        self.0.send_replace(None);
    }
}

#[async_trait]
impl Lists for FakeLists {
    async fn changes(&self, request: ChangesRequest) -> Result<Said, String> {
        let mut lists = self.0.subscribe();
        loop {
            let said: Said = match &*lists.borrow_and_update() {
                None => return Err("connection refused".to_owned()),
                Some(lists) => request
                    .known
                    .iter()
                    .filter_map(|(model, known)| {
                        let list = lists.get(model).cloned().unwrap_or_default();
                        (list.revision() != *known).then(|| (model.clone(), Ok(list)))
                    })
                    .collect(),
            };
            if !said.is_empty() {
                return Ok(said);
            }
            lists.changed().await.unwrap();
        }
    }
}

/// Commits of any repository: every file holds its own path, unless it is said to be bad.
struct Files {
    layout: Layout,
    bad: Mutex<HashMap<String, FetchError>>,
    built: Mutex<Vec<Vec<String>>>,
}

impl WithoutObjects for Files {
    fn open(&self, key: &CheckoutKey) -> Result<Option<Checkout>, FetchError> {
        let path = self.layout.checkout(key);
        let Ok(entries) = std::fs::read_dir(&path) else {
            return Ok(None);
        };
        let files = entries
            .map(|entry| {
                let path = entry.unwrap().file_name().into_string().unwrap();
                ManifestFile {
                    size_bytes: path.len() as u64,
                    sha256: String::new(),
                    path,
                }
            })
            .collect();
        Ok(Some(Checkout { path, files }))
    }

    fn bring(&self, volume: &VolumeAttributes, _: &Progress) -> Result<(), FetchError> {
        let bad = self.bad.lock();
        let first = volume.include.iter().find_map(|path| bad.get(path));
        first.map_or(Ok(()), |error| Err(error.clone()))
    }

    fn build(&self, key: &CheckoutKey, volume: &VolumeAttributes) -> Result<Checkout, FetchError> {
        let folder = self.layout.checkout(key);
        std::fs::create_dir_all(&folder).unwrap();
        for path in volume.include.iter().filter(|path| *path != "absent.json") {
            std::fs::write(folder.join(path), path).unwrap();
        }
        self.built.lock().push(volume.include.clone());
        Ok(self.open(key)?.unwrap())
    }
}

/// A node's disk, on which the program may be started again and again.
struct Bench {
    folder: tempfile::TempDir,
    lists: FakeLists,
    timing: Timing,
}

/// One life of the program.
struct Life {
    adapters: Arc<Adapters>,
    files: Arc<Files>,
    task: tokio::task::AbortHandle,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const MODEL: &str = "default/chat";
const PATIENCE: Duration = Duration::from_secs(20);

fn model() -> ModelName {
    MODEL.parse().unwrap()
}

pub(crate) fn entry(name: &str, commit: char) -> AdapterEntry {
    AdapterEntry {
        name: name.to_owned(),
        scale: 1.0,
        repository: "git/default/m".to_owned(),
        commit: commit.to_string().repeat(40).parse().unwrap(),
        weights: format!("{name}.safetensors"),
        config: format!("{name}.json"),
        source: "s".to_owned(),
        base_commit: BaseCommitPolicy::Warn,
    }
}

/// Adapters of `lists`, which nobody follows yet.
pub(crate) fn adapters(
    layout: &Layout,
    checkouts: &Arc<Checkouts>,
    lists: FakeLists,
    timing: Timing,
) -> Arc<Adapters> {
    Arc::new(Adapters {
        layout: layout.clone(),
        checkouts: Arc::clone(checkouts),
        lists: Arc::new(lists),
        metrics: Metrics::new().unwrap(),
        timing,
        disk_full: Arc::new(Notify::new()),
        damaged: Arc::new(Notify::new()),
        followed: Following::default(),
    })
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            lists: FakeLists::default(),
            timing: Timing {
                look_again: Duration::from_millis(20),
                min_pause: Duration::from_millis(10),
                max_pause: Duration::from_millis(50),
                max_long_pause: Duration::from_millis(50),
                former_patience: Duration::from_millis(50),
                ..Timing::default()
            },
        }
    }

    fn start(&self) -> Life {
        let layout = Layout::new(self.folder.path().canonicalize().unwrap()).unwrap();
        layout.create().unwrap();
        let files = Arc::new(Files {
            layout: layout.clone(),
            bad: Mutex::default(),
            built: Mutex::default(),
        });
        let checkouts = Checkouts::new(files.clone(), layout.clone());
        let adapters = adapters(&layout, &checkouts, self.lists.clone(), self.timing);
        let task = tokio::spawn(Arc::clone(&adapters).follow()).abort_handle();
        Life {
            adapters,
            files,
            task,
        }
    }
}

impl Life {
    fn shown(&self) -> PathBuf {
        self.adapters.layout.adapters_shown(&model())
    }

    fn content(&self) -> AdapterFolder {
        let text = std::fs::read(self.shown().join(FOLDER_FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn weights(&self, entry: &AdapterEntry) -> PathBuf {
        self.shown().join(entry.folder()).join(WEIGHTS_FILE)
    }

    /// Waits until the names of the adapters and their states are these.
    #[track_caller]
    fn until(&self, expected: &[(&str, &str)]) -> impl Future<Output = AdapterFolder> {
        let expected: Vec<(String, String)> = expected
            .iter()
            .map(|(name, state)| ((*name).to_owned(), (*state).to_owned()))
            .collect();
        async move {
            for _ in 0..1000 {
                let content = self.content();
                let now: Vec<(String, String)> = content
                    .adapters
                    .iter()
                    .map(|adapter| {
                        let state = match &adapter.state {
                            AdapterState::Ready => "ready",
                            AdapterState::Pending => "pending",
                            AdapterState::Failed { reason, .. } => reason,
                        };
                        (adapter.name.clone(), state.to_owned())
                    })
                    .collect();
                if now == expected {
                    return content;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{:?} does not become {expected:?}", self.content());
        }
    }
}

#[tokio::test]
async fn the_first_list_is_waited_for_and_the_files_are_not() {
    let bench = Bench::new();
    let life = bench.start();
    let bad = FetchError::Unreachable { why: "gone".into() };
    life.files.bad.lock().insert("sql.json".into(), bad);
    bench.lists.put(MODEL, &[entry("sql", '1')]);
    let _lease = life.adapters.lease(&model());
    let shown = life.adapters.first_list(&model(), PATIENCE).await.unwrap();
    assert_eq!(shown, life.shown());
    assert_eq!(life.content().adapters.len(), 1);
    let content = life.until(&[("sql", "RegistryUnreachable")]).await;
    let told = serde_json::to_string(&content).unwrap();
    assert!(told.contains("gone; retrying"), "{told}");
    assert!(told.contains(r#""transient":true"#), "{told}");
    life.files.bad.lock().clear();
    life.until(&[("sql", "ready")]).await;
    let found = std::fs::read_to_string(life.weights(&entry("sql", '1'))).unwrap();
    assert_eq!(found, "sql.safetensors");
    let config = life
        .shown()
        .join(entry("sql", '1').folder())
        .join(CONFIG_FILE);
    assert_eq!(std::fs::read_to_string(config).unwrap(), "sql.json");
}

#[tokio::test]
async fn a_model_without_adapters_has_an_empty_folder() {
    let life = Bench::new().start();
    let _lease = life.adapters.lease(&model());
    life.adapters.first_list(&model(), PATIENCE).await.unwrap();
    let content = life.content();
    assert_eq!(content.revision, AdapterList::default().revision());
    assert!(content.adapters.is_empty());
}

#[tokio::test]
async fn adapters_of_one_commit_share_a_checkout_and_a_bad_one_keeps_no_other_back() {
    let bench = Bench::new();
    let life = bench.start();
    let _lease = life.adapters.lease(&model());
    bench.lists.put(MODEL, &[entry("a", '1'), entry("b", '1')]);
    life.until(&[("a", "ready"), ("b", "ready")]).await;
    assert_eq!(life.files.built.lock().len(), 1);

    let bad = FetchError::Refused {
        why: "it is bad".into(),
    };
    life.files.bad.lock().insert("c.safetensors".into(), bad);
    let mut absent = entry("d", '1');
    absent.config = "absent.json".into();
    let list = [
        entry("a", '1'),
        entry("b", '1'),
        entry("c", '1'),
        absent,
        entry("e", '1'),
    ];
    bench.lists.put(MODEL, &list);
    let states = [
        ("a", "ready"),
        ("b", "ready"),
        ("c", "Refused"),
        ("d", "NotFound"),
        ("e", "ready"),
    ];
    let content = life.until(&states).await;
    let told = serde_json::to_string(&content).unwrap();
    assert!(
        told.contains("it is bad") && told.contains("absent.json"),
        "{told}"
    );
    assert!(!told.contains("transient"), "{told}");
    life.files.bad.lock().clear();
    let states = states.map(|(name, state)| (name, if name == "c" { "ready" } else { state }));
    life.until(&states).await;
}

#[tokio::test]
async fn files_stay_for_a_while_after_the_last_list_that_named_them() {
    let mut bench = Bench::new();
    bench.timing.linger = Duration::from_millis(300);
    let life = bench.start();
    let _lease = life.adapters.lease(&model());
    let (old, new) = (entry("sql", '1'), entry("sql", '2'));
    bench.lists.put(MODEL, std::slice::from_ref(&old));
    life.until(&[("sql", "ready")]).await;
    let open = std::fs::File::open(life.weights(&old)).unwrap();
    bench.lists.put(MODEL, std::slice::from_ref(&new));
    while life.content().adapters[0].commit != new.commit {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    life.until(&[("sql", "ready")]).await;
    assert!(life.weights(&old).exists() && life.weights(&new).exists());
    while life.weights(&old).exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(open.metadata().unwrap().len(), 15);
    assert!(life.weights(&new).exists());
    bench.lists.put(MODEL, &[]);
    life.until(&[]).await;
    while life.weights(&new).exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn another_life_shows_the_last_list_while_the_registry_is_down() {
    let bench = Bench::new();
    bench.lists.put(MODEL, &[entry("a", '1')]);
    {
        let life = bench.start();
        let _lease = life.adapters.lease(&model());
        life.until(&[("a", "ready")]).await;
    }
    bench.lists.set_down();
    let life = bench.start();
    let _lease = life.adapters.lease(&model());
    life.adapters.first_list(&model(), PATIENCE).await.unwrap();
    life.until(&[("a", "ready")]).await;
    assert!(life.files.built.lock().is_empty());

    // A Model that was never here waits.
    let other: ModelName = "default/other".parse().unwrap();
    let _other = life.adapters.lease(&other);
    let error = life
        .adapters
        .first_list(&other, Duration::from_millis(300))
        .await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::NoList { .. }));
    assert!(error.to_string().contains("connection refused"), "{error}");

    bench.lists.put(MODEL, &[entry("a", '1'), entry("b", '2')]);
    life.until(&[("a", "ready"), ("b", "ready")]).await;
    life.adapters.first_list(&other, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_kill_between_any_two_steps_is_mended_by_the_next_life() {
    let bench = Bench::new();
    let sql = entry("sql", '1');
    bench.lists.put(MODEL, std::slice::from_ref(&sql));
    let layout = {
        let life = bench.start();
        let _lease = life.adapters.lease(&model());
        life.until(&[("sql", "ready")]).await;
        life.adapters.layout.clone()
    };
    let shown = layout.adapters_shown(&model());
    let kills: [&dyn Fn(); 5] = [
        // The list is kept, and nothing else was done.
        &|| {
            std::fs::remove_dir_all(&shown).unwrap();
            std::fs::create_dir(&shown).unwrap();
        },
        // One of two files is linked.
        &|| std::fs::remove_file(shown.join(sql.folder()).join(CONFIG_FILE)).unwrap(),
        // Half a copy was made, half a list was written.
        &|| {
            std::fs::write(layout.adapters_of(&model()).join("file.new"), "x").unwrap();
            std::fs::write(layout.adapters_of(&model()).join("adapters.new"), "{").unwrap();
        },
        // The checkout was taken away, and the links are there.
        &|| std::fs::remove_dir_all(layout.repositories()).unwrap(),
        // A list of another version of the program.
        &|| std::fs::write(layout.adapters_list(&model()), "[]").unwrap(),
    ];
    for kill in kills {
        kill();
        let life = bench.start();
        let _lease = life.adapters.lease(&model());
        life.adapters.first_list(&model(), PATIENCE).await.unwrap();
        life.until(&[("sql", "ready")]).await;
        let folder = Folder::new(&layout, &model());
        let named = folder.read_list().unwrap();
        assert_eq!(named.adapters, std::slice::from_ref(&sql));
        let ours = std::fs::metadata(life.weights(&sql)).unwrap();
        let key = super::work::named_checkouts(&named)
            .into_iter()
            .next()
            .unwrap();
        while !layout.checkout(&key).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(ours.len(), 15);
    }
}

#[tokio::test]
async fn a_damaged_file_is_taken_away_and_fetched_anew() {
    let bench = Bench::new();
    let sql = entry("sql", '1');
    bench.lists.put(MODEL, std::slice::from_ref(&sql));
    let life = bench.start();
    let _lease = life.adapters.lease(&model());
    life.until(&[("sql", "ready")]).await;
    let before = std::fs::metadata(life.weights(&sql)).unwrap().ino();
    let open = std::fs::File::open(life.weights(&sql)).unwrap();
    let named = life.adapters.named_checkouts().unwrap();
    let key = named.into_iter().next().unwrap();
    let checkout = life.adapters.checkouts.open(&key).unwrap().unwrap();
    life.adapters.forget(&checkout, "sql.safetensors").unwrap();
    assert!(!life.weights(&sql).exists());
    // As the collector does.
    std::fs::remove_dir_all(&checkout.path).unwrap();
    life.adapters.tell_news();
    while !life.weights(&sql).exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    life.until(&[("sql", "ready")]).await;
    assert_ne!(std::fs::metadata(life.weights(&sql)).unwrap().ino(), before);
    drop(open);
}

#[tokio::test]
async fn a_folder_goes_when_nobody_has_followed_it_for_long_and_nothing_shows_it() {
    let bench = Bench::new();
    bench.lists.put(MODEL, &[entry("a", '1')]);
    let life = bench.start();
    let nothing = std::collections::HashSet::new();
    let collect = |keep, mounted| life.adapters.collect(keep, mounted).unwrap();
    let lease = life.adapters.lease(&model());
    life.until(&[("a", "ready")]).await;
    assert_eq!(collect(Duration::ZERO, &nothing), 0, "it is followed");
    assert!(!life.adapters.named_checkouts().unwrap().is_empty());
    drop(lease);
    assert_eq!(collect(Duration::from_mins(1), &nothing), 0);
    let mounted = std::collections::HashSet::from([life.shown()]);
    assert_eq!(collect(Duration::ZERO, &mounted), 0);
    assert!(!life.adapters.named_checkouts().unwrap().is_empty());
    assert_eq!(collect(Duration::ZERO, &nothing), 1);
    assert!(life.adapters.named_checkouts().unwrap().is_empty());

    let _lease = life.adapters.lease(&model());
    life.adapters.first_list(&model(), PATIENCE).await.unwrap();
    life.until(&[("a", "ready")]).await;
}

#[tokio::test]
async fn two_models_have_a_folder_each() {
    let bench = Bench::new();
    let life = bench.start();
    let other: ModelName = "other/chat".parse().unwrap();
    let _leases = [life.adapters.lease(&model()), life.adapters.lease(&other)];
    bench.lists.put(MODEL, &[entry("a", '1')]);
    life.until(&[("a", "ready")]).await;
    let shown = life.adapters.first_list(&other, PATIENCE).await.unwrap();
    let text = std::fs::read(shown.join(FOLDER_FILE)).unwrap();
    let content: AdapterFolder = serde_json::from_slice(&text).unwrap();
    assert!(content.adapters.is_empty());
    while life.adapters.metrics.adapters.get() != 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(life.adapters.metrics.adapters_missing.get(), 0);
}
