//! Bars for people who wait; nothing where no terminal is.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use hyprstream_git2db::{Observer, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// Watches a transfer. Ctrl-C ends it, and what has come stays for the next time.
#[derive(Debug)]
pub(crate) struct Transfer {
    bar: ProgressBar,
}

/// Set by a SIGINT while something is transferred.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Transfers under way. What else waits for SIGINT is not told here.
static TRANSFERS: AtomicUsize = AtomicUsize::new(0);

/// Lets SIGINT end transfers rather than the program.
fn watch_interrupts() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let watching = std::thread::Builder::new()
            .name("interrupts".to_owned())
            .spawn(|| {
                let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                else {
                    return;
                };
                runtime.block_on(async {
                    // The second one ends the program, whatever it does.
                    while tokio::signal::ctrl_c().await.is_ok() {
                        let transfers = TRANSFERS.load(Ordering::Relaxed);
                        if transfers > 0 && INTERRUPTED.swap(true, Ordering::Relaxed) {
                            std::process::exit(130);
                        }
                    }
                });
            });
        // Without the thread SIGINT ends the program, as ever.
        drop(watching);
    });
}

/// Whether the user wants an end.
fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

impl Transfer {
    /// Begins to show what is done.
    pub(crate) fn start(what: &str) -> Self {
        watch_interrupts();
        TRANSFERS.fetch_add(1, Ordering::Relaxed);
        let bar = spinner(what);
        Self { bar }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        TRANSFERS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Observer for Transfer {
    fn progress(&self, progress: Progress) {
        match progress {
            Progress::Git {
                objects_done,
                objects_total,
                ..
            } => {
                self.bar.set_length(objects_total);
                self.bar.set_position(objects_done);
                self.bar
                    .set_style(style("{prefix} {bar:30} {pos}/{len} objects"));
            }
            Progress::Objects {
                bytes_done,
                bytes_total,
            } => {
                self.bar.set_length(bytes_total);
                self.bar.set_position(bytes_done);
                self.bar.set_style(style(
                    "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
                ));
            }
            _ => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        is_interrupted()
    }
}

/// Something that takes its time, of unknown length.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(style("{prefix} {spinner} {elapsed}"));
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_one() {
        for progress in [
            "{prefix} {bar:30} {pos}/{len} objects",
            "{prefix} {spinner} {elapsed}",
            "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ] {
            assert!(ProgressStyle::with_template(progress).is_ok(), "{progress}");
        }
    }
}
