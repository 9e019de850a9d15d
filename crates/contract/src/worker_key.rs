//! The key that a Model's workers ask for.
//!
//! Workers answer only who shows their key. Each Model has its own: the operator derives it from
//! a secret of the release and leaves it in a Secret beside the Model, the gateway derives it
//! from the same secret, so that it needs no permission to read Secrets.
//!
//! The secret is one line or more. Workers accept the keys of all lines and the gateway shows that
//! of the last one, so that the secret can be changed while requests come: put the new one before
//! the old one, wait until the workers are replaced, and take the old one away.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Key of the release's Secret, and name of the file that it becomes, with the master secret.
pub const MASTER_FILE: &str = "worker-master-key";
/// Key of the Secret beside a Model, and name of the file that it becomes in a worker's pod.
pub const FILE: &str = "key";

/// Shortest master secret that is accepted, in bytes.
pub const MIN_MASTER_BYTES: usize = 32;

/// Derives the keys of all Models.
#[derive(Clone)]
pub struct WorkerKeys {
    /// The one whose keys are shown.
    last: Hmac<Sha256>,
    others: Vec<Hmac<Sha256>>,
}

/// A master secret is too short to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the workers' master key has {got} bytes: it needs {MIN_MASTER_BYTES} or more")]
pub struct WeakMaster {
    /// How many bytes it has, white space at its ends left out.
    pub got: usize,
}

impl WorkerKeys {
    /// Keys derived from a master secret, one a line; white space at the ends of lines and lines of
    /// nothing else do not count.
    ///
    /// # Errors
    /// There is none, or one is below [`MIN_MASTER_BYTES`].
    pub fn new(master: &str) -> Result<Self, WeakMaster> {
        let lines = master.lines().map(str::trim).filter(|l| !l.is_empty());
        let mut all = lines.map(hmac).collect::<Result<Vec<_>, _>>()?;
        let last = all.pop().ok_or(WeakMaster { got: 0 })?;
        Ok(Self { last, others: all })
    }

    /// The key to show a Model's workers: 43 characters that fit into a header.
    pub fn of(&self, namespace: &str, name: &str) -> String {
        derive(&self.last, namespace, name)
    }

    /// The keys that a Model's workers accept.
    pub fn accepted(&self, namespace: &str, name: &str) -> Vec<String> {
        self.others
            .iter()
            .chain([&self.last])
            .map(|master| derive(master, namespace, name))
            .collect()
    }
}

fn hmac(master: &str) -> Result<Hmac<Sha256>, WeakMaster> {
    if master.len() < MIN_MASTER_BYTES {
        return Err(WeakMaster { got: master.len() });
    }
    Ok(Hmac::new_from_slice(master.as_bytes()).expect("HMAC takes keys of any length"))
}

fn derive(master: &Hmac<Sha256>, namespace: &str, name: &str) -> String {
    let mut hmac = master.clone();
    // Neither part can hold a slash.
    for part in ["hyprstream worker v1", "/", namespace, "/", name] {
        hmac.update(part.as_bytes());
    }
    URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes())
}

impl std::fmt::Debug for WorkerKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkerKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &str = "0123456789abcdef0123456789abcdef\n";

    #[test]
    fn each_model_has_its_own_key_and_the_same_every_time() {
        let keys = WorkerKeys::new(MASTER).unwrap();
        let key = keys.of("team", "qwen");
        assert_eq!(
            key,
            WorkerKeys::new(MASTER.trim()).unwrap().of("team", "qwen")
        );
        assert_eq!(key.len(), 43);
        for (namespace, name) in [("team", "qwen2"), ("tea", "mqwen"), ("other", "qwen")] {
            assert_ne!(key, keys.of(namespace, name));
        }
        let other = WorkerKeys::new("another secret of at least 32 bytes").unwrap();
        assert_ne!(key, other.of("team", "qwen"));
    }

    /// At each step of a change, what is shown is accepted by the workers of this step and of the
    /// one before.
    #[test]
    fn a_master_is_changed_by_way_of_both() {
        let new = "another secret of at least 32 bytes";
        let both = format!("{new}\n\n {MASTER}");
        let steps = [MASTER, &both, new].map(|text| WorkerKeys::new(text).unwrap());
        for pair in steps.windows(2) {
            let shown = pair[1].of("team", "qwen");
            for workers in pair {
                assert!(workers.accepted("team", "qwen").contains(&shown));
            }
        }
        assert_eq!(steps[1].accepted("team", "qwen").len(), 2);
        assert_eq!(
            WorkerKeys::new(&format!("{new}\nshort")).unwrap_err(),
            WeakMaster { got: 5 }
        );
        assert_eq!(WorkerKeys::new(" \n").unwrap_err(), WeakMaster { got: 0 });
    }

    #[test]
    fn a_short_master_is_refused_and_none_is_shown() {
        assert_eq!(
            WorkerKeys::new(" short ").unwrap_err(),
            WeakMaster { got: 5 }
        );
        let shown = format!("{:?}", WorkerKeys::new(MASTER).unwrap());
        assert_eq!(shown, "WorkerKeys(..)");
    }
}
