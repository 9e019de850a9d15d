//! DNS on both sides: finds a Service for the relays, and lets the cluster's DNS server ask the
//! host's.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Questions to the host's server that may wait at once.
const MOST_WAITING: usize = 256;

/// Asks `server` for the first IPv4 address of `name`. Waits a second at most.
pub(crate) fn lookup(server: SocketAddr, name: &str) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(server).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    socket.send(&question(name)).ok()?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer).ok()?;
    first_address(&answer[..length])
}

fn question(name: &str) -> Vec<u8> {
    // Number, "recursion desired", one question.
    let mut message = vec![0x68, 0x73, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|l| !l.is_empty()) {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    // The root, type A, class IN.
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

fn first_address(message: &[u8]) -> Option<Ipv4Addr> {
    let count = |at: usize| {
        Some(u16::from_be_bytes(
            message.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let mut at = 12;
    for _ in 0..count(4)? {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..count(6)? {
        at = skip_name(message, at)?;
        let (kind, length) = (count(at)?, usize::from(count(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == 1 {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    None
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

/// The host's first IPv4 name server.
pub(crate) fn host_server() -> Option<SocketAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").ok()?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok())
        .map(|ip| SocketAddr::new(IpAddr::V4(ip), 53))
        .next()
}

/// Passes questions that arrive at `socket`, which was made in the cluster's namespace, to the
/// host's server; runs in the host's namespace until the socket fails.
pub(crate) fn forward(socket: UdpSocket) -> io::Result<()> {
    let socket = Arc::new(socket);
    let waiting = Arc::new(AtomicUsize::new(0));
    let mut message = [0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut message) {
            Ok(received) => received,
            // The asker of an earlier question is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        if waiting.load(Ordering::Relaxed) >= MOST_WAITING {
            continue;
        }
        waiting.fetch_add(1, Ordering::Relaxed);
        let (question, socket, waiting) =
            (message[..length].to_vec(), socket.clone(), waiting.clone());
        let spawned = thread::Builder::new().stack_size(64 * 1024).spawn({
            let waiting = waiting.clone();
            move || {
                if let Some(answer) = ask_host(&question) {
                    let _ = socket.send_to(&answer, client);
                }
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
        });
        if spawned.is_err() {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn ask_host(question: &[u8]) -> Option<Vec<u8>> {
    let host = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    host.connect(host_server()?).ok()?;
    host.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    host.send(question).ok()?;
    let mut answer = vec![0; 4096];
    let length = host.recv(&mut answer).ok()?;
    answer.truncate(length);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_behind_compressed_names_and_other_records() {
        let mut answer = question("a.example");
        answer[7] = 2;
        // A CNAME, then an A record, both of the name in the question.
        answer.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 96, 0, 7]);
        assert_eq!(first_address(&answer), Some(Ipv4Addr::new(10, 96, 0, 7)));
    }

    #[test]
    fn a_cut_or_empty_answer_gives_nothing() {
        let whole = question("a.example");
        assert_eq!(first_address(&whole), None);
        for cut in 0..whole.len() {
            assert_eq!(first_address(&whole[..cut]), None);
        }
    }
}
