//! What nodes may read: for each volume a random word in a Secret, known to the registry by its hash
//! (`docs/adr/0004-what-a-node-may-read.md`).
//!
//! The Secret is the truth: it belongs to the volume's claim and goes with it, and what the registry
//! keeps follows from it. Order on the way up: volume, claim, Secret, grant, and only then pods; on
//! the way down: claim and Secret, volume, grant. A kill between any two of them is mended by the
//! next reconciliation of the owner or by the next sweep, whichever comes first.
//!
//! # Guarantees
//! - A Secret that somebody else made is never touched.
//! - A word is written into a Secret only after the registry knows it, if it takes the place of one
//!   that is in use.
//! - A registry that does not answer keeps nobody from making volumes and pods.

mod secret;
pub mod sweep;

use std::{
    collections::{BTreeSet, HashMap},
    io::Read as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyprstream_contract::{
    grants::{Grant, Word},
    label,
};
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use tokio::{
    sync::RwLock,
    time::{Instant, timeout},
};

pub use self::secret::{Wanted, secret_name};
use self::{
    secret::{Step, Words, change, changed, secret, step},
    sweep::{Known, plan},
};
use crate::{
    apply::{ApplyError, request_error},
    chain,
    metrics::Metrics,
    registry::{Registry, RegistryError},
};

/// How long a reconciliation waits for the registry.
const PATIENCE: Duration = Duration::from_secs(2);
/// A registry that did not answer is not told anything again on behalf of owners for so long.
const AWAY: Duration = Duration::from_secs(5);
/// A Secret is not looked at again sooner on behalf of its owner.
const LOOK: Duration = Duration::from_mins(1);
/// A Secret is looked at again by the sweep after so long.
const LOOK_AGAIN: Duration = Duration::from_mins(10);
/// A volume that was told of so recently may not be seen yet.
const LAG: Duration = Duration::from_secs(20);

/// Keeps words and grants what they should be.
pub struct Grants {
    client: Client,
    registry: Registry,
    metrics: Metrics,
    seen: Mutex<HashMap<String, Seen>>,
    /// When the registry last did not take what it was told, if that was the last time.
    away: Mutex<Option<Instant>>,
    behind: AtomicBool,
    /// Held for reading by who tells the registry of a grant, for writing by who takes one away.
    telling: RwLock<()>,
}

struct Seen {
    words: Words,
    /// UID of the claim that the Secret belongs to.
    claim: Option<String>,
    looked: Instant,
    told: Option<Instant>,
}

/// What the sweep sees of the cluster.
pub trait Cluster: Sync {
    /// All volumes of ours.
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;

    /// The claim of that name, if its namespace is looked after.
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
}

impl Grants {
    /// Nothing is known yet.
    pub fn new(client: Client, registry: Registry, metrics: Metrics) -> Self {
        Self {
            client,
            registry,
            metrics,
            seen: Mutex::default(),
            away: Mutex::default(),
            behind: AtomicBool::default(),
            telling: RwLock::default(),
        }
    }

    /// Makes the Secret and the grant of a volume what they should be, for its claim. Asked again
    /// within a minute it does nothing.
    ///
    /// # Errors
    /// The Secret cannot be made, see [`ApplyError`]. That the registry does not answer is none: the
    /// sweep tells it.
    pub async fn ensure(&self, wanted: &Wanted, claim: &ObjectMeta) -> Result<(), ApplyError> {
        let known = {
            let seen = self.seen();
            let is_fresh = |seen: &&Seen| seen.looked.elapsed() < LOOK && seen.claim == claim.uid;
            match seen.get(&wanted.handle).filter(is_fresh) {
                Some(seen) if seen.told.is_some() => return Ok(()),
                Some(seen) => Some(seen.words.grant(&wanted.opens, Timestamp::now())),
                None => None,
            }
        };
        let grant = match known {
            Some(grant) => grant,
            None => self.look(wanted, claim).await?,
        };
        // While it is away each owner in turn would wait for it again.
        if !self.is_away() {
            let Err(error) = self.tell(wanted, &grant).await else {
                return Ok(());
            };
            tracing::warn!(
                error = chain(&error),
                volume = wanted.handle,
                "the registry is told later what the volume opens"
            );
        }
        self.behind.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the registry has not been told of a volume since the last sweep began.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Compares the registry with the cluster, and puts right what is not so. Returns whether all of
    /// it is right by now.
    pub async fn sweep(&self, cluster: &impl Cluster) -> bool {
        self.behind.store(false, Ordering::Relaxed);
        // First: what comes after it is not missed, and what goes after it is found next time.
        let kept = match timeout(PATIENCE, self.registry.grants()).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::debug!(error = chain(&error), "grants are swept later");
                return false;
            }
            Err(_) => return false,
        };
        let volumes = cluster.volumes();
        let handles: BTreeSet<String> = volumes.iter().filter_map(|v| handle(v)).collect();
        let wanted = volumes.iter().filter_map(|volume| Wanted::of(volume));
        let plan = plan(&kept, &handles, self.known(wanted, cluster));
        self.seen()
            .retain(|handle, seen| handles.contains(handle) || seen.is_recent());
        let mut is_right = true;
        for handle in plan.superfluous {
            is_right &= self.take_away(&handle).await;
        }
        for wanted in plan.due {
            let Some(claim) = cluster.claim(&wanted.namespace, &wanted.claim) else {
                continue;
            };
            if claim.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match self.settle(&wanted, &claim.metadata).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ RegistryError::Refused(_))) => {
                    is_right = false;
                    tracing::warn!(
                        error = chain(&error),
                        volume = wanted.handle,
                        "the registry takes no grant for a volume"
                    );
                }
                Ok(Err(error)) => {
                    // Nor will it hear of the others.
                    tracing::warn!(error = chain(&error), "the registry takes no grants now");
                    return false;
                }
                Err(error) => {
                    is_right = false;
                    tracing::warn!(
                        error = chain(&error),
                        volume = wanted.handle,
                        "a volume has no word yet"
                    );
                }
            }
        }
        is_right
    }

    fn known(&self, wanted: impl Iterator<Item = Wanted>, cluster: &impl Cluster) -> Vec<Known> {
        let (seen, now) = (self.seen(), Timestamp::now());
        let known = |wanted: Wanted| {
            let seen = seen.get(&wanted.handle);
            let claim = cluster.claim(&wanted.namespace, &wanted.claim);
            let claim = claim.and_then(|claim| claim.metadata.uid.clone());
            let is_fresh = |seen: &&Seen| {
                // A claim that was made anew has another Secret.
                seen.looked.elapsed() < LOOK_AGAIN && seen.claim == claim
            };
            let seen = seen.filter(is_fresh);
            let revision = seen.map(|seen| seen.words.grant(&wanted.opens, now).revision());
            Known { wanted, revision }
        };
        wanted.map(known).collect()
    }

    /// Takes the grant of a volume away that is gone. Returns whether it went.
    async fn take_away(&self, handle: &str) -> bool {
        let _alone = self.telling.write().await;
        if self.seen().get(handle).is_some_and(Seen::is_recent) {
            // Its volume was made just now, and is not seen yet.
            return false;
        }
        match self.registry.delete_grant(handle).await {
            Ok(()) => {
                tracing::info!(
                    volume = handle,
                    "a volume is gone, and opens nothing any more"
                );
                self.seen().remove(handle);
                true
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "a grant is taken away later");
                false
            }
        }
    }

    async fn settle(
        &self,
        wanted: &Wanted,
        claim: &ObjectMeta,
    ) -> Result<Result<(), RegistryError>, ApplyError> {
        let grant = self.look(wanted, claim).await?;
        Ok(self.tell(wanted, &grant).await)
    }

    /// Makes the Secret what it should be, and remembers it. Returns what the registry should know.
    async fn look(&self, wanted: &Wanted, claim: &ObjectMeta) -> Result<Grant, ApplyError> {
        let words = self.words(wanted, claim).await?;
        let grant = words.grant(&wanted.opens, Timestamp::now());
        self.note(wanted, claim, words);
        Ok(grant)
    }

    /// The words of the volume's Secret, which is made if it is not there.
    async fn words(&self, wanted: &Wanted, claim: &ObjectMeta) -> Result<Words, ApplyError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &wanted.namespace);
        let failed = |verb, source| request_error(verb, "Secret", &wanted.secret, source);
        let found = api
            .get_opt(&wanted.secret)
            .await
            .map_err(|e| failed("get", e))?;
        if let Some(found) = &found {
            check_owner(claim, found)?;
        }
        let now = Timestamp::now();
        let version = found.as_ref().and_then(ResourceExt::resource_version);
        match step(found.as_ref(), now) {
            Step::Keep(words) => Ok(words),
            Step::Make => {
                let word = random().map_err(|e| failed("make", e))?;
                let params = PostParams {
                    field_manager: Some(label::MANAGER.to_owned()),
                    ..PostParams::default()
                };
                self.count();
                let made = secret(wanted, claim, &word);
                let made = api.create(&params, &made).await;
                made.map_err(|e| failed("create", e))?;
                Ok(changed(&word, None, now))
            }
            Step::Mend => {
                tracing::warn!(
                    volume = wanted.handle,
                    secret = wanted.secret,
                    "somebody put something into a Secret that is no word; it gets another"
                );
                let word = random().map_err(|e| failed("make", e))?;
                self.patch(&api, wanted, change(version.as_deref(), &word, None, now))
                    .await?;
                Ok(changed(&word, None, now))
            }
            Step::Change(before) => {
                let word = random().map_err(|e| failed("make", e))?;
                let after = changed(&word, Some(&before), now);
                // Both hold before anybody is shown the new one.
                let both = after.grant(&wanted.opens, now);
                if let Err(error) = self.tell(wanted, &both).await {
                    tracing::debug!(error = chain(&error), "a word is changed later");
                    return Ok(before);
                }
                let change = change(version.as_deref(), &word, Some(&before), now);
                self.patch(&api, wanted, change).await?;
                tracing::info!(volume = wanted.handle, "the word of a volume is another");
                Ok(after)
            }
        }
    }

    async fn patch(
        &self,
        api: &Api<Secret>,
        wanted: &Wanted,
        change: serde_json::Value,
    ) -> Result<(), ApplyError> {
        self.count();
        let params = PatchParams::default();
        api.patch(&wanted.secret, &params, &Patch::Merge(change))
            .await
            .map(drop)
            .map_err(|source| request_error("patch", "Secret", &wanted.secret, source))
    }

    async fn tell(&self, wanted: &Wanted, grant: &Grant) -> Result<(), RegistryError> {
        let _with_others = self.telling.read().await;
        let told = self.registry.put_grant(&wanted.handle, grant).await;
        let is_away = !matches!(told, Ok(()) | Err(RegistryError::Refused(_)));
        *self.away() = is_away.then(Instant::now);
        told?;
        if let Some(seen) = self.seen().get_mut(&wanted.handle) {
            seen.told = Some(Instant::now());
        }
        Ok(())
    }

    fn note(&self, wanted: &Wanted, claim: &ObjectMeta, words: Words) {
        let seen = Seen {
            words,
            claim: claim.uid.clone(),
            looked: Instant::now(),
            told: None,
        };
        self.seen().insert(wanted.handle.clone(), seen);
    }

    fn is_away(&self) -> bool {
        self.away().is_some_and(|since| since.elapsed() < AWAY)
    }

    fn away(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        self.metrics.writes.with_label_values(&["Secret"]).inc();
    }
}

