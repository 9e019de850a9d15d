//! The sockets of libgit2, watched.
//!
//! libgit2 has a timeout for each read and calls nobody while it reads refs or negotiates. So it
//! gets sockets of ours, over http, below TLS and for ssh: they count bytes and time for the
//! [`Meter`] of the session whose thread they are made on.

#![allow(unsafe_code)]

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    net::{TcpStream, ToSocketAddrs as _},
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
    rc::Rc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};

use super::settings;
use crate::{lfs::Guard, pace::Meter};

const OK: c_int = 0;
const FAILED: c_int = -1;
const TIMED_OUT: c_int = libgit2_sys::GIT_TIMEOUT as c_int;
const NET: c_int = libgit2_sys::GIT_ERROR_NET as c_int;
const STANDARD: c_int = 1;
const VERSION: c_int = 1;

/// `git_stream` of libgit2 1.9 (`git2/sys/stream.h`).
#[repr(C)]
struct GitStream {
    version: c_int,
    /// Two bits: encrypted, and able to use a proxy.
    flags: c_uint,
    timeout: c_int,
    connect_timeout: c_int,
    connect: unsafe extern "C" fn(*mut GitStream) -> c_int,
    certificate: Option<unsafe extern "C" fn(*mut *mut c_void, *mut GitStream) -> c_int>,
    set_proxy: Option<unsafe extern "C" fn(*mut GitStream, *const c_void) -> c_int>,
    read: unsafe extern "C" fn(*mut GitStream, *mut c_void, usize) -> isize,
    write: unsafe extern "C" fn(*mut GitStream, *const c_char, usize, c_int) -> isize,
    close: unsafe extern "C" fn(*mut GitStream) -> c_int,
    free: unsafe extern "C" fn(*mut GitStream),
}

/// `git_stream_registration` of libgit2 1.9.
#[repr(C)]
struct Registration {
    version: c_int,
    init: unsafe extern "C" fn(*mut *mut GitStream, *const c_char, *const c_char) -> c_int,
    wrap: Option<unsafe extern "C" fn(*mut *mut GitStream, *mut GitStream, *const c_char) -> c_int>,
}

unsafe extern "C" {
    fn git_stream_register(kind: c_int, registration: *mut Registration) -> c_int;
}

/// A stream of ours. Its first fields are those of libgit2's own `git_socket_stream`, since its
/// ssh transport takes any stream for one and reads the socket from it.
#[repr(C)]
struct Stream {
    parent: GitStream,
    host: *mut c_char,
    port: *mut c_char,
    socket: c_int,
    owned: Owned,
}

struct Owned {
    host: CString,
    port: CString,
    socket: Option<OwnedFd>,
    meter: Option<Rc<RefCell<Meter>>>,
    guard: Option<Guard>,
}

/// A name that libgit2 calls, and the host that it stands for.
pub(super) struct StandIn {
    pub(super) name: String,
    pub(super) host: String,
}

impl StandIn {
    fn of(&self, called: &CStr) -> Option<CString> {
        let is_it = called.to_bytes() == self.name.as_bytes();
        is_it.then(|| CString::new(self.host.as_str()).ok())?
    }
}

thread_local! {
    static STAND_IN: RefCell<Option<StandIn>> = const { RefCell::new(None) };
    static CURRENT: RefCell<Option<Rc<RefCell<Meter>>>> = const { RefCell::new(None) };
    static GUARD: RefCell<Option<Guard>> = const { RefCell::new(None) };
}

/// Does `work`, whose git connections go only where `guard` allows it: the address that is looked
/// at is the one that is connected to. A proxy, which our own environment names, is always allowed.
///
/// Holds for what `work` does on this thread.
pub fn guarded<T>(guard: Guard, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Guard>);
    impl Drop for Restore {
        fn drop(&mut self) {
            GUARD.with(|current| current.replace(self.0.take()));
        }
    }
    let _restore = Restore(GUARD.with(|current| current.replace(Some(guard))));
    work()
}

/// Streams that this thread makes are watched by a meter, and go to the host that is meant, until
/// the value is dropped.
pub(super) struct Watched {
    before: Option<Rc<RefCell<Meter>>>,
    stood_in: Option<StandIn>,
}

