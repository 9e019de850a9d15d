//! What lines of known_hosts say of one host (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac as _};
use sha1::Sha1;

/// The kinds of key that libgit2 asks for.
pub(super) const KINDS: [&str; 5] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
];

/// The keys of one host. There is at least one of a kind that can be asked for.
#[derive(Debug)]
pub(super) struct KnownHosts {
    trusted: Vec<(&'static str, Vec<u8>)>,
    revoked: Vec<Vec<u8>>,
}

enum Marker {
    None,
    Revoked,
    Authority,
}

struct Line<'a> {
    number: usize,
    marker: Marker,
    names: &'a str,
    kind: &'a str,
    key: &'a str,
}

impl KnownHosts {
    /// Reads the lines that name the host, by `[host]:port` and, where none does so, by the host
    /// alone; or says why no key can be trusted.
    pub(super) fn read(text: &str, host: &str, port: Option<u16>) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("no known_hosts were given, so no host key can be checked".to_owned());
        }
        let lines: Vec<Line<'_>> = text
            .lines()
            .enumerate()
            .filter_map(|(at, line)| parse(at + 1, line).transpose())
            .collect::<Result<_, _>>()?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let with_port = port.map(|port| format!("[{host}]:{port}"));
        let names = |line: &&Line<'_>, name: &str| is_named(line.names, name);
        let mut naming_it: Vec<&Line<'_>> = Vec::new();
        if let Some(name) = &with_port {
            naming_it.extend(lines.iter().filter(|line| names(line, name)));
        }
        // A key that was revoked for the host is so for all of its ports.
        let by_port = !naming_it.is_empty();
        let by_host = lines.iter().filter(|line| names(line, host));
        naming_it.extend(by_host.filter(|line| !by_port || line.is_revoked()));
        let (mut trusted, mut revoked, mut other) = (Vec::new(), Vec::new(), None);
        for line in naming_it {
            let key = STANDARD.decode(line.key).map_err(|_| {
                let number = line.number;
                format!("the key in line {number} of known_hosts is not in base64")
            })?;
            let kind = KINDS.iter().find(|kind| **kind == line.kind);
            match (&line.marker, kind) {
                (Marker::Revoked, _) => revoked.push(key),
                (Marker::None, Some(kind)) => trusted.push((*kind, key)),
                (Marker::None, None) => other = Some(line.kind),
                (Marker::Authority, _) => other = Some("@cert-authority"),
            }
        }
        if trusted.is_empty() {
            let what = with_port.as_deref().unwrap_or(host);
            return Err(match other {
                Some(other) => format!(
                    "known_hosts has only {other} for {what}, which is not supported: add a line \
                     with {}",
                    KINDS.join(" or ")
                ),
                None => format!("known_hosts has no key for {what}"),
            });
        }
        Ok(Self { trusted, revoked })
    }

    /// The kinds of the trusted keys, a bit for each of [`KINDS`].
    pub(super) fn kinds(&self) -> u8 {
        let has = |kind: &&str| self.trusted.iter().any(|(known, _)| known == kind);
        let bits = KINDS.iter().enumerate().filter(|(_, kind)| has(kind));
        bits.fold(0, |set, (bit, _)| set | 1 << bit)
    }

    /// Whether the key, as it stands in the protocol, is trusted; and if not, why.
    pub(super) fn check(&self, shown: &[u8]) -> Result<(), String> {
        if self.revoked.iter().any(|key| key == shown) {
            return Err("its host key is marked as revoked in known_hosts".to_owned());
        }
        if self.trusted.iter().any(|(_, key)| key == shown) {
            return Ok(());
        }
        Err("its host key is not the one in known_hosts".to_owned())
    }
}

impl Line<'_> {
    fn is_revoked(&self) -> bool {
        matches!(self.marker, Marker::Revoked)
    }
}

/// `None` for a line that says nothing.
fn parse(number: usize, line: &str) -> Result<Option<Line<'_>>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut words = line.split_whitespace().peekable();
    let marker = match words.next_if(|word| word.starts_with('@')) {
        None => Marker::None,
        Some("@revoked") => Marker::Revoked,
        Some("@cert-authority") => Marker::Authority,
        Some(other) => {
            return Err(format!(
                "line {number} of known_hosts begins with {other:?}, which is neither @revoked \
                 nor @cert-authority"
            ));
        }
    };
    match (words.next(), words.next(), words.next()) {
        (Some(names), Some(kind), Some(key)) => Ok(Some(Line {
            number,
            marker,
            names,
            kind,
            key,
        })),
        _ => Err(format!(
            "line {number} of known_hosts is not a host, a kind of key and a key"
        )),
    }
}

/// Whether the first field of a line, patterns or a hash, names `name`.
fn is_named(names: &str, name: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        return is_hash_of(hashed, name) == Some(true);
    }
    let mut is_named = false;
    for pattern in names.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if is_match(pattern.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => is_named |= is_match(pattern.as_bytes(), name.as_bytes()),
        }
    }
    is_named
}

