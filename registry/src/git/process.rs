//! Git processes that answer one request each.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use prometheus::IntGauge;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::task::TaskTracker;

use crate::{
    limits::GitLimits,
    refusal::{Refusal, is_disk_full},
};

/// Which of git's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    UploadPack,
    ReceivePack,
}

/// What happens after a push, whether or not its client still waits.
pub(crate) type Finisher = Box<dyn FnOnce(Outcome) -> BoxFuture<'static, ()> + Send>;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// It exited with status 0.
    pub(crate) success: bool,
    /// Bytes that it was sent. Git asks whether it may push with 4.
    pub(crate) bytes_in: u64,
}

/// Starts git processes.
pub(crate) struct GitRunner {
    permits: Arc<Semaphore>,
    limits: GitLimits,
    home: PathBuf,
    tasks: TaskTracker,
    running: IntGauge,
}

/// The output of a running process.
pub(crate) struct Exchange {
    first: Option<Bytes>,
    rest: mpsc::Receiver<io::Result<Bytes>>,
}

const WAIT_FOR_A_PLACE: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 64 << 10;
const MAX_STDERR_BYTES: u64 = 4 << 10;

impl Program {
    /// Its name in the protocol.
    pub(crate) fn service(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::UploadPack => "upload-pack",
            Self::ReceivePack => "receive-pack",
        }
    }
}

impl GitRunner {
    pub(crate) fn new(limits: GitLimits, home: &Path, running: IntGauge) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limits.processes)),
            limits,
            home: home.to_owned(),
            tasks: TaskTracker::new(),
            running,
        }
    }

    /// The refs of a repository.
    pub(crate) async fn advertise(
        &self,
        program: Program,
        repository: &Path,
        protocol: Option<&str>,
    ) -> Result<Exchange, Refusal> {
        let arguments = [
            program.command(),
            "--stateless-rpc",
            "--http-backend-info-refs",
        ];
        self.start(
            program,
            &arguments,
            repository,
            protocol,
            Body::empty(),
            None,
        )
        .await
    }

    /// One exchange with a repository.
    pub(crate) async fn serve(
        &self,
        program: Program,
        repository: &Path,
        protocol: Option<&str>,
        body: Body,
        finisher: Option<Finisher>,
    ) -> Result<Exchange, Refusal> {
        let arguments = [program.command(), "--stateless-rpc"];
        self.start(program, &arguments, repository, protocol, body, finisher)
            .await
    }

    /// Runs git on a repository without a client. Returns its output.
    pub(crate) async fn run(&self, repository: &Path, arguments: &[&str]) -> io::Result<Vec<u8>> {
        let mut command = self.command(None);
        command
            .arg("--git-dir")
            .arg(repository)
            .args(arguments)
            .stdin(Stdio::null());
        let output = command.output().await?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!(
            "git {}: {}",
            arguments.join(" "),
            stderr.trim()
        )))
    }

    /// Waits until no process serves any more.
    pub(crate) async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn start(
        &self,
        program: Program,
        arguments: &[&str],
        repository: &Path,
        protocol: Option<&str>,
        body: Body,
        finisher: Option<Finisher>,
    ) -> Result<Exchange, Refusal> {
        let acquire = Arc::clone(&self.permits).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(WAIT_FOR_A_PLACE, acquire).await else {
            return Err(Refusal::busy("too many git requests at once; try again"));
        };
        let mut command = self.command(protocol);
        command
            .args(arguments)
            .arg(repository)
            .stdin(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| Refusal::internal("starting git", &error))?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Refusal::internal(
                "starting git",
                &io::Error::other("no pipes"),
            ));
        };
        let (sender, mut rest) = mpsc::channel(8);
        self.running.inc();
        let drive = Drive {
            program,
            child,
            idle: self.limits.idle,
            sender,
            _permit: permit,
            running: RunningGuard(self.running.clone()),
        };
        let pipes = Pipes {
            stdin,
            stdout,
            stderr,
        };
        self.tasks.spawn(drive.run(pipes, body, finisher));
        match rest.recv().await {
            Some(Ok(first)) => Ok(Exchange {
                first: Some(first),
                rest,
            }),
            None => Ok(Exchange { first: None, rest }),
            Some(Err(error)) if is_disk_full(&error) => {
                Err(Refusal::disk_full("no space is left on the registry"))
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Refusal::busy("git took too long; try again"))
            }
            Some(Err(error)) => Err(Refusal::internal("git", &error)),
        }
    }

    /// Git with our configuration and nobody else's.
    fn command(&self, protocol: Option<&str>) -> Command {
        let mut command = Command::new("git");
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", &self.home)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0");
        if let Some(protocol) = protocol {
            command.env("GIT_PROTOCOL", protocol);
        }
        let max_input = format!("receive.maxInputSize={}", self.limits.max_push_bytes);
        for setting in [
            // The root may belong to another user, for instance through an fsGroup.
            "safe.directory=*",
            "core.hooksPath=/dev/null",
            "uploadpack.allowAnySHA1InWant=true",
            "uploadpack.allowFilter=true",
            "http.receivepack=true",
            "receive.fsckObjects=true",
            "receive.autogc=false",
            // Packs are kept as they come: to unpack them git would hold whole files in memory.
            "receive.unpackLimit=1",
            // Our own refs keep commits alive and are nobody's business.
            "transfer.hideRefs=refs/hyprstream",
            "gc.autoDetach=false",
            "core.fsync=committed,reference",
            &max_input,
        ] {
            command.arg("-c").arg(setting);
        }
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that its children end with it.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

