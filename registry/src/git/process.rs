//! Git processes that answer one request each.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, http::StatusCode};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use hyprstream_slots::{Owners, Slot, Slots};
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{OwnedMutexGuard, mpsc},
};
use tokio_util::task::TaskTracker;

use super::report::Report;
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
pub(super) type Finisher = Box<dyn FnOnce(Outcome) -> BoxFuture<'static, ()> + Send>;

/// How a process ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// It exited with status 0.
    pub(super) success: bool,
    /// Bytes that it was sent. Git asks whether it may push with 4.
    pub(super) bytes_in: u64,
    /// What it reported.
    pub(super) report: Report,
}

/// What a client asks of git.
pub(crate) struct GitRequest<'a> {
    pub(crate) program: Program,
    pub(crate) repository: &'a Path,
    /// The version of the protocol that the client asks for.
    pub(crate) protocol: Option<&'a str>,
    /// Whose share of the places for processes it takes.
    pub(crate) share: Owners,
    /// In a mirror the commits that Models were given are shown: often nothing else names them.
    pub(crate) is_mirror: bool,
}

/// What a push needs beside git.
pub(super) struct Push {
    pub(super) finisher: Finisher,
    /// Whether the disk has space for more of it.
    pub(super) has_space: Box<dyn Fn() -> bool + Send + Sync>,
    /// What is added to git's report.
    pub(super) report: Report,
    /// Branches only move forward.
    pub(super) forward_only: bool,
}

