//! Finding what went bad on the disk, and setting it aside.
//!
//! Disks flip bits and lose ends of files. What is read in the background, or when it is used, and
//! no longer has its SHA-256 goes to `quarantine/`, out of every repository that had it. Mirrors
//! get it again from their upstreams when they are next asked for. A pushed repository keeps a note,
//! so that its Models hear which push mends it; an upload of the same bytes by anyone who has
//! them mends all that had it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use hyprstream_git2db::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::{collect, names::Repository, state::State};

const CHUNK_BYTES: usize = 1 << 18;
/// Between the end of one reading and the beginning of the next.
const REST: Duration = Duration::from_hours(24);
/// What stands before a repository's name in the position: more than any digit, since they are read
/// after all objects.
const BEHIND_OBJECTS: &str = "~";
/// After this time a repository in which something is missing is read once more.
const READ_AGAIN_AFTER: Duration = Duration::from_mins(10);
/// Objects of which it is remembered that they were read and good.
const MOST_KNOWN: usize = 4096;
/// A pack that still comes in has no good end yet.
const SETTLED: Duration = Duration::from_mins(2);

/// Reads everything again and again, never faster than `bytes_per_second`.
pub(crate) async fn forever(state: Arc<State>, bytes_per_second: u64) {
    if bytes_per_second == 0 {
        return;
    }
    let pass = move || {
        once(&state, bytes_per_second);
    };
    repeat(pass, REST).await;
}

/// Runs `pass` on a thread of its own, again and again, with `rest` after the end of each.
async fn repeat(pass: impl Fn() + Clone + Send + 'static, rest: Duration) {
    loop {
        let pass = pass.clone();
        // It is dropped with the thread's work, also where that panics.
        let (at_work, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("scrub".to_owned());
        let begun = thread.spawn(move || {
            let _at_work = at_work;
            pass();
        });
        match begun {
            Ok(_) => drop(ended.await),
            Err(error) => tracing::warn!(%error, "the scrub could not be started"),
        }
        tokio::time::sleep(rest).await;
    }
}

/// Reads everything once, from where the last reading was ended by the end of the process, if it
/// was. Returns how much was bad.
pub(crate) fn once(state: &State, bytes_per_second: u64) -> usize {
    let position = state.layout.scrub_position();
    let last = fs::read_to_string(&position).unwrap_or_default();
    let mut pace = Pace {
        began: Instant::now(),
        bytes: 0,
        bytes_per_second,
    };
    let mut bad = 0;
    let oids = state.layout.store().oids().unwrap_or_else(|error| {
        let error = crate::refusal::chain(&error);
        tracing::error!(
            error,
            "the store could not be listed: none of its objects is read"
        );
        Vec::new()
    });
    for oid in oids {
        if state.shutdown.is_cancelled() {
            return bad;
        }
        if oid.as_str() <= last.as_str() {
            continue;
        }
        let path = state.layout.store().path(&oid);
        match digest(&path, &mut |read| pace.wait(read)) {
            Ok(found) if found == oid => {}
            Ok(_) => {
                set_aside(state, &oid);
                bad += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(%oid, %error, "an object cannot be read");
                set_aside(state, &oid);
                bad += 1;
            }
        }
        note_position(&position, oid.as_str());
    }
    let mut repositories: Vec<_> = collect::repositories(&state.layout)
        .into_iter()
        .map(|repository| (format!("{BEHIND_OBJECTS}{repository}"), repository))
        .collect();
    repositories.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, repository) in repositories {
        if state.shutdown.is_cancelled() {
            return bad;
        }
        if name <= last {
            continue;
        }
        let path = state.layout.repository(&repository);
        if state.mirrors.is_busy(&repository) || collect::changed_within(&path, SETTLED) {
            continue;
        }
        pace.wait(pack_bytes(&path));
        if is_damaged(&path) {
            bad += 1;
            repository_is_bad(state, &repository);
        } else {
            let _ = fs::remove_file(note(&path));
        }
        note_position(&position, &name);
    }
    let _ = fs::remove_file(position);
    tracing::info!(bad, took = ?pace.began.elapsed(), "read everything that is kept");
    bad
}

/// Where a reading is. Without it, on a full disk say, the next one begins a little earlier.
fn note_position(position: &Path, text: &str) {
    if let Err(error) = fs::write(position, text) {
        tracing::debug!(%error, "the position of the scrub could not be noted");
    }
}

/// Reads an object of which something else was expected, in the background and once.
pub(crate) fn suspect(state: &Arc<State>, oid: &Digest) {
    let (checking, oid) = (Arc::clone(state), oid.clone());
    let reader = move || {
        is_good(&checking, &oid);
    };
    let thread = std::thread::Builder::new().name("suspect".to_owned());
    if let Err(error) = thread.spawn(reader) {
        tracing::warn!(%error, "an object could not be read again");
    }
}

/// Reads the git objects of a repository in which something was not found, in the background and
/// not too often.
pub(crate) fn suspect_repository(state: &Arc<State>, repository: &Repository) {
    {
        let mut read = state.read_again.lock();
        read.retain(|_, at| at.elapsed() < READ_AGAIN_AFTER);
        if read.len() >= MOST_KNOWN || read.contains_key(repository) {
            return;
        }
        read.insert(repository.clone(), Instant::now());
    }
    let (state, repository) = (Arc::clone(state), repository.clone());
    let thread = std::thread::Builder::new().name("suspect".to_owned());
    let read = thread.spawn(move || {
        // One at a time: git takes a processor for it.
        let _one = state.reading.lock();
        if is_damaged(&state.layout.repository(&repository)) {
            repository_is_bad(&state, &repository);
        }
    });
    if let Err(error) = read {
        tracing::warn!(%error, "a repository could not be read again");
    }
}

