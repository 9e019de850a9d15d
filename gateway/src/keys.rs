//! The master secret from which the keys of the workers are derived.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyprstream_contract::{WorkerKeys, worker_key::WeakMaster};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::Gateway;

/// How often the file is looked at. The kubelet takes a minute to bring a changed Secret.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The file with the master secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("read the workers' master key from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds no secret.
    #[error("use the workers' master key in {}", path.display())]
    Weak {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WeakMaster,
    },
}

/// The file with the master secret, as it was last read.
pub struct KeyFile {
    path: PathBuf,
    text: String,
}

impl KeyFile {
    /// Reads the file and gives the gateway its keys.
    ///
    /// # Errors
    /// It cannot be read, or holds no secret. The gateway keeps the keys that it had.
    pub async fn open(path: &Path, gateway: &Gateway) -> Result<Self, KeyFileError> {
        let mut file = Self {
            path: path.to_owned(),
            text: String::new(),
        };
        file.read(gateway).await?;
        Ok(file)
    }

    /// Gives the gateway the keys anew whenever the file has changed. A file that cannot be used
    /// is reported, and the keys stay what they were.
    pub async fn follow(mut self, gateway: Gateway) {
        loop {
            sleep(LOOK_EVERY).await;
            match self.read(&gateway).await {
                Ok(true) => info!("the workers' master key has changed"),
                Ok(false) => {}
                Err(error) => warn!(
                    error = &error as &dyn std::error::Error,
                    "the workers' keys stay what they were"
                ),
            }
        }
    }

    async fn read(&mut self, gateway: &Gateway) -> Result<bool, KeyFileError> {
        let path = || self.path.clone();
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|source| KeyFileError::Read {
                path: path(),
                source,
            })?;
        if text == self.text {
            return Ok(false);
        }
        let keys = WorkerKeys::new(&text).map_err(|source| KeyFileError::Weak {
            path: path(),
            source,
        })?;
        gateway.set_worker_keys(keys);
        self.text = text;
        Ok(true)
    }
}
