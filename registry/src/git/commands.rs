//! What a push asks for, read before git sees it.

use std::{collections::HashSet, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use crate::refusal::Refusal;

/// Longest list of refs in one push: some 100,000.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// The commands of a push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Commands {
    pub(super) list: Vec<Command>,
    /// `shallow` lines, which stand before the commands.
    shallow: Vec<Vec<u8>>,
    /// What the client can do, behind the first command.
    capabilities: Vec<u8>,
    names: HashSet<String>,
}

/// What is to become of one ref.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// What the client believes that it names; git refuses the command if it does not.
    pub(super) old: String,
    pub(super) new: String,
    pub(super) name: String,
}

/// The kinds of commands that can be told apart without the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Create,
    /// Forward, or to anything else: that is known when the objects are here.
    Move,
    Delete,
}

impl Command {
    pub(super) fn change(&self) -> Change {
        let none = |id: &str| id.bytes().all(|byte| byte == b'0');
        match (none(&self.old), none(&self.new)) {
            (_, true) => Change::Delete,
            (true, false) => Change::Create,
            (false, false) => Change::Move,
        }
    }
}

impl Commands {
    /// Whether the client can do `capability`.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.capabilities
            .split(|byte| *byte == b' ')
            .any(|word| word == capability.as_bytes())
    }

    /// The commands as they go to git, those alone that `keep` lets through.
    pub(super) fn written(&self, keep: impl Fn(&Command) -> bool) -> Bytes {
        let mut out = Vec::new();
        for line in &self.shallow {
            packet(&mut out, line);
        }
        for (index, command) in self.list.iter().filter(|c| keep(c)).enumerate() {
            let Command { old, new, name } = command;
            let mut line = format!("{old} {new} {name}").into_bytes();
            if index == 0 && !self.capabilities.is_empty() {
                line.push(0);
                line.extend(&self.capabilities);
            }
            packet(&mut out, &line);
        }
        out.extend(b"0000");
        out.into()
    }

    /// Takes the next line.
    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.starts_with(b"shallow ") {
            self.shallow.push(line.to_owned());
            return Ok(());
        }
        if line.starts_with(b"push-cert") {
            return Err("signed pushes are not taken");
        }
        let mut parts = line.splitn(2, |byte| *byte == 0);
        let command = parts.next().unwrap_or_default();
        if let Some(capabilities) = parts.next() {
            if !self.list.is_empty() {
                return Err("capabilities stand behind the first ref alone");
            }
            capabilities.clone_into(&mut self.capabilities);
        }
        let command = std::str::from_utf8(command).map_err(|_| "the name of a ref is not UTF-8")?;
        let mut words = command.splitn(3, ' ');
        let (Some(old), Some(new), Some(name)) = (words.next(), words.next(), words.next()) else {
            return Err("a line of the push is no command");
        };
        let is_id = |id: &str| {
            id.len() == 40
                && id
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        if !is_id(old) || !is_id(new) {
            return Err("a line of the push names no commits");
        }
        // Git's report has a line for each ref; two for one name could not be told apart.
        if name.chars().any(char::is_control) || !self.names.insert(name.to_owned()) {
            return Err("a ref stands in the push twice or with control characters");
        }
        self.list.push(Command {
            old: old.to_owned(),
            new: new.to_owned(),
            name: name.to_owned(),
        });
        Ok(())
    }
}

/// Writes a line as git's protocol does.
pub(super) fn packet(out: &mut Vec<u8>, line: &[u8]) {
    out.extend(format!("{:04x}", line.len() + 4).into_bytes());
    out.extend(line);
}

/// The length of the packet that begins here, with its four digits; 0 for a flush. `None` if the
/// digits are not all here, an error if they are none.
pub(super) fn packet_length(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let Some(digits) = bytes.get(..4) else {
        return Ok(None);
    };
    let length = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|text| usize::from_str_radix(text, 16).ok());
    match length {
        Some(0) => Ok(Some(0)),
        Some(length @ 4..) => Ok(Some(length)),
        _ => Err("a length of git's protocol cannot be read"),
    }
}

