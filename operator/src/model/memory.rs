//! What is remembered of Models between reconciliations.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// How often in a row reconciliations of Models failed, by UID. It is not needed to converge.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<String, u32>>);

impl Memory {
    pub(super) fn failures(&self, uid: &str, failed: bool) -> u32 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed {
            let failures = all.entry(uid.to_owned()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        } else {
            all.remove(uid);
            0
        }
    }

    /// Forgets Models that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|uid, _| keep(uid));
    }
}
