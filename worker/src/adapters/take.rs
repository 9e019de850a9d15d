//! Adapters for requests: those in memory at once, others from their files.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::FutureExt;
use hyprstream_models::adapter::{AdapterDigest, AdapterFiles};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    TakeError, Taken, Wanted,
    entry::{Coming, Residence, Resident},
    packer::{PackError, aside, stamps},
    room::{Amount, Counted, Ledger, Room},
    state::Key,
    store::Store,
};

/// What a [`Taken`] keeps until it is dropped.
#[derive(Debug)]
pub(super) struct Use {
    /// There until it is dropped.
    resident: Option<Arc<Resident>>,
    ledger: Arc<Ledger>,
    _counted: Counted,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.resident = None;
        // It may make way for others now.
        self.ledger.freed.notify_waiters();
    }
}

/// How often who waits for room looks for it unasked: an adapter that came back for somebody who
/// has gone since tells nobody that it may make way.
const LOOK: Duration = Duration::from_millis(50);

/// An adapter of a request that is there, or will be.
struct Begun {
    name: String,
    digest: AdapterDigest,
    scale: f32,
    from: Source,
}

enum Source {
    Here(Arc<Resident>),
    Coming(Coming),
}

/// An adapter that is to be brought back.
struct Return {
    key: Key,
    id: u64,
    files: AdapterFiles,
    digest: AdapterDigest,
    room: Room,
    tell: oneshot::Sender<Result<Arc<Resident>, String>>,
}

pub(super) async fn take(store: &Arc<Store>, wanted: &[Wanted]) -> Result<Vec<Taken>, TakeError> {
    let deadline = Instant::now() + store.options.timing.patience;
    let mut waits = None;
    let begun = loop {
        let freed = store.ledger.freed.notified();
        tokio::pin!(freed);
        // What is given back from here on wakes it.
        freed.as_mut().enable();
        if let Some(begun) = begin(store, wanted)? {
            break begun;
        }
        waits.get_or_insert_with(|| count_waiting(store, wanted.iter().map(|w| &*w.name)));
        let look = (Instant::now() + LOOK).min(deadline);
        if timeout_at(look, freed).await.is_err() && look == deadline {
            return Err(TakeError::Lost {
                name: wanted.first().map(|w| w.name.clone()).unwrap_or_default(),
                why: "the memory for adapters is in use by other requests: try again later, or \
                      give the worker more (--adapter-memory-bytes, --max-adapters)"
                    .to_owned(),
            });
        }
    };
    drop(waits);
    let mut taken = Vec::with_capacity(begun.len());
    for begun in begun {
        taken.push(finish(store, begun).await?);
    }
    Ok(taken)
}

fn count_waiting<'a>(store: &Store, names: impl Iterator<Item = &'a str>) -> Vec<Counted> {
    names.map(|name| store.waiting.count(name)).collect()
}

