//! What is remembered of Models between reconciliations.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use hyprstream_api::ModelStatus;

/// What is remembered of Models between reconciliations. Nothing in it is needed to converge.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<String, Remembered>>);

/// What is remembered of one Model.
#[derive(Default)]
pub(super) struct Remembered {
    /// Failed reconciliations in a row.
    pub(super) failures: u32,
    /// The status last written, and the version of the object with it.
    pub(super) written: Option<(u64, ModelStatus)>,
    /// The pod whose mount was last asked after, when, and the answer.
    pub(super) mount: Option<(String, Instant, Option<String>)>,
}

impl Memory {
    pub(super) fn with<T>(&self, uid: &str, look: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(all.entry(uid.to_owned()).or_default())
    }

    /// Forgets Models that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|uid, _| keep(uid));
    }
}
