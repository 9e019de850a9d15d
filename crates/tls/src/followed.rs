//! Something made of files that may change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::TlsError;

/// How long what was read is used before the files are looked at again. The kubelet itself takes
/// a minute or more to change them.
const PAUSE: Duration = Duration::from_secs(5);

/// What is made of the contents of the files, in their order.
type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, TlsError> + Send + Sync;

/// A value that is made of files, and made anew when they change.
///
/// The files are looked at by who asks for the value, not by a task: so it works in every kind of
/// program, and nothing happens where nothing is asked for. They are small and lie in memory.
pub(crate) struct Followed<T> {
    paths: Vec<PathBuf>,
    make: Box<Make<T>>,
    pause: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    contents: Vec<Vec<u8>>,
    looked: Instant,
    /// What was wrong at the last look, so that it is said once.
    complaint: Option<String>,
}

impl<T> Followed<T> {
    /// Reads the files for the first time.
    pub(crate) fn open(
        paths: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let make: Box<Make<T>> = Box::new(make);
        // Between two files the kubelet may change both; the second look finds what belongs together.
        let (value, contents) = fresh(&paths, &*make).or_else(|_| fresh(&paths, &*make))?;
        Ok(Self {
            paths,
            make,
            pause: PAUSE,
            state: Mutex::new(State {
                value: Arc::new(value),
                contents,
                looked: Instant::now(),
                complaint: None,
            }),
        })
    }

    /// Looks at the files every `pause` at most.
    #[cfg(test)]
    pub(crate) fn looking_every(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// The value of now. Files that cannot be used leave the value before, and a line in the log.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut state = self.state.lock();
        if state.looked.elapsed() < self.pause {
            return Arc::clone(&state.value);
        }
        state.looked = Instant::now();
        let made = read(&self.paths).and_then(|contents| {
            if contents == state.contents {
                return Ok(None);
            }
            Ok(Some(((self.make)(&contents)?, contents)))
        });
        match made {
            Ok(None) => state.complaint = None,
            Ok(Some((value, contents))) => {
                tracing::info!(path = ?self.first(), "certificates have changed");
                state.value = Arc::new(value);
                state.contents = contents;
                state.complaint = None;
            }
            Err(error) => {
                let complaint = chain(&error);
                if state.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(
                        path = ?self.first(),
                        error = complaint,
                        "changed certificates cannot be used: those of before stay"
                    );
                    state.complaint = Some(complaint);
                }
            }
        }
        Arc::clone(&state.value)
    }

    fn first(&self) -> Option<&Path> {
        self.paths.first().map(PathBuf::as_path)
    }
}

fn fresh<T>(paths: &[PathBuf], make: &Make<T>) -> Result<(T, Vec<Vec<u8>>), TlsError> {
    let contents = read(paths)?;
    Ok((make(&contents)?, contents))
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, TlsError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| TlsError::Read {
            path: path.clone(),
            source,
        })
    };
    paths.iter().map(read).collect()
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
