//! One call at a time per volume.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

use crate::error::Error;

/// The volumes that are being worked on.
#[derive(Clone, Default)]
pub struct Locks(Arc<Mutex<HashSet<String>>>);

/// The right to work on one volume.
pub struct Guard {
    handle: String,
    locks: Locks,
}

impl Locks {
    /// The right to work on a volume.
    ///
    /// # Errors
    /// [`Error::Busy`] if another has it. The interface asks for that answer rather than a queue.
    pub fn take(&self, handle: &str) -> Result<Guard, Error> {
        if self.0.lock().insert(handle.to_owned()) {
            Ok(Guard {
                handle: handle.to_owned(),
                locks: self.clone(),
            })
        } else {
            Err(Error::Busy(handle.to_owned()))
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.locks.0.lock().remove(&self.handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_worker_at_a_time() {
        let locks = Locks::default();
        let guard = locks.take("a").unwrap();
        assert!(matches!(locks.take("a"), Err(Error::Busy(_))));
        locks.take("b").unwrap();
        drop(guard);
        locks.take("a").unwrap();
    }
}
