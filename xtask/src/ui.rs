//! What the user sees while things take their time.

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
    time::{Duration, Instant},
};

/// Numbered steps on the standard error.
pub(crate) struct Steps {
    total: usize,
    current: usize,
}

/// One step under way.
pub(crate) struct Step {
    label: String,
    started: Instant,
    shown: Mutex<Instant>,
    terminal: bool,
    hidden: bool,
}

impl Steps {
    /// Announces so many steps.
    pub(crate) fn new(total: usize) -> Self {
        Self { total, current: 0 }
    }

    /// Begins the next step.
    pub(crate) fn begin(&mut self, what: &str) -> Step {
        self.current += 1;
        let label = format!("[{:>2}/{}] {what}", self.current, self.total);
        Step::new(label)
    }
}

impl Step {
    /// A step of its own.
    pub(crate) fn new(label: String) -> Self {
        let step = Self {
            label,
            hidden: false,
            ..Self::hidden()
        };
        let label = &step.label;
        if step.terminal {
            eprint!("{label} ...");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{label} ...");
        }
        step
    }

    /// One that shows nothing of how far it is, for work beside a step.
    pub(crate) fn hidden() -> Self {
        Self {
            label: String::new(),
            started: Instant::now(),
            shown: Mutex::new(Instant::now()),
            terminal: std::io::stderr().is_terminal(),
            hidden: true,
        }
    }

    /// Shows how far it is. Off a terminal one line in ten seconds at most.
    pub(crate) fn amount(&self, amount: &str) {
        let Ok(mut shown) = self.shown.lock() else {
            return;
        };
        if self.hidden {
            return;
        }
        let pause = Duration::from_millis(if self.terminal { 200 } else { 10_000 });
        if shown.elapsed() < pause {
            return;
        }
        *shown = Instant::now();
        let seconds = self.started.elapsed().as_secs();
        if self.terminal {
            eprint!("\r\x1b[K{}: {amount}, {seconds} s", self.label);
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{}: {amount}, {seconds} s", self.label);
        }
    }

    /// A line of its own that stays.
    pub(crate) fn note(&self, text: &str) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("        {text}");
    }

    /// Ends the step with what came out.
    pub(crate) fn done(self, result: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let comma = if result.is_empty() { "" } else { ": " };
        eprintln!("{start}{}{comma}{result} ({seconds:.1} s)", self.label);
    }
}

/// Bytes as people read them.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Writes a line to the standard output. Work goes on when nobody reads it.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
