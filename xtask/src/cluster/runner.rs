//! Starts a component and starts it again whenever it ends.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Cluster,
    config::{Component, path},
    state::{ComponentState, Place, State, start_time},
};
use crate::proc;

/// Keeps one component running.
pub(crate) struct Runner {
    /// What to run.
    pub(crate) component: Component,
    /// Where.
    pub(crate) place: Place,
    /// Whose logs it writes to.
    pub(crate) cluster: Cluster,
    /// Where it tells of itself.
    pub(crate) state: Arc<Mutex<State>>,
}

impl Runner {
    /// Starts the component and a thread that starts it again whenever it ends.
    pub(crate) fn start(self) -> Result<()> {
        let first = self.launch()?;
        thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(move || self.keep(first))?;
        Ok(())
    }

    fn launch(&self) -> Result<Child> {
        let component = &self.component;
        let log = self.cluster.logs().join(format!("{}.log", component.name));
        keep_small(&log);
        let log = proc::open_log(&log)?;
        let child = self
            .place
            .enter()
            .arg(&component.program)
            .args(&component.args)
            .env_clear()
            .env("PATH", path(&self.cluster))
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", component.name))?;
        self.note(|s| {
            s.pid = Some(child.id());
            s.started = start_time(child.id()).unwrap_or(0);
        });
        Ok(child)
    }

    fn keep(self, mut child: Child) {
        let mut pause = Duration::from_millis(250);
        loop {
            let started = Instant::now();
            let exit = child
                .wait()
                .map_or_else(|e| e.to_string(), |status| status.to_string());
            eprintln!("{} ended: {exit}", self.component.name);
            self.note(|s| {
                s.pid = None;
                s.restarts += 1;
                s.last_exit = Some(exit);
            });
            if started.elapsed() > Duration::from_secs(30) {
                pause = Duration::from_millis(250);
            }
            child = loop {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(8));
                match self.launch() {
                    Ok(child) => break child,
                    Err(error) => eprintln!("{error:#}"),
                }
            };
        }
    }

    fn note(&self, change: impl FnOnce(&mut ComponentState)) {
        update(&self.state, &self.cluster, |state| {
            change(
                state
                    .components
                    .entry(self.component.name.clone())
                    .or_default(),
            );
        });
    }
}

/// Starts a log anew once it is large; the last one is kept.
fn keep_small(log: &Path) {
    if fs::metadata(log).is_ok_and(|m| m.len() > 50_000_000) {
        let _ = fs::rename(log, log.with_extension("log.1"));
    }
}

/// Changes the state and writes it.
pub(crate) fn update(state: &Mutex<State>, cluster: &Cluster, change: impl FnOnce(&mut State)) {
    let mut state = state
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    change(&mut state);
    if let Err(error) = state.write(&cluster.dir) {
        eprintln!("cannot write the state: {error:#}");
    }
}