impl Watched {
    pub(super) fn by(meter: &Rc<RefCell<Meter>>, stand_in: Option<StandIn>) -> Self {
        Self {
            before: CURRENT.with(|current| current.replace(Some(meter.clone()))),
            stood_in: STAND_IN.with(|current| current.replace(stand_in)),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        CURRENT.with(|current| current.replace(self.before.take()));
        STAND_IN.with(|current| current.replace(self.stood_in.take()));
    }
}

/// Gives libgit2 our sockets in place of its own.
pub(super) fn register() {
    let mut registration = Registration {
        version: VERSION,
        init,
        wrap: None,
    };
    // SAFETY: libgit2 copies the registration, whose layout is that of its version 1.
    if unsafe { git_stream_register(STANDARD, &raw mut registration) } < 0 {
        tracing::warn!("libgit2 does not take our sockets: slow servers are not noticed");
    }
}

unsafe extern "C" fn init(
    out: *mut *mut GitStream,
    host: *const c_char,
    port: *const c_char,
) -> c_int {
    // SAFETY: libgit2 gives two C strings and a place for the result.
    let (called, port) = unsafe { (CStr::from_ptr(host), CStr::from_ptr(port).to_owned()) };
    let meant = STAND_IN.with(|current| current.borrow().as_ref()?.of(called));
    let host = meant.unwrap_or_else(|| called.to_owned());
    let timeouts = settings::timeouts();
    let mut stream = Box::new(Stream {
        parent: GitStream {
            version: VERSION,
            flags: 0,
            timeout: settings::millis(timeouts.answer),
            connect_timeout: settings::millis(timeouts.connect),
            connect,
            certificate: None,
            set_proxy: None,
            read,
            write,
            close,
            free,
        },
        host: ptr::null_mut(),
        port: ptr::null_mut(),
        socket: -1,
        owned: Owned {
            host,
            port,
            socket: None,
            meter: CURRENT.with(|current| current.borrow().clone()),
            guard: GUARD.with(|current| current.borrow().clone()),
        },
    });
    stream.host = stream.owned.host.as_ptr().cast_mut();
    stream.port = stream.owned.port.as_ptr().cast_mut();
    // SAFETY: `parent` is the first field of a `repr(C)` struct; `free` takes it back.
    unsafe { *out = Box::into_raw(stream).cast() };
    OK
}

/// # Safety
///
/// `stream` is one that [`init`] made and [`free`] has not seen, and is used by one thread.
unsafe fn ours<'a>(stream: *mut GitStream) -> &'a mut Stream {
    // SAFETY: see above.
    unsafe { &mut *stream.cast::<Stream>() }
}

unsafe extern "C" fn connect(stream: *mut GitStream) -> c_int {
    // SAFETY: libgit2 calls it with streams of `init`.
    let stream = unsafe { ours(stream) };
    let host = stream.owned.host.to_string_lossy();
    let port = stream
        .owned
        .port
        .to_str()
        .ok()
        .and_then(|port| port.parse::<u16>().ok());
    // An address in brackets is one of IPv6.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let found = port
        .ok_or_else(|| std::io::Error::other("the port is not a number"))
        .and_then(|port| (name, port).to_socket_addrs());
    let addresses = match found {
        Ok(addresses) => addresses,
        Err(error) => return fail(&format!("failed to resolve address for {host}: {error}")),
    };
    let timeout = Duration::from_millis(stream.parent.connect_timeout.max(1) as u64);
    let guard = stream.owned.guard.as_deref();
    let guard = guard.filter(|_| !port.is_some_and(|port| is_proxy(name, port)));
    let mut last = "it has no address that may be called".to_owned();
    for address in addresses {
        if guard.is_some_and(|allows| !allows(name, address.ip())) {
            continue;
        }
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => {
                let _ = sockopt::set_socket_keepalive(&socket, true);
                let _ = sockopt::set_tcp_keepidle(&socket, Duration::from_mins(1));
                let _ = sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10));
                let _ = sockopt::set_tcp_keepcnt(&socket, 3);
                if let Err(error) = socket.set_nonblocking(true) {
                    return fail(&format!("failed to connect to {host}: {error}"));
                }
                stream.socket = socket.as_raw_fd();
                stream.owned.socket = Some(socket.into());
                return OK;
            }
            Err(error) => last = error.to_string(),
        }
    }
    fail(&format!("failed to connect to {host}: {last}"))
}

/// Whether the environment names a proxy there, as libgit2 reads it.
fn is_proxy(host: &str, port: u16) -> bool {
    ["http_proxy", "https_proxy", "all_proxy"]
        .into_iter()
        .flat_map(|name| [name.to_owned(), name.to_ascii_uppercase()])
        .filter_map(|name| std::env::var(name).ok())
        .filter_map(|proxy| url::Url::parse(&proxy).ok())
        .any(|proxy| {
            let named = proxy.host_str().map(|h| h.trim_matches(['[', ']']));
            named == Some(host) && proxy.port_or_known_default() == Some(port)
        })
}