/// Starts git processes.
pub(crate) struct GitRunner {
    places: Slots,
    /// Repositories that somebody pushes to, or that git tidies.
    alone: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
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
/// For another push to the same repository.
const WAIT_FOR_OTHERS: Duration = Duration::from_mins(2);
/// For a process to take away what it began.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Longest request that is no push: names of commits.
const MAX_REQUEST_BYTES: u64 = 64 << 20;
/// What stands before the pack in a push.
const REFS_BYTES: u64 = 16 << 20;
/// How often the free space is looked at while a pack comes in.
const LOOK_EVERY_BYTES: u64 = 4 << 20;
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
            places: Slots::new(limits.processes),
            alone: Mutex::default(),
            limits,
            home: home.to_owned(),
            tasks: TaskTracker::new(),
            running,
        }
    }

    /// The refs of a repository.
    pub(crate) async fn advertise(&self, request: GitRequest<'_>) -> Result<Exchange, Refusal> {
        let arguments = [
            request.program.command(),
            "--stateless-rpc",
            "--http-backend-info-refs",
        ];
        self.start(&request, &arguments, Body::empty(), None).await
    }

    /// One exchange with a repository.
    pub(super) async fn serve(
        &self,
        request: GitRequest<'_>,
        body: Body,
        push: Option<Push>,
    ) -> Result<Exchange, Refusal> {
        let mut arguments = Vec::new();
        if push.as_ref().is_some_and(|push| push.forward_only) {
            // Only git knows, once it has the objects and before it moves a branch.
            arguments.extend(["-c", "receive.denyNonFastForwards=true"]);
        }
        arguments.extend([request.program.command(), "--stateless-rpc"]);
        self.start(&request, &arguments, body, push).await
    }

    /// Waits until nobody else pushes to the repository or tidies it. `None`: for too long.
    pub(crate) async fn alone(&self, repository: &Path) -> Option<OwnedMutexGuard<()>> {
        let lock = self.lock_of(repository).lock_owned();
        tokio::time::timeout(WAIT_FOR_OTHERS, lock).await.ok()
    }

    /// The same without waiting.
    pub(crate) fn try_alone(&self, repository: &Path) -> Option<OwnedMutexGuard<()>> {
        self.lock_of(repository).try_lock_owned().ok()
    }

    fn lock_of(&self, repository: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut alone = self.alone.lock();
        // Those that nobody holds or waits for.
        alone.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(alone.entry(repository.to_owned()).or_default())
    }

    /// Runs git on a repository without a client. Returns its output.
    pub(crate) async fn run(&self, repository: &Path, arguments: &[&str]) -> io::Result<Vec<u8>> {
        let mut command = self.command(Command::new("git"), None, false);
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

    /// Waits for one of the places for git's work, which forks and merges share with clones and
    /// pushes. Whoever needs the repository for itself waits for that first, as pushes do.
    pub(crate) async fn place(&self, share: &Owners) -> Result<Slot, Refusal> {
        let place = self.places.acquire(share, false);
        let place = tokio::time::timeout(WAIT_FOR_A_PLACE, place).await;
        place.map_err(|_| Refusal::busy("too many git requests at once; try again"))
    }

    async fn start(
        &self,
        request: &GitRequest<'_>,
        arguments: &[&str],
        body: Body,
        push: Option<Push>,
    ) -> Result<Exchange, Refusal> {
        let program = request.program;
        let place = self.place(&request.share).await?;
        let git = if program == Program::ReceivePack {
            self.limited()
        } else {
            Command::new("git")
        };
        let mut command = self.command(git, request.protocol, request.is_mirror);
        if program == Program::ReceivePack {
            // What is mapped of packs counts too.
            for setting in ["core.packedGitWindowSize=32m", "core.packedGitLimit=128m"] {
                command.args(["-c", setting]);
            }
        }
        command
            .args(arguments)
            .arg(request.repository)
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
            limits: self.limits,
            sender,
            _place: place,
            running: RunningGuard(self.running.clone()),
        };
        let pipes = Pipes {
            stdin,
            stdout,
            stderr,
        };
        self.tasks.spawn(drive.run(pipes, body, push));
        match rest.recv().await {
            Some(Ok(first)) => Ok(Exchange {
                first: Some(first),
                rest,
            }),
            None => Ok(Exchange { first: None, rest }),
            Some(Err(error)) if is_disk_full(&error) => {
                Err(Refusal::disk_full("no space is left on the registry"))
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "BadRequest",
                error.to_string(),
                false,
            )),
            Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Refusal::busy("git took too long; try again"))
            }
            Some(Err(error)) => Err(Refusal::internal("git", &error)),
        }
    }

    /// Git with a bound on its memory: what a pack says of itself may be anything, and a delta of a
    /// few bytes may say that it makes gigabytes. Only the shell can set it without unsafe code. Where
    /// memory runs out all the same, the kernel is to take this process and not the registry.
    fn limited(&self) -> Command {
        let mut command = Command::new("sh");
        let kib = self.limits.push_memory_bytes >> 10;
        command
            .arg("-c")
            .arg(format!(
                "echo 1000 2>/dev/null > /proc/self/oom_score_adj; ulimit -v {kib}; exec git \"$@\""
            ))
            .arg("git");
        command
    }

    /// `git` with our configuration and nobody else's.
    fn command(&self, git: Command, protocol: Option<&str>, is_mirror: bool) -> Command {
        let mut command = git;
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
            // Old tools wrote these, other forges take them, and nobody can mend history.
            "receive.fsck.zeroPaddedFilemode=ignore",
            "receive.fsck.missingSpaceBeforeDate=ignore",
            "receive.fsck.badTimezone=ignore",
            // Larger files are streamed and not held in memory.
            "core.bigFileThreshold=32m",
            "pack.threads=1",
            "receive.autogc=false",
            // Packs are kept as they come: to unpack them git would hold whole files in memory.
            "receive.unpackLimit=1",
            "gc.autoDetach=false",
            "core.fsync=committed,reference",
            &max_input,
        ] {
            command.arg("-c").arg(setting);
        }
        if !is_mirror {
            // Our own refs keep commits alive and are nobody's business.
            command.args(["-c", "transfer.hideRefs=refs/hyprstream"]);
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
    limits: GitLimits,
    sender: mpsc::Sender<io::Result<Bytes>>,
    _place: Slot,
    running: RunningGuard,
}