impl Seen {
    fn is_recent(&self) -> bool {
        self.told.is_some_and(|told| told.elapsed() < LAG)
    }
}

/// The handle of a volume of ours.
pub fn handle(volume: &PersistentVolume) -> Option<String> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some(csi.volume_handle.clone())
}

/// Whether that Secret is the claim's.
fn check_owner(claim: &ObjectMeta, found: &Secret) -> Result<(), ApplyError> {
    let name = found.name_any();
    if found.metadata.deletion_timestamp.is_some() {
        return Err(ApplyError::leaving("Secret", &name));
    }
    let owners = found.owner_references();
    if owners
        .iter()
        .any(|owner| Some(&owner.uid) == claim.uid.as_ref())
    {
        return Ok(());
    }
    // Of a claim of the same name that was deleted: the garbage collector is about to take it.
    let is_namesake = owners.iter().any(|owner| {
        owner.kind == "PersistentVolumeClaim" && Some(&owner.name) == claim.name.as_ref()
    });
    if is_namesake {
        Err(ApplyError::leaving("Secret", &name))
    } else {
        Err(ApplyError::NameConflict {
            kind: "Secret".to_owned(),
            name,
        })
    }
}

/// A word that nobody guesses.
fn random() -> Result<Word, kube::Error> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| kube::Error::Service(Box::new(error)))?;
    Ok(Word::from_bytes(bytes))
}