impl Exchange {
    /// `preamble` and then the output as the body of an answer.
    pub(crate) fn into_body(self, preamble: Vec<u8>) -> Body {
        let preamble = (!preamble.is_empty()).then(|| Ok(Bytes::from(preamble)));
        let first = self.first.map(Ok);
        let rest = futures::stream::unfold(self.rest, |mut rest| async move {
            rest.recv().await.map(|chunk| (chunk, rest))
        });
        let head = futures::stream::iter(preamble.into_iter().chain(first));
        Body::from_stream(head.chain(rest))
    }
}

struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

struct RunningGuard(IntGauge);

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One process and what flows through it.
struct Drive {
    program: Program,
    child: Child,
    idle: Duration,
    sender: mpsc::Sender<io::Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
    running: RunningGuard,
}

/// When a byte last moved, and how many came in.
struct Flow {
    start: Instant,
    last: AtomicU64,
    bytes_in: AtomicU64,
    body_done: AtomicBool,
    answered: AtomicBool,
}

impl Flow {
    fn moved(&self) {
        self.last
            .store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    async fn stalled(&self, idle: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let quiet = self.start.elapsed().saturating_sub(last);
            if quiet >= idle {
                return;
            }
            tokio::time::sleep(idle.saturating_sub(quiet)).await;
        }
    }
}

impl Drive {
    async fn run(mut self, pipes: Pipes, body: Body, finisher: Option<Finisher>) {
        let flow = Flow {
            start: Instant::now(),
            last: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            body_done: AtomicBool::new(false),
            answered: AtomicBool::new(false),
        };
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = pipes;
        let result = {
            let work = async {
                let complaint = complaint(stderr).map(Ok);
                tokio::try_join!(
                    feed(body, stdin, &flow),
                    drain(stdout, &self.sender, self.program, &flow),
                    complaint,
                )
            };
            tokio::select! {
                done = work => match done {
                    Ok(((), (), complaint)) => Ok(complaint),
                    Err(error) => Err(error),
                },
                () = flow.stalled(self.idle) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "no byte moved for too long"))
                }
                () = gone(&self.sender, self.program, &flow) => {
                    Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client went away"))
                }
            }
        };
        let status = match &result {
            Ok(_) => self.child.wait().await.ok(),
            Err(_) => None,
        };
        if status.is_none() {
            self.kill().await;
        }
        self.report(result, status, &flow).await;
        let outcome = Outcome {
            success: status.is_some_and(|status| status.success()),
            bytes_in: flow.bytes_in.load(Ordering::Relaxed),
        };
        if let Some(finisher) = finisher {
            finisher(outcome).await;
        }
        // The answer ends here: a client that has read it finds HEAD and events in place.
        drop(self.sender);
        drop(self.running);
    }

    async fn report(&self, result: io::Result<String>, status: Option<ExitStatus>, flow: &Flow) {
        let program = self.program.service();
        let error = match result {
            Ok(_) if status.is_some_and(|status| status.success()) => return,
            Ok(complaint) => {
                tracing::warn!(program, ?status, complaint, "git failed");
                // What git has said to its client stands; else the client gets an HTTP error.
                if flow.answered.load(Ordering::Relaxed) {
                    return;
                }
                let full = complaint.contains("No space left on device");
                let kind = if full {
                    io::ErrorKind::StorageFull
                } else {
                    io::ErrorKind::Other
                };
                io::Error::new(kind, format!("git failed: {complaint}"))
            }
            Err(error) => {
                tracing::debug!(program, %error, "git was ended");
                error
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), self.sender.send(Err(error))).await;
    }

    async fn kill(&mut self) {
        if let Some(pid) = self
            .child
            .id()
            .and_then(|id| rustix::process::Pid::from_raw(id as i32))
        {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill().await;
    }
}

/// Sends the body of the request to the process.
async fn feed(body: Body, mut stdin: ChildStdin, flow: &Flow) -> io::Result<()> {
    let mut stream = body.into_data_stream();
    let mut refused = false;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(io::Error::other)?;
        flow.moved();
        flow.bytes_in
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
        // A process that has heard enough says why on its output; the rest is passed over.
        if !refused && stdin.write_all(&chunk).await.is_err() {
            refused = true;
        }
    }
    flow.body_done.store(true, Ordering::Release);
    drop(stdin);
    Ok(())
}

/// Hands the output of the process on. A push goes on without its client once all of it is here:
/// ending git in the middle of its refs would leave locks behind.
async fn drain(
    mut stdout: ChildStdout,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    program: Program,
    flow: &Flow,
) -> io::Result<()> {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        if stdout.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        flow.moved();
        flow.answered.store(true, Ordering::Relaxed);
        let gone = sender.send(Ok(buffer.freeze())).await.is_err();
        flow.moved();
        if gone && !must_finish(program, flow) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

async fn gone(sender: &mpsc::Sender<io::Result<Bytes>>, program: Program, flow: &Flow) {
    sender.closed().await;
    if must_finish(program, flow) {
        std::future::pending::<()>().await;
    }
}

fn must_finish(program: Program, flow: &Flow) -> bool {
    program == Program::ReceivePack && flow.body_done.load(Ordering::Acquire)
}

async fn complaint(stderr: impl AsyncRead + Unpin) -> String {
    let mut limited = stderr.take(MAX_STDERR_BYTES);
    let mut text = Vec::new();
    let _ = limited.read_to_end(&mut text).await;
    // The rest is read as well, or git would wait for a reader.
    let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).trim().to_owned()
}