/// Reads the commands at the beginning of a push. Returns them with the rest of the body.
///
/// Each part of it has to come within `patience`.
pub(super) async fn read(body: Body, patience: Duration) -> Result<(Commands, Body), Refusal> {
    let mut stream = body.into_data_stream();
    let (mut buffer, mut commands) = (BytesMut::new(), Commands::default());
    let mut taken = 0;
    loop {
        let length = packet_length(&buffer).map_err(Refusal::bad_request)?;
        match length {
            Some(0) => {
                let rest = buffer.split_off(4).freeze();
                let rest = futures::stream::iter((!rest.is_empty()).then_some(Ok(rest)));
                return Ok((commands, Body::from_stream(rest.chain(stream))));
            }
            Some(length) if buffer.len() >= length => {
                let line = buffer.split_to(length);
                taken += length;
                commands.line(&line[4..]).map_err(Refusal::bad_request)?;
                continue;
            }
            _ => {}
        }
        if taken + buffer.len() > MAX_BYTES {
            return Err(Refusal::bad_request("the push names too many refs"));
        }
        match tokio::time::timeout(patience, stream.next()).await {
            Ok(Some(Ok(chunk))) => buffer.extend_from_slice(&chunk),
            Ok(Some(Err(_)) | None) => {
                return Err(Refusal::bad_request(
                    "the push breaks off before its refs end",
                ));
            }
            Err(_) => return Err(Refusal::busy("the push sent nothing for too long")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const NONE: &str = "0000000000000000000000000000000000000000";

    fn push(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            packet(&mut out, line.as_bytes());
        }
        out.extend(b"0000");
        out
    }

    async fn read_in_parts(bytes: &[u8], part: usize) -> Result<(Commands, Vec<u8>), Refusal> {
        let parts: Vec<_> = bytes
            .chunks(part)
            .map(|part| Ok::<_, std::io::Error>(Bytes::copy_from_slice(part)))
            .collect();
        let body = Body::from_stream(futures::stream::iter(parts));
        let (commands, rest) = read(body, Duration::from_secs(20)).await?;
        let rest = axum::body::to_bytes(rest, usize::MAX).await.unwrap();
        Ok((commands, rest.to_vec()))
    }

    #[tokio::test]
    async fn commands_are_read_and_written_back_as_they_came() {
        let first = format!("{NONE} {A} refs/heads/a\0 report-status side-band-64k");
        let second = format!("{A} {NONE} refs/tags/b");
        let bytes = push(&[&format!("shallow {A}"), &first, &second]);
        let whole = [&bytes[..], b"PACK and more"].concat();
        for part in [1, 7, 1000] {
            let (commands, rest) = read_in_parts(&whole, part).await.unwrap();
            assert_eq!(rest, b"PACK and more");
            assert_eq!(commands.written(|_| true), bytes);
            let changes: Vec<_> = commands.list.iter().map(Command::change).collect();
            assert_eq!(changes, [Change::Create, Change::Delete]);
            assert!(commands.has("side-band-64k") && !commands.has("atomic"));
        }
    }

    #[tokio::test]
    async fn what_the_client_can_do_stays_when_its_first_ref_goes() {
        let first = format!("{NONE} {A} refs/heads/a\0 report-status");
        let second = format!("{NONE} {A} refs/heads/b");
        let (commands, _) = read_in_parts(&push(&[&first, &second]), 9).await.unwrap();
        let written = commands.written(|command| command.name.ends_with('b'));
        let expected = push(&[&format!("{NONE} {A} refs/heads/b\0 report-status")]);
        assert_eq!(written, expected);
    }

    #[tokio::test]
    async fn a_probe_is_passed_on() {
        let (commands, rest) = read_in_parts(b"0000", 4).await.unwrap();
        assert_eq!((commands.list.len(), rest.len()), (0, 0));
        assert_eq!(commands.written(|_| true), b"0000".as_slice());
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let twice = format!("{NONE} {A} refs/heads/a");
        for wrong in [
            push(&["hello"]),
            push(&[&format!("{A} {A}")]),
            push(&[&format!("{} {A} refs/heads/a", &A[1..])]),
            push(&["push-cert\0x"]),
            push(&[&twice, &twice]),
            push(&[&format!("{NONE} {A} refs/heads/a\rb")]),
            b"00".to_vec(),
            b"0003".to_vec(),
            b"+004".to_vec(),
            b"zzzz".to_vec(),
            Vec::new(),
        ] {
            assert!(read_in_parts(&wrong, 1000).await.is_err(), "{wrong:?}");
        }
    }
}