/// Takes what is there, and begins to bring the rest back. All or nothing: who waits for room
/// keeps nobody else's. `None` as long as there is no room.
fn begin(store: &Arc<Store>, wanted: &[Wanted]) -> Result<Option<Vec<Begun>>, TakeError> {
    let mut state = store.state();
    let missing: Vec<String> = wanted
        .iter()
        .filter(|wanted| state.serving(&wanted.name).is_none())
        .map(|wanted| wanted.name.clone())
        .collect();
    if !missing.is_empty() {
        let known = state.served_names();
        return Err(TakeError::Missing {
            names: missing,
            known,
        });
    }
    let (mut stack, mut ids, mut absent) = (Vec::new(), BTreeSet::new(), Vec::new());
    let used = state.tick();
    for wanted in wanted {
        let Some((key, record)) = state.serving(&wanted.name) else {
            continue;
        };
        if ids.insert(record.id) {
            stack.push(record.bytes);
            if matches!(record.residence, Residence::Files) {
                absent.push((key.clone(), record.bytes));
            }
        }
    }
    if !absent.is_empty() {
        let (needed, whole) = (Amount::of(stack), store.ledger.whole());
        if !needed.fits(whole) {
            return Err(TakeError::TooLarge {
                adapters: needed.adapters,
                bytes: needed.bytes,
                max_adapters: whole.adapters,
                max_bytes: whole.bytes,
            });
        }
        let bytes: Vec<u64> = absent.iter().map(|(_, bytes)| *bytes).collect();
        let rooms = state.make_room(&store.ledger, &bytes, &ids, Amount::default());
        let Some(rooms) = rooms else { return Ok(None) };
        for ((key, _), room) in absent.into_iter().zip(rooms) {
            let Some((key, record)) = state.serving(&key.0) else {
                continue;
            };
            let (tell, hears) = oneshot::channel();
            record.residence = Residence::Coming(hears.shared());
            let back = Return {
                key: key.clone(),
                id: record.id,
                files: record.files.clone(),
                digest: record.digest,
                room,
                tell,
            };
            // Whoever asked for it may go: others may wait for it by then.
            tokio::spawn(bring_back(Arc::clone(store), back));
        }
    }
    let mut begun = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let Some((_, record)) = state.serving(&wanted.name) else {
            continue;
        };
        record.used = used;
        let from = match &record.residence {
            Residence::Here(resident) => Source::Here(Arc::clone(resident)),
            Residence::Coming(coming) => Source::Coming(coming.clone()),
            Residence::Files => continue,
        };
        begun.push(Begun {
            name: wanted.name.clone(),
            digest: record.digest,
            scale: wanted.scale.unwrap_or(record.scale),
            from,
        });
    }
    Ok(Some(begun))
}

async fn finish(store: &Store, begun: Begun) -> Result<Taken, TakeError> {
    let Begun {
        name,
        digest,
        scale,
        from,
    } = begun;
    let resident = match from {
        Source::Here(resident) => resident,
        Source::Coming(coming) => {
            let _waits = store.waiting.count(&name);
            let came = coming.await;
            let came = came.unwrap_or_else(|_| Err("it was given up".to_owned()));
            came.map_err(|why| TakeError::Lost {
                name: name.clone(),
                why,
            })?
        }
    };
    Ok(Taken {
        adapter: resident.adapter.clone(),
        digest,
        scale,
        held: Arc::new(Use {
            resident: Some(resident),
            ledger: Arc::clone(&store.ledger),
            _counted: store.running.count(&name),
        }),
        name,
    })
}

async fn bring_back(store: Arc<Store>, back: Return) {
    let start = Instant::now();
    let (name, id) = (back.key.0.clone(), back.id);
    let came = read_again(&store, back.files.clone(), &back.digest, back.room).await;
    let told = match came {
        Ok(resident) => {
            store.loaded(&name, &back.digest, start);
            let here = Residence::Here(Arc::clone(&resident));
            store.change(|state| {
                if let Some(record) = state.record_of(&back.key, id) {
                    record.residence = here;
                }
            });
            Ok(resident)
        }
        Err(error) => {
            tracing::warn!(adapter = name, reason = error.reason, %error, "adapter lost");
            let files = back.files;
            let now = aside(move || stamps(&files)).await.unwrap_or_default();
            store.change(|state| {
                if let Some(record) = state.record_of(&back.key, id) {
                    record.residence = Residence::Files;
                    if error.is_final {
                        state.lose(&back.key, &error, now, &store.options.timing);
                    }
                }
            });
            Err(error.message)
        }
    };
    // Those who waited may have gone.
    let _ = back.tell.send(told);
}

async fn read_again(
    store: &Store,
    files: AdapterFiles,
    digest: &AdapterDigest,
    room: Room,
) -> Result<Arc<Resident>, PackError> {
    let unpacked = store.read(files).await?;
    let found = unpacked.packed.digest;
    if found != *digest {
        let message = format!("its files have the digest {found} now, and {digest} was loaded");
        return Err(PackError::new("FilesChanged", message, true));
    }
    store.attach(unpacked, room).await
}