/// Whether an object has the bytes that it should have; if not, it is set aside. Reads it unless
/// the same file was found good before. One caller at a time.
pub(crate) fn is_good(state: &State, oid: &Digest) -> bool {
    let mut known = state.found_good.lock();
    let path = state.layout.store().path(oid);
    let Ok(found) = fs::metadata(&path) else {
        return false;
    };
    let identity = (found.ino(), found.len());
    if known.get(oid) == Some(&identity) {
        return true;
    }
    if digest(&path, &mut |_| {}).is_ok_and(|read| read == *oid) {
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(oid.clone(), identity);
        return true;
    }
    set_aside(state, oid);
    false
}

/// Takes an object whose bytes are bad out of the store and of all repositories.
///
/// Of many readers that find it bad one does it, and those that come late leave alone what has been
/// uploaded since.
pub(crate) fn set_aside(state: &State, oid: &Digest) {
    let layout = &state.layout;
    let _one = state.setting_aside.lock();
    let path = layout.store().path(oid);
    if digest(&path, &mut |_| {}).is_ok_and(|found| found == *oid) {
        return;
    }
    // Out of reach first, so that no repository takes it; into the quarantine last, which says that
    // no repository has it any more.
    let aside = layout.tmp().join(format!("bad-{oid}"));
    let moved = fs::rename(path, &aside);
    for repository in collect::repositories(layout) {
        let member = layout.member(&repository, oid);
        // A copy of its own, where the file system took no further link, may be good.
        if !member.exists() || digest(&member, &mut |_| {}).is_ok_and(|found| found == *oid) {
            continue;
        }
        tracing::error!(%repository, %oid, "an LFS object went bad on the disk");
        if let Repository::Pushed { .. } = repository {
            let lost = layout.lost(&repository, oid);
            if let Err(error) = lost
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::write(&lost, b""))
            {
                tracing::warn!(%error, ?lost, "a loss could not be noted");
            }
        }
        let _ = fs::remove_file(&member);
        // What is known of it is no longer so.
        state.mirrors.forget_finished(&repository);
    }
    let quarantine = layout.root().join("quarantine");
    let kept = moved
        .and_then(|()| fs::create_dir_all(&quarantine))
        .and_then(|()| fs::rename(aside, quarantine.join(oid.as_str())));
    match kept {
        Ok(()) => state.metrics.corrupt.with_label_values(&["object"]).inc(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::error!(%oid, %error, "a bad object could not be set aside"),
    }
}

/// Whether a pack of the repository has gone bad. Blocks while git reads all of them.
pub(crate) fn is_damaged(repository: &Path) -> bool {
    let Ok(entries) = fs::read_dir(repository.join("objects/pack")) else {
        return false;
    };
    let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    let indexes = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "idx"));
    indexes.into_iter().any(|index| {
        let verified = Command::new("git")
            .arg("verify-pack")
            .arg(index)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // A pack that git joined with others meanwhile is not bad.
        verified.is_ok_and(|status| status.code().is_some_and(|code| code != 0)) && index.exists()
    })
}

/// The note in a repository whose git objects went bad.
pub(crate) fn note(repository: &Path) -> PathBuf {
    repository.join("hyprstream/damaged")
}

/// Sets a mirror with bad packs aside, since its upstream has it all; notes it in a pushed one.
pub(crate) fn repository_is_bad(state: &State, repository: &Repository) {
    let path = state.layout.repository(repository);
    let done = match repository {
        Repository::Mirror(_) => {
            state.mirrors.forget(repository);
            set_mirror_aside(state, repository)
        }
        Repository::Pushed { .. } => {
            count_pack(state, repository);
            fs::write(note(&path), b"")
        }
    };
    if let Err(error) = done {
        tracing::error!(%repository, %error, "a damaged repository could not be set aside");
    }
}

/// Takes away a mirror with bad packs. Its objects stay in the store.
pub(crate) fn set_mirror_aside(state: &State, repository: &Repository) -> io::Result<()> {
    count_pack(state, repository);
    collect::take_away(state, repository).map(drop)
}

fn count_pack(state: &State, repository: &Repository) {
    state.metrics.corrupt.with_label_values(&["pack"]).inc();
    tracing::error!(%repository, "a pack went bad on the disk");
}

/// Hashes what is read, to the end.
fn digest(path: &Path, after: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                hasher.update(&buffer[..read]);
                after(read as u64);
            }
        }
    }
    Ok(hex::encode(hasher.finalize())
        .parse()
        .expect("it has 64 hexadecimal digits"))
}

fn pack_bytes(repository: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(repository.join("objects/pack")) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|found| found.len())
        .sum()
}

struct Pace {
    began: Instant,
    bytes: u64,
    bytes_per_second: u64,
}

impl Pace {
    fn wait(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second.max(1) as f64);
        let early = due.saturating_sub(self.began.elapsed());
        if early > Duration::from_millis(20) {
            std::thread::sleep(early);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_reading_never_runs_beside_another() {
        let (begun, running) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let pass = {
            let (begun, running) = (Arc::clone(&begun), Arc::clone(&running));
            move || {
                let beside = running.fetch_add(1, Ordering::SeqCst);
                assert_eq!(beside, 0, "another one is not done");
                std::thread::sleep(Duration::from_millis(20));
                running.fetch_sub(1, Ordering::SeqCst);
                begun.fetch_add(1, Ordering::SeqCst);
            }
        };
        let repeated = tokio::spawn(repeat(pass, Duration::from_millis(1)));
        let until = Instant::now() + Duration::from_secs(30);
        while begun.load(Ordering::SeqCst) < 3 {
            assert!(
                Instant::now() < until,
                "the readings do not come one after another"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        repeated.abort();
    }
}
