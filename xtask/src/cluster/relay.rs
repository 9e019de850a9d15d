//! Passes TCP connections from one network namespace to another.
//!
//! A socket belongs to the namespace that its thread was in when it was made. So the listener is
//! made in one namespace, and the relay's thread, which connects onwards, runs in another: the
//! host reaches the ingress, the API server and the registry, and pods reach the world, without a
//! link, a route or a rule on the host. One thread serves all connections of a relay.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{SocketAddr, SocketAddrV4, TcpListener},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt},
};

/// Bytes that wait in one direction at most.
const BUFFER_BYTES: usize = 64 * 1024;
/// Token of the listener.
const LISTENER: u64 = 0;

/// Where a connection goes on to.
pub(crate) enum Target {
    /// To one address.
    Fixed(SocketAddrV4),
    /// To where it was going when a firewall rule redirected it here.
    Original,
    /// To what the function says at the time.
    Lookup(Box<dyn Fn() -> Option<SocketAddrV4> + Send>),
}

/// Serves until the listener fails. Runs in the namespace that it connects onwards in.
pub(crate) fn serve(listener: &TcpListener, target: &Target) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut next = 1;
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let token = event.data.u64();
            if token == LISTENER {
                accept(listener, target, &epoll, &mut connections, &mut next)?;
                continue;
            }
            let (id, side) = (token >> 1, (token & 1) as usize);
            let Some(connection) = connections.get_mut(&id) else {
                continue;
            };
            if connection.step(side, event.flags).is_err()
                || connection.is_over()
                || connection.watch(&epoll, id).is_err()
            {
                // Closing the descriptors takes them out of the epoll set.
                connections.remove(&id);
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    target: &Target,
    epoll: &OwnedFd,
    connections: &mut HashMap<u64, Connection>,
    next: &mut u64,
) -> io::Result<()> {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return Ok(()),
                // One client that is gone already, or no descriptors at the moment.
                _ if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
                    eprintln!(
                        "relay: out of file descriptors, {} connections",
                        connections.len()
                    );
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    return Ok(());
                }
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => continue,
                _ => return Err(error),
            },
        };
        let address = match target {
            Target::Fixed(address) => Some(*address),
            Target::Original => sockopt::ip_original_dst(&client).ok(),
            Target::Lookup(lookup) => lookup(),
        };
        let Some(address) = address else { continue };
        let Ok(server) = connect(address) else {
            continue;
        };
        if client.set_nonblocking(true).is_err() {
            continue;
        }
        let _ = client.set_nodelay(true);
        let id = *next;
        *next += 1;
        let mut connection = Connection::new(client.into(), server);
        if connection.register(epoll, id).is_ok() {
            connections.insert(id, connection);
        }
    }
}

fn connect(address: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &SocketAddr::V4(address)) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// A client's socket (side 0) and the one onwards (side 1).
struct Connection {
    sockets: [OwnedFd; 2],
    /// What was read from a side and is not yet written to the other.
    buffers: [Buffer; 2],
    watched: [EventFlags; 2],
    /// Sides that are closed in both directions. They are no longer watched, for they would be
    /// reported without end while the other side takes its time.
    gone: [bool; 2],
    connected: bool,
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    /// The side that is read from said that nothing more comes.
    ended: bool,
    /// The other side was told.
    told: bool,
}

impl Buffer {
    fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn is_full(&self) -> bool {
        self.bytes.len() - self.start >= BUFFER_BYTES
    }
}

impl Connection {
    fn new(client: OwnedFd, server: OwnedFd) -> Self {
        Self {
            sockets: [client, server],
            buffers: [Buffer::default(), Buffer::default()],
            watched: [EventFlags::empty(); 2],
            gone: [false; 2],
            connected: false,
        }
    }

    fn register(&mut self, epoll: &OwnedFd, id: u64) -> Result<(), Errno> {
        for side in 0..2 {
            let flags = self.wanted(side);
            let data = EventData::new_u64(id << 1 | side as u64);
            epoll::add(epoll, self.sockets[side].as_fd(), data, flags)?;
            self.watched[side] = flags;
        }
        Ok(())
    }

