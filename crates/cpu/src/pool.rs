//! The threads that compute a step together.
//!
//! A step is one function that every thread runs from beginning to end ([`Pool::run`]). Between
//! its phases the threads meet at a barrier; within a phase they take pieces of work from one
//! counter, so that a thread that the system delays does not hold up the others. A barrier costs
//! less than a microsecond while all threads have a processor. One that waits longer goes to
//! sleep, so that nobody spins against a cgroup's quota.
#![allow(unsafe_code)]

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use parking_lot::Mutex;

/// Threads that wait for work. Dropping the pool ends them.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Arc<State>,
    handles: Vec<JoinHandle<()>>,
}

/// One thread's place in a running step.
pub(crate) struct Team<'a> {
    /// Which thread this is, from 0.
    pub(crate) index: usize,
    state: &'a State,
}

type Job = *const (dyn Fn(&Team<'_>) + Sync);

struct State {
    threads: usize,
    /// Counts jobs; its change wakes the threads.
    epoch: Gate,
    job: Mutex<Option<JobPointer>>,
    stopping: AtomicBool,
    /// Threads that have finished the job.
    done: AtomicUsize,
    finished: Gate,
    /// Threads at the barrier.
    arrived: AtomicUsize,
    barrier: Gate,
    /// Next piece of work of the phase.
    next: AtomicUsize,
    /// A thread has panicked: nobody will reach the barrier.
    poisoned: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct JobPointer(Job);
// SAFETY: the job is `Sync`, and `run` does not return while a thread uses it.
unsafe impl Send for JobPointer {}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Self::run`] among them.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let state = Arc::new(State {
            threads: threads.max(1),
            epoch: Gate::default(),
            job: Mutex::new(None),
            stopping: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            finished: Gate::default(),
            arrived: AtomicUsize::new(0),
            barrier: Gate::default(),
            next: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            state,
            handles: Vec::new(),
        };
        for index in 1..threads {
            let state = Arc::clone(&pool.state);
            let handle = thread::Builder::new()
                .name(format!("cpu-{index}"))
                .spawn(move || serve(&state, index))?;
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.state.threads
    }

    /// Runs `job` on every thread and returns when all have ended.
    ///
    /// # Panics
    /// With the panic of a thread; the pool can be used again.
    pub(crate) fn run(&mut self, job: impl Fn(&Team<'_>) + Sync) {
        let state = &*self.state;
        let erased: *const (dyn Fn(&Team<'_>) + Sync + '_) = &raw const job;
        #[allow(
            clippy::transmute_ptr_to_ptr,
            reason = "a cast cannot change the lifetime"
        )]
        // SAFETY: only the lifetime changes. The pointer is taken back below before `job` ends.
        let erased: Job = unsafe { std::mem::transmute(erased) };
        *state.job.lock() = Some(JobPointer(erased));
        state.done.store(0, Ordering::Relaxed);
        state.next.store(0, Ordering::Relaxed);
        state.epoch.open();
        attempt(state, 0, &job);
        loop {
            let seen = state.finished.number();
            if state.done.load(Ordering::Acquire) == state.threads {
                break;
            }
            state
                .finished
                .wait(seen, || state.done.load(Ordering::Acquire) == state.threads);
        }
        *state.job.lock() = None;
        state.arrived.store(0, Ordering::Relaxed);
        state.poisoned.store(false, Ordering::Relaxed);
        if let Some(panic) = state.panic.lock().take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Release);
        self.state.epoch.open();
        for handle in self.handles.drain(..) {
            // Its panics were handed on by `run`.
            let _ = handle.join();
        }
    }
}

/// A thread's life.
fn serve(state: &State, index: usize) {
    let mut seen = 0;
    loop {
        state.epoch.wait(seen, || false);
        // Jobs do not overlap, so that no number is skipped while this thread works.
        seen += 1;
        if state.stopping.load(Ordering::Acquire) {
            return;
        }
        let job = *state.job.lock();
        if let Some(JobPointer(job)) = job {
            // SAFETY: `run` waits for `done` before the job goes away.
            attempt(state, index, unsafe { &*job });
        }
    }
}

fn attempt(state: &State, index: usize, job: &(dyn Fn(&Team<'_>) + Sync)) {
    let team = Team { index, state };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&team))) {
        let mut first = state.panic.lock();
        // The panics of those who could not go on without it say nothing.
        if first.is_none() && !panic.is::<Poisoned>() {
            *first = Some(panic);
        }
        drop(first);
        state.poisoned.store(true, Ordering::Release);
        state.barrier.open();
    }
    if state.done.fetch_add(1, Ordering::AcqRel) + 1 == state.threads {
        state.finished.open();
    }
}

/// Another thread of the team has panicked.
struct Poisoned;

impl Team<'_> {
    /// Number of threads in the team.
    pub(crate) fn size(&self) -> usize {
        self.state.threads
    }

    /// Waits for all threads. What they wrote before, all see after. The counter of
    /// [`Self::each`] begins anew.
    pub(crate) fn barrier(&self) {
        let state = self.state;
        if state.threads == 1 {
            state.next.store(0, Ordering::Relaxed);
            return;
        }
        let seen = state.barrier.number();
        if state.arrived.fetch_add(1, Ordering::AcqRel) + 1 == state.threads {
            state.arrived.store(0, Ordering::Relaxed);
            state.next.store(0, Ordering::Relaxed);
            state.barrier.open();
        } else {
            state
                .barrier
                .wait(seen, || state.poisoned.load(Ordering::Acquire));
        }
        if state.poisoned.load(Ordering::Acquire) {
            resume_unwind(Box::new(Poisoned));
        }
    }

    /// Shares the pieces `0..count` of a phase among the threads. A phase ends with
    /// [`Self::barrier`] and has one `each`.
    pub(crate) fn each(&self, count: usize, mut work: impl FnMut(usize)) {
        loop {
            let piece = self.state.next.fetch_add(1, Ordering::Relaxed);
            if piece >= count {
                return;
            }
            work(piece);
        }
    }
}

/// A number that threads wait for to change.
#[derive(Debug, Default)]
struct Gate {
    number: AtomicU32,
    sleepers: AtomicU32,
}

/// Turns of waiting with the processor at hand: some tens of microseconds.
const SPINS: u32 = 2_000;
/// Turns of offering it to others before going to sleep.
const YIELDS: u32 = 50;

impl Gate {
    fn number(&self) -> u32 {
        self.number.load(Ordering::Acquire)
    }

    fn open(&self) {
        self.number.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // SAFETY: the address is that of a live 32-bit number.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.number.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    i32::MAX,
                )
            };
        }
    }

    /// Waits until the number is not `seen` or `enough` says so.
    fn wait(&self, seen: u32, enough: impl Fn() -> bool) {
        let over = || self.number.load(Ordering::Acquire) != seen || enough();
        for _ in 0..SPINS {
            if over() {
                return;
            }
            std::hint::spin_loop();
        }
        for _ in 0..YIELDS {
            if over() {
                return;
            }
            thread::yield_now();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !over() {
            // SAFETY: as above; it returns at once when the number has changed.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.number.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    seen,
                    std::ptr::null::<libc::timespec>(),
                )
            };
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_is_done_once_and_all_see_it_after_the_barrier() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..300 {
                let pieces: Vec<AtomicUsize> = (0..37).map(|_| AtomicUsize::new(0)).collect();
                let sums = AtomicUsize::new(0);
                pool.run(|team| {
                    for phase in 1..=4 {
                        team.each(pieces.len(), |i| {
                            pieces[i].fetch_add(phase, Ordering::Relaxed);
                        });
                        team.barrier();
                        let sum: usize = pieces.iter().map(|p| p.load(Ordering::Relaxed)).sum();
                        sums.fetch_add(sum, Ordering::Relaxed);
                        team.barrier();
                    }
                });
                let per_thread = 37 * (1 + 3 + 6 + 10);
                assert_eq!(sums.into_inner(), threads * per_thread, "round {round}");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        for guilty in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|team| {
                    assert!(team.index != guilty, "thread {guilty}");
                    team.barrier();
                });
            }));
            let text = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(text, format!("thread {guilty}"));
            let count = AtomicUsize::new(0);
            pool.run(|team| {
                team.barrier();
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }
}
