//! The key that a Model's workers ask for.
//!
//! Workers answer only who shows their key. Each Model has its own: the operator derives it from
//! a secret of the release and leaves it in a Secret beside the Model, the gateway derives it
//! from the same secret, so that it needs no permission to read Secrets.

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
pub struct WorkerKeys(Hmac<Sha256>);

/// A master secret is too short to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the workers' master key has {got} bytes: it needs {MIN_MASTER_BYTES} or more")]
pub struct WeakMaster {
    /// How many bytes it has, white space at its ends left out.
    pub got: usize,
}

impl WorkerKeys {
    /// Keys derived from a master secret; white space at its ends does not count.
    ///
    /// # Errors
    /// Below [`MIN_MASTER_BYTES`].
    pub fn new(master: &str) -> Result<Self, WeakMaster> {
        let master = master.trim().as_bytes();
        if master.len() < MIN_MASTER_BYTES {
            return Err(WeakMaster { got: master.len() });
        }
        let hmac = Hmac::new_from_slice(master).expect("HMAC takes keys of any length");
        Ok(Self(hmac))
    }

    /// The key of a Model's workers: 43 characters that fit into a header.
    pub fn of(&self, namespace: &str, name: &str) -> String {
        let mut hmac = self.0.clone();
        // Neither part can hold a slash.
        for part in ["hyprstream worker v1", "/", namespace, "/", name] {
            hmac.update(part.as_bytes());
        }
        URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes())
    }
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
