//! A client's connection with a time limit on everything that the client must do.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// Where a connection stands, set by the service and read by its socket.
#[derive(Debug, Default)]
pub(super) struct Phase(AtomicU8);

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

impl Phase {
    /// A request is being answered until the guard is dropped; then the connection is idle. The
    /// request's body has a time limit of its own.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.0.store(BUSY, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }
}

/// See [`Phase::busy`].
#[derive(Debug)]
pub(super) struct Busy(Arc<Phase>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Relaxed);
    }
}

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For a request head, from its first byte or the connection's start.
    pub(super) header: Duration,
    /// Between requests.
    pub(super) idle: Duration,
    /// For the peer to take bytes.
    pub(super) write: Duration,
}

/// A socket that fails reads and writes when the client takes too long.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    socket: S,
    limits: Limits,
    phase: Arc<Phase>,
    /// The phase that `read_timer` was set for.
    timed: u8,
    read_timer: Timer,
    write_timer: Timer,
}

impl<S> Guarded<S> {
    pub(super) fn new(socket: S, limits: Limits, phase: Arc<Phase>) -> Self {
        // The first head is due at once: a connection that sends nothing is of no use.
        let mut read_timer = Timer::default();
        read_timer.set(limits.header);
        Self {
            socket,
            limits,
            phase,
            timed: HEAD,
            read_timer,
            write_timer: Timer::default(),
        }
    }

    fn limit_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.write_timer.clear();
            return progress;
        }
        if !self.write_timer.is_set() {
            self.write_timer.set(self.limits.write);
        }
        self.write_timer
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buf);
        let mut phase = this.phase.0.load(Ordering::Relaxed);
        if read.is_ready() && buf.filled().len() > before && phase == IDLE {
            phase = HEAD;
            this.phase.0.store(HEAD, Ordering::Relaxed);
        }
        if phase != this.timed {
            this.timed = phase;
            match phase {
                HEAD => this.read_timer.set(this.limits.header),
                IDLE => this.read_timer.set(this.limits.idle),
                _ => this.read_timer.clear(),
            }
        }
        if read.is_ready() {
            return read;
        }
        // The end of input closes an idle connection without fuss.
        this.read_timer.poll(cx).map(|()| match phase {
            IDLE => Ok(()),
            _ => Err(io::ErrorKind::TimedOut.into()),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.limit_write(cx, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.limit_write(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A timer that is made on first use and set again without being made anew.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    set: bool,
}

impl Timer {
    fn is_set(&self) -> bool {
        self.set
    }

    fn set(&mut self, after: Duration) {
        self.set = true;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(Instant::now() + after),
            None => self.sleep = Some(Box::pin(tokio::time::sleep(after))),
        }
    }

    fn clear(&mut self) {
        self.set = false;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sleep {
            Some(sleep) if self.set => sleep.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{sleep, timeout},
    };

    use super::*;

    const LIMITS: Limits = Limits {
        header: Duration::from_millis(300),
        idle: Duration::from_millis(100),
        write: Duration::from_millis(100),
    };
    const NEVER: Duration = Duration::from_millis(600);

    #[tokio::test]
    async fn a_head_that_trickles_is_cut_off_and_a_request_is_not() {
        let (mut client, server) = duplex(1024);
        let phase = Arc::new(Phase::default());
        let mut socket = Guarded::new(server, LIMITS, Arc::clone(&phase));
        client.write_all(b"GE").await.unwrap();
        let mut buf = [0; 8];
        assert_eq!(socket.read(&mut buf).await.unwrap(), 2);

        let busy = phase.busy();
        let wait = timeout(NEVER, socket.read(&mut buf)).await;
        assert!(wait.is_err(), "a request may take as long as it needs");
        drop(busy);

        let began = Instant::now();
        let mut reads = 0;
        let error = loop {
            client.write_all(b"G").await.unwrap();
            match socket.read(&mut buf).await {
                Ok(_) => reads += 1,
                Err(error) => break error,
            }
            match timeout(LIMITS.header / 4, socket.read(&mut buf)).await {
                Ok(Err(error)) => break error,
                other => assert!(other.is_err(), "there is nothing to read"),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMITS.header);
        assert!(
            (1..=5).contains(&reads),
            "from the first byte, not from the last: {reads}"
        );
    }

    #[tokio::test]
    async fn a_silent_connection_fails_when_new_and_ends_when_idle() {
        let (_client, server) = duplex(1024);
        let phase = Arc::new(Phase::default());
        let mut socket = Guarded::new(server, LIMITS, Arc::clone(&phase));
        let began = Instant::now();
        assert!(socket.read(&mut [0; 8]).await.is_err());
        assert!(began.elapsed() >= LIMITS.header);

        let (_client, server) = duplex(1024);
        let mut socket = Guarded::new(server, LIMITS, Arc::clone(&phase));
        drop(phase.busy());
        let began = Instant::now();
        assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(began.elapsed() >= LIMITS.idle);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_off_and_a_slow_one_is_not() {
        let (mut client, server) = duplex(16);
        let mut socket = Guarded::new(server, LIMITS, Arc::default());
        let slow = tokio::spawn(async move {
            let mut buf = [0; 16];
            for _ in 0..8 {
                client.read_exact(&mut buf).await.unwrap();
                sleep(LIMITS.write / 4).await;
            }
            client
        });
        let began = Instant::now();
        socket.write_all(&[0; 128]).await.unwrap();
        assert!(began.elapsed() > LIMITS.write);
        let _client = slow.await.unwrap();
        let began = Instant::now();
        let error = socket.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LIMITS.write);
    }
}