fn is_hash_of(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let (salt, hash) = (STANDARD.decode(salt).ok()?, STANDARD.decode(hash).ok()?);
    let mut mac = Hmac::<Sha1>::new_from_slice(&salt).ok()?;
    mac.update(name.as_bytes());
    Some(mac.verify_slice(&hash).is_ok())
}

/// Patterns with `*` and `?`, in any case.
fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on when what follows the last star did not match.
    let (mut at, mut from, mut retry) = (0, 0, None);
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || byte.eq_ignore_ascii_case(&name[from]) => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((after, begun)) = retry else {
                    return false;
                };
                retry = Some((after, begun + 1));
                (at, from) = (after, begun + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASHED: &str = "|1|zIwSqTjzbW4yZgZb7uvqdofwtGM=|L8ziotrlkEAMCjlJNVaFc7jtgdA=";
    const HASHED_PORT: &str = "|1|Ggbv3rOmTuv+aj4cLiLbMrKjRPE=|IYAiGxZ5XSZVPBEct1hw1nqTZGA=";

    /// What is known of `host` if `known_hosts` has `names` before the key "key".
    #[track_caller]
    fn check(names: &str, host: &str, port: Option<u16>, expected: bool) {
        let text = format!("# comment\n\n{names} ssh-ed25519 a2V5 someone\n");
        let known = KnownHosts::read(&text, host, port);
        let is_trusted = known.is_ok_and(|known| known.check(b"key").is_ok());
        assert_eq!(is_trusted, expected, "{names} for {host} {port:?}");
    }

    #[test]
    fn hosts_are_named_as_ssh_names_them() {
        for (names, host, port, expected) in [
            ("host", "host", None, true),
            ("HOST", "host", None, true),
            ("host", "host2", None, false),
            ("other,host", "host", None, true),
            ("host", "host", Some(2222), true),
            ("[host]:2222", "host", Some(2222), true),
            ("[host]:2222", "host", Some(2223), false),
            ("[host]:2222", "host", None, false),
            ("[host]:22", "host", None, false),
            ("::1", "[::1]", None, true),
            ("[::1]:2222", "[::1]", Some(2222), true),
            ("*.example.org", "git.example.org", None, true),
            ("*.example.org", "example.org", None, false),
            ("h?st", "host", None, true),
            ("*a*b", "xaxbab", None, true),
            ("*,!host", "host", None, false),
            ("!host,*", "other", None, true),
            ("!other", "host", None, false),
            ("", "host", None, false),
            // ssh-keygen -H of "host" and of "[host]:2222".
            (HASHED, "host", None, true),
            (HASHED, "host", Some(2222), true),
            (HASHED, "hosts", None, false),
            (HASHED_PORT, "host", Some(2222), true),
            (HASHED_PORT, "host", None, false),
            ("|1|x|y", "host", None, false),
            ("|1|", "host", None, false),
        ] {
            check(names, host, port, expected);
        }
    }

    #[test]
    fn a_line_with_the_port_is_all_that_counts_for_it() {
        let text = "[host]:2222 ssh-ed25519 b3RoZXI=\nhost ssh-ed25519 a2V5\n";
        let known = KnownHosts::read(text, "host", Some(2222)).unwrap();
        assert!(known.check(b"other").is_ok());
        assert!(known.check(b"key").is_err());
    }

    #[test]
    fn the_kinds_that_are_known_are_asked_for() {
        let kinds = |text: &str| KnownHosts::read(text, "host", None).unwrap().kinds();
        assert_eq!(kinds("host ssh-ed25519 a2V5"), 1);
        assert_eq!(
            kinds("host ssh-rsa a2V5\nhost ecdsa-sha2-nistp256 a2V5"),
            18
        );
        assert_eq!(kinds("host ssh-rsa a2V5\nhost ssh-dss a2V5"), 16);
        assert_eq!(
            kinds("host ssh-rsa a2V5\n@revoked host ssh-ed25519 a2V6"),
            16
        );
    }

    #[test]
    fn what_cannot_be_trusted_is_told() {
        for (text, expected) in [
            ("", "no known_hosts were given"),
            ("# host\n", "has no key for host"),
            ("other ssh-rsa a2V5", "has no key for host"),
            ("host ssh-dss a2V5", "only ssh-dss for host"),
            (
                "@cert-authority host ssh-rsa a2V5",
                "only @cert-authority for host",
            ),
            (
                "@other host ssh-rsa a2V5",
                "line 1 of known_hosts begins with \"@other\"",
            ),
            ("# x\nhost", "line 2 of known_hosts is not a host"),
            ("host ssh-rsa ???", "the key in line 1 of known_hosts"),
        ] {
            let why = KnownHosts::read(text, "host", None).unwrap_err();
            assert!(why.contains(expected), "{text:?}: {why}");
        }
        for (name, port) in [("*", None), ("*", Some(2222)), ("[host]:2222", Some(2222))] {
            let text = format!("{name} ssh-rsa a2V5\n@revoked host ssh-rsa a2V5");
            let known = KnownHosts::read(&text, "host", port).unwrap();
            assert!(known.check(b"key").unwrap_err().contains("revoked"));
        }
    }
}
