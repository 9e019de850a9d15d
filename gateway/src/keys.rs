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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::{Config, Metrics, table::Table};

    #[tokio::test]
    async fn only_a_file_that_changed_and_can_be_used_brings_new_keys() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let tables = watch::channel(Arc::new(Table::default())).1;
        let gateway = Gateway::new(Config::default(), tables, metrics);
        let path = std::env::temp_dir().join(format!("master-key-{}", std::process::id()));
        assert!(matches!(
            KeyFile::open(&path, &gateway).await,
            Err(KeyFileError::Read { .. })
        ));
        std::fs::write(&path, "a".repeat(32)).unwrap();
        let mut file = KeyFile::open(&path, &gateway).await.unwrap();
        assert!(!file.read(&gateway).await.unwrap(), "it is the same");
        std::fs::write(&path, "b".repeat(32)).unwrap();
        assert!(file.read(&gateway).await.unwrap());
        std::fs::write(&path, "weak").unwrap();
        for _ in 0..2 {
            let read = file.read(&gateway).await;
            assert!(matches!(read, Err(KeyFileError::Weak { .. })), "every time");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
