//! Steady questions while something happens to the cluster.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::Chat;

/// Clients that ask one question after the other until told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<LoadReport>>,
    clients: Vec<JoinHandle<()>>,
}

/// What the clients met.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Whole answers by commit.
    pub answers: BTreeMap<String, usize>,
    /// Everything else.
    pub failures: Vec<String>,
}

/// Most questions of one client, so that a test that hangs does not load the machine for ever. A tiny
/// model answers a hundred a second, and a test goes on for minutes: with 5,000 there was no load left
/// when the commit came for which it waited.
const MAX_QUESTIONS: usize = 100_000;

impl Load {
    /// Starts `clients` clients that ask `question`, every second time without streaming.
    pub fn start(clients: usize, question: &Chat) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(LoadReport::default()));
        let clients = (0..clients)
            .map(|client| {
                let (stop, report, question) = (stop.clone(), report.clone(), question.clone());
                std::thread::spawn(move || {
                    for turn in 0..MAX_QUESTIONS {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let mut chat = question.clone();
                        chat.prompt = format!("{client} {turn} {}", chat.prompt);
                        chat.stream = turn % 2 == 0;
                        let outcome = chat.ask().and_then(|answer| {
                            if answer.completion_tokens == u64::from(chat.tokens) {
                                Ok(answer.commit)
                            } else {
                                bail!("{} of {} tokens", answer.completion_tokens, chat.tokens)
                            }
                        });
                        let mut report = report.lock().expect("no client panics with the lock");
                        match outcome {
                            Ok(commit) => *report.answers.entry(commit).or_default() += 1,
                            Err(error) => {
                                report.failures.push(format!("{error:#}"));
                                drop(report);
                                // As a client does, so that its questions last.
                                std::thread::sleep(Duration::from_millis(100));
                            }
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            report,
            clients,
        }
    }

    /// What was met so far.
    pub fn report(&self) -> LoadReport {
        self.report
            .lock()
            .expect("no client panics with the lock")
            .clone()
    }

    /// Lets every client finish its question, and tells what all of them met.
    pub fn stop(self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            if client.join().is_err() {
                bail!("a client panicked");
            }
        }
        let report = self.report.lock().expect("the clients have ended").clone();
        Ok(report)
    }
}

impl LoadReport {
    /// How often what failed.
    pub fn causes(&self) -> BTreeMap<&str, usize> {
        let mut causes = BTreeMap::new();
        for failure in &self.failures {
            *causes.entry(failure.as_str()).or_default() += 1;
        }
        causes
    }

    /// Whole answers of all commits.
    pub fn total(&self) -> usize {
        self.answers.values().sum()
    }
}