/// What moves through a process.
struct Flow {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    body_done: AtomicBool,
}

impl Flow {
    fn moved(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed) + self.bytes_out.load(Ordering::Relaxed)
    }

    /// Returns when too little has moved for too long. A push whose last byte has come is our own
    /// work, and has its own time.
    async fn stalled(&self, limits: &GitLimits, program: Program) {
        let least = limits.least_bytes_per_second as f64 * limits.idle.as_secs_f64();
        let least = (least as u64).max(1);
        let mut window = (Instant::now(), 0, false);
        loop {
            tokio::time::sleep((limits.idle / 8).min(Duration::from_secs(1))).await;
            let (moved, done) = (self.moved(), self.body_done.load(Ordering::Acquire));
            if done != window.2 || moved - window.1 >= least {
                window = (Instant::now(), moved, done);
            }
            let patience = if done && program == Program::ReceivePack {
                limits.work
            } else {
                limits.idle
            };
            if window.0.elapsed() >= patience {
                return;
            }
        }
    }
}

impl Drive {
    async fn run(mut self, pipes: Pipes, body: Body, push: Option<Push>) {
        let (finisher, has_space, mut report) = match push {
            Some(push) => (Some(push.finisher), Some(push.has_space), Some(push.report)),
            None => (None, None, None),
        };
        let flow = Flow {
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            body_done: AtomicBool::new(false),
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
                    feed(body, stdin, &flow, &self.limits, has_space.as_deref()),
                    drain(stdout, &self.sender, self.program, &flow, report.as_mut()),
                    complaint,
                )
            };
            tokio::select! {
                done = work => match done {
                    Ok(((), (), complaint)) => Ok(complaint),
                    Err(error) => Err(error),
                },
                () = flow.stalled(&self.limits, self.program) => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "too little moved for too long"))
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
            self.end().await;
        }
        self.report(result, status, &flow).await;
        let outcome = Outcome {
            success: status.is_some_and(|status| status.success()),
            bytes_in: flow.bytes_in.load(Ordering::Relaxed),
            report: report.unwrap_or_default(),
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
                if flow.bytes_out.load(Ordering::Relaxed) > 0 {
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

    /// Ends the process and its children: first so that they take away what they began, and then
    /// for certain.
    async fn end(&mut self) {
        use rustix::process::{Pid, Signal, kill_process_group};
        let group = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::TERM);
            let _ = tokio::time::timeout(END_PATIENCE, self.child.wait()).await;
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.kill().await;
    }
}

/// Sends the body of the request to the process.
async fn feed(
    body: Body,
    mut stdin: ChildStdin,
    flow: &Flow,
    limits: &GitLimits,
    has_space: Option<&(dyn Fn() -> bool + Send + Sync)>,
) -> io::Result<()> {
    let mut stream = body.into_data_stream();
    let mut refused = false;
    let most = match has_space {
        Some(_) => limits.max_push_bytes.saturating_add(REFS_BYTES),
        None => MAX_REQUEST_BYTES,
    };
    let mut looked_at = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(io::Error::other)?;
        let length = chunk.len() as u64;
        let came = flow.bytes_in.fetch_add(length, Ordering::Relaxed) + length;
        if came > most {
            let message = format!("a request of more than {most} bytes is not taken");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        if came - looked_at >= LOOK_EVERY_BYTES {
            looked_at = came;
            if has_space.is_some_and(|has_space| !has_space()) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
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
    mut report: Option<&mut Report>,
) -> io::Result<()> {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        let ended = stdout.read_buf(&mut buffer).await? == 0;
        let length = buffer.len() as u64;
        let out = match (&mut report, ended) {
            (Some(report), false) => report.push(&buffer).into(),
            (Some(report), true) => report.finish().into(),
            (None, _) => buffer.freeze(),
        };
        let gone = !out.is_empty() && sender.send(Ok(out)).await.is_err();
        if ended {
            return Ok(());
        }
        flow.bytes_out.fetch_add(length, Ordering::Relaxed);
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