    fn watch(&mut self, epoll: &OwnedFd, id: u64) -> Result<(), Errno> {
        for side in 0..2 {
            if self.gone[side] {
                if self.watched[side] != EventFlags::ONESHOT {
                    epoll::delete(epoll, self.sockets[side].as_fd())?;
                    self.watched[side] = EventFlags::ONESHOT;
                }
                continue;
            }
            let flags = self.wanted(side);
            if flags != self.watched[side] {
                let data = EventData::new_u64(id << 1 | side as u64);
                epoll::modify(epoll, self.sockets[side].as_fd(), data, flags)?;
                self.watched[side] = flags;
            }
        }
        Ok(())
    }

    fn wanted(&self, side: usize) -> EventFlags {
        let mut flags = EventFlags::empty();
        if side == 1 && !self.connected {
            return EventFlags::OUT;
        }
        if !self.buffers[side].ended && !self.buffers[side].is_full() {
            flags |= EventFlags::IN;
        }
        if !self.buffers[1 - side].waiting().is_empty() {
            flags |= EventFlags::OUT;
        }
        flags
    }

    /// Does what the event allows. An error ends the connection on both sides.
    fn step(&mut self, side: usize, flags: EventFlags) -> Result<(), Errno> {
        if flags.contains(EventFlags::ERR) {
            return Err(Errno::CONNRESET);
        }
        if side == 1 && !self.connected {
            if !flags.intersects(EventFlags::OUT | EventFlags::HUP) {
                return Ok(());
            }
            sockopt::socket_error(&self.sockets[1])??;
            self.connected = true;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP) {
            self.gone[side] |= flags.contains(EventFlags::HUP);
            self.read(side)?;
            if self.connected {
                self.write(1 - side)?;
            }
        }
        if flags.contains(EventFlags::OUT) && self.connected {
            self.write(side)?;
        }
        Ok(())
    }

    fn read(&mut self, side: usize) -> Result<(), Errno> {
        let buffer = &mut self.buffers[side];
        // What a closed socket still holds is bounded by the kernel and will not be told of again.
        while !buffer.ended && (self.gone[side] || !buffer.is_full()) {
            if buffer.start > 0 {
                buffer.bytes.drain(..buffer.start);
                buffer.start = 0;
            }
            let used = buffer.bytes.len();
            buffer
                .bytes
                .resize((used + 1).next_multiple_of(BUFFER_BYTES), 0);
            let result = rustix::io::read(&self.sockets[side], &mut buffer.bytes[used..]);
            buffer.bytes.truncate(used + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => buffer.ended = true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes to `side` what came from the other.
    fn write(&mut self, side: usize) -> Result<(), Errno> {
        let buffer = &mut self.buffers[1 - side];
        while !buffer.waiting().is_empty() {
            match rustix::net::send(
                &self.sockets[side],
                buffer.waiting(),
                rustix::net::SendFlags::NOSIGNAL,
            ) {
                Ok(count) => buffer.start += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // An idle connection keeps no memory.
        *buffer = Buffer {
            ended: buffer.ended,
            told: buffer.told,
            ..Buffer::default()
        };
        if buffer.ended && !buffer.told {
            buffer.told = true;
            match rustix::net::shutdown(&self.sockets[side], Shutdown::Write) {
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.buffers.iter().all(|b| b.told)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        thread,
    };

    use super::*;

    fn relay_to(address: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let SocketAddr::V4(address) = address else {
            unreachable!()
        };
        thread::spawn(move || serve(&listener, &Target::Fixed(address)));
        at
    }

    #[test]
    fn a_large_exchange_passes_unchanged_and_a_half_close_is_passed_on() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = relay_to(server.local_addr().unwrap());
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let echo = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let mut client = TcpStream::connect(relay).unwrap();
        client.write_all(&sent).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == sent);
        echo.join().unwrap();
    }

    #[test]
    fn a_refused_connection_closes_the_client() {
        let closed = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut client = TcpStream::connect(relay_to(closed)).unwrap();
        assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)));
    }

    #[test]
    fn a_client_that_goes_away_ends_the_connection_onwards() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(relay_to(server.local_addr().unwrap())).unwrap();
        let (mut stream, _) = server.accept().unwrap();
        drop(client);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}
