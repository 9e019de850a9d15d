//! How long a worker may say nothing.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Ends when nothing was heard for a time. Hearing something costs one look at the clock, and no
/// timer is set anew for it.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Duration,
    heard: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Self {
        let heard = Instant::now();
        Self {
            limit,
            heard,
            timer: Box::pin(sleep_until(heard + limit)),
        }
    }

    /// Something was heard.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Ready once nothing was heard for the whole time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let end = self.heard + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn it_ends_after_the_last_that_was_heard() {
        let limit = Duration::from_millis(200);
        let mut silence = Silence::new(limit);
        let early = timeout(limit / 2, poll_fn(|cx| silence.poll(cx))).await;
        assert!(early.is_err());
        silence.heard();
        let since = Instant::now();
        poll_fn(|cx| silence.poll(cx)).await;
        assert!(since.elapsed() >= limit);
    }
}