unsafe extern "C" fn read(stream: *mut GitStream, data: *mut c_void, len: usize) -> isize {
    // SAFETY: libgit2 calls it with streams of `init` and a buffer of `len` bytes.
    let (stream, buffer) = unsafe {
        // The buffer may be uninitialised for Rust, so it is made plain first.
        ptr::write_bytes(data.cast::<u8>(), 0, len);
        (
            ours(stream),
            std::slice::from_raw_parts_mut(data.cast::<u8>(), len),
        )
    };
    transfer(stream, PollFlags::IN, "read from", |socket| {
        recv(socket, &mut *buffer, RecvFlags::empty()).map(|(_, read)| read)
    })
}

unsafe extern "C" fn write(
    stream: *mut GitStream,
    data: *const c_char,
    len: usize,
    _flags: c_int,
) -> isize {
    // SAFETY: libgit2 calls it with streams of `init` and `len` bytes.
    let (stream, bytes) = unsafe {
        (
            ours(stream),
            std::slice::from_raw_parts(data.cast::<u8>(), len),
        )
    };
    transfer(stream, PollFlags::OUT, "write to", |socket| {
        send(socket, bytes, SendFlags::NOSIGNAL)
    })
}

/// Tries, and waits as long as it may be waited.
fn transfer(
    stream: &mut Stream,
    what: PollFlags,
    name: &str,
    mut act: impl FnMut(&OwnedFd) -> rustix::io::Result<usize>,
) -> isize {
    let Some(socket) = &stream.owned.socket else {
        return fail("the socket is closed") as isize;
    };
    let begin = Instant::now();
    // Until when the meter knows of the wait.
    let mut told = begin;
    let patience = Duration::from_millis(stream.parent.timeout.max(1) as u64);
    let meter = stream.owned.meter.as_deref();
    loop {
        match act(socket) {
            Ok(bytes) => {
                let slow = meter.and_then(|meter| {
                    let mut meter = meter.borrow_mut();
                    meter.waited(told.elapsed(), bytes as u64).err()
                });
                return match slow {
                    Some(slow) => fail_with(&slow.to_string(), TIMED_OUT) as isize,
                    None => bytes as isize,
                };
            }
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {}
            Err(error) => return fail(&format!("cannot {name} the socket: {error}")) as isize,
        }
        let waited = begin.elapsed();
        let bearable = meter.map_or(Duration::MAX, |meter| meter.borrow().left());
        if told.elapsed() >= bearable {
            let slow = meter.and_then(|meter| {
                let mut meter = meter.borrow_mut();
                meter.waited(told.elapsed(), 0).err()
            });
            if let Some(slow) = slow {
                return fail_with(&slow.to_string(), TIMED_OUT) as isize;
            }
            // What came before made up for it.
            told = Instant::now();
            continue;
        }
        let Some(left) = patience.checked_sub(waited).filter(|left| !left.is_zero()) else {
            return fail_with(
                &format!("could not {name} the socket: timed out"),
                TIMED_OUT,
            ) as isize;
        };
        let left = left
            .min(bearable.saturating_sub(told.elapsed()))
            .max(Duration::from_millis(1));
        let timeout = Timespec::try_from(left).ok();
        // What it says shows at the next attempt.
        let _ = poll(&mut [PollFd::new(socket, what)], timeout.as_ref());
    }
}

unsafe extern "C" fn close(stream: *mut GitStream) -> c_int {
    // SAFETY: libgit2 calls it with streams of `init`.
    let stream = unsafe { ours(stream) };
    stream.socket = -1;
    stream.owned.socket = None;
    OK
}

unsafe extern "C" fn free(stream: *mut GitStream) {
    // SAFETY: `init` made it by `Box::into_raw`, and libgit2 frees it once.
    drop(unsafe { Box::from_raw(stream.cast::<Stream>()) });
}

fn fail(text: &str) -> c_int {
    fail_with(text, FAILED)
}

/// Tells libgit2 what went wrong.
fn fail_with(text: &str, code: c_int) -> c_int {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // SAFETY: libgit2 copies the C string.
    unsafe { libgit2_sys::git_error_set_str(NET, text.as_ptr()) };
    code
}
