//! Syncing a file while it is still being written, so that little is left to be synced at its end.

use std::{fs::File, io, thread::JoinHandle};

/// Bytes that are written between two syncs.
const EVERY_BYTES: u64 = 64 << 20;

/// Syncs a file beside whoever writes it, who never waits for it.
#[derive(Default)]
pub(super) struct Behind {
    unsynced: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl Behind {
    /// Notes that bytes were written to the file of which `handle` gives another handle.
    ///
    /// # Errors
    /// Those of an earlier sync: the system tells a file's failure once, and the last sync would
    /// not hear of it any more.
    pub(super) fn wrote(
        &mut self,
        bytes: u64,
        handle: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<()> {
        self.unsynced += bytes;
        let is_running = self
            .running
            .as_ref()
            .is_some_and(|sync| !sync.is_finished());
        if self.unsynced < EVERY_BYTES || is_running {
            return Ok(());
        }
        self.end()?;
        let file = handle()?;
        self.unsynced = 0;
        let sync = std::thread::Builder::new().name("sync".to_owned());
        self.running = Some(sync.spawn(move || file.sync_data())?);
        Ok(())
    }

    /// Waits for the sync that is under way.
    ///
    /// # Errors
    /// Those of the sync.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let died = |_| io::Error::other("the thread that syncs has died");
        running.join().map_err(died)?
    }
}
