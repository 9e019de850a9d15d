//! A small ssh server (RFC 4252 to 4254) that runs the stock git for those who have a key: one kind
//! of key exchange and of cipher, one command for each connection. Tests need no sshd with it, and
//! can see what it saw.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Error, Read, Result, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_git2db::{Credentials, RemoteUrl};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral},
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
        RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA512, RsaKeyPair, RsaPublicKeyComponents,
    },
};

const BANNER: &str = "SSH-2.0-hyprstream_test";
/// Most bytes of one message's data.
const MAX_DATA: usize = 32 << 10;
const WINDOW: u32 = 1 << 30;

/// A running server, with a folder of keys that `ssh-keygen` made.
pub struct SshServer {
    dir: tempfile::TempDir,
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    host_keys: HashMap<&'static str, HostKey>,
    /// The keys that are let in, as they stand in the protocol.
    allowed: Vec<Vec<u8>>,
    accepted: AtomicUsize,
}

struct HostKey {
    public: Vec<u8>,
    private: Private,
}

enum Private {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

fn keygen(path: &Path, args: &[&str]) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-f"])
        .arg(path)
        .args(args)
        .stdin(Stdio::null())
        .status()
        .expect("ssh-keygen is needed (apt-get install openssh-client)");
    assert!(status.success());
}

impl SshServer {
    /// A server with host keys `host_ed25519`, `host_ecdsa` and `host_rsa`, which lets `user`,
    /// `user_locked` and `user_rsa` in, and not `stranger`.
    pub fn start() -> Self {
        Self::with_host_keys(&["host_ed25519", "host_ecdsa", "host_rsa"])
    }

    /// The same with these host keys alone.
    pub fn with_host_keys(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        keygen(&at("host_ed25519"), &["-t", "ed25519", "-N", ""]);
        keygen(&at("host_ecdsa"), &["-t", "ecdsa", "-N", ""]);
        let rsa = ["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""];
        keygen(&at("host_rsa"), &rsa);
        keygen(&at("user"), &["-t", "ed25519", "-N", ""]);
        keygen(&at("user_locked"), &["-t", "ed25519", "-N", "open sesame"]);
        keygen(&at("user_rsa"), &rsa);
        keygen(&at("stranger"), &["-t", "ed25519", "-N", ""]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            host_keys: names.iter().map(|name| host_key(&at(name))).collect(),
            allowed: ["user", "user_locked", "user_rsa"]
                .map(|name| public(&at(name)))
                .to_vec(),
            accepted: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        // It waits for connections until the process ends.
        thread::spawn(move || {
            for socket in listener.incoming() {
                let shared = Arc::clone(&serving);
                // A client that goes away is no matter.
                thread::spawn(move || serve(socket?, &shared));
            }
        });
        Self { dir, port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How `repo`, a path on this machine, is called.
    pub fn url(&self, repo: &Path) -> RemoteUrl {
        let text = format!("ssh://git@127.0.0.1:{}{}", self.port, repo.display());
        RemoteUrl::parse(&text).unwrap()
    }

    /// A line of known_hosts that has this host key for the server.
    pub fn known_hosts(&self, key: &str) -> String {
        let key = self.read(&format!("{key}.pub"));
        format!("[127.0.0.1]:{} {key}", self.port)
    }

    /// The key of a user, and the host keys that it trusts.
    pub fn credentials(&self, key: &str, known_hosts: String) -> Credentials {
        Credentials::SshKey {
            private_key: self.read(key),
            passphrase: None,
            known_hosts,
        }
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// How often a key was let in.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// A file of a key, or with `.pub` of its public half.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

/// The public half of a key, as it stands in the protocol.
fn public(path: &Path) -> Vec<u8> {
    let line = fs::read_to_string(path.with_extension("pub")).unwrap();
    STANDARD.decode(line.split(' ').nth(1).unwrap()).unwrap()
}

fn host_key(path: &Path) -> (&'static str, HostKey) {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let bytes = STANDARD.decode(lines[1..lines.len() - 1].concat()).unwrap();
    let (algorithm, private) = if text.contains("BEGIN RSA") {
        let pair = RsaKeyPair::from_der(&bytes).unwrap();
        ("rsa-sha2-512", Private::Rsa(pair))
    } else {
        // openssh-key-v1: cipher, derivation, its options, how many, the public key, the private.
        let mut file = Reader(&bytes[b"openssh-key-v1\0".len()..]);
        for _ in 0..3 {
            file.string();
        }
        file.u32();
        file.string();
        let mut key = Reader(file.string());
        key.u64();
        if key.string() == b"ssh-ed25519" {
            let public = key.string();
            let seed = &key.string()[..32];
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).unwrap();
            ("ssh-ed25519", Private::Ed25519(pair))
        } else {
            key.string();
            let public = key.string();
            let secret = fixed(key.string());
            let pair = EcdsaKeyPair::from_private_key_and_public_key(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &secret,
                public,
                &SystemRandom::new(),
            );
            ("ecdsa-sha2-nistp256", Private::Ecdsa(pair.unwrap()))
        }
    };
    let public = public(path);
    (algorithm, HostKey { public, private })
}

/// 32 bytes of a number that may have fewer, or a zero before.
fn fixed(number: &[u8]) -> Vec<u8> {
    let number = &number[number.len().saturating_sub(32)..];
    let mut bytes = vec![0; 32 - number.len()];
    bytes.extend_from_slice(number);
    bytes
}

impl HostKey {
    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let signature = match &self.private {
            Private::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Private::Ecdsa(pair) => {
                let both = pair.sign(&random, message).unwrap();
                let (r, s) = both.as_ref().split_at(32);
                Writer::default().number(r).number(s).0
            }
            Private::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA512, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        };
        Writer::default()
            .string(algorithm.as_bytes())
            .string(&signature)
            .0
    }
}

fn refused(_: ring::error::Unspecified) -> Error {
    Error::other("what came is not what was encrypted")
}

/// One direction of a connection.
struct Half {
    socket: TcpStream,
    cipher: Option<(LessSafeKey, [u8; 12])>,
}

impl Half {
    fn nonce(iv: &mut [u8; 12]) -> Nonce {
        let nonce = Nonce::assume_unique_for_key(*iv);
        let (_, counter) = iv.split_at_mut(4);
        let next = u64::from_be_bytes(counter.try_into().unwrap()).wrapping_add(1);
        counter.copy_from_slice(&next.to_be_bytes());
        nonce
    }

    fn send(&mut self, payload: &[u8]) -> Result<()> {
        // The length counts for the padding without a cipher, and not with this one.
        let (block, counted) = if self.cipher.is_some() {
            (16, 1)
        } else {
            (8, 5)
        };
        let mut padding = block - (payload.len() + counted) % block;
        if padding < 4 {
            padding += block;
        }
        let mut body = vec![padding as u8];
        body.extend_from_slice(payload);
        body.resize(body.len() + padding, 0);
        let length = (body.len() as u32).to_be_bytes();
        if let Some((key, iv)) = &mut self.cipher {
            key.seal_in_place_append_tag(Self::nonce(iv), Aad::from(length), &mut body)
                .map_err(refused)?;
        }
        self.socket.write_all(&[&length[..], &body].concat())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length)?;
        let tag = self.cipher.as_ref().map_or(0, |_| 16);
        let size = u32::from_be_bytes(length) as usize;
        if size > 1 << 18 {
            return Err(Error::other("a packet is too long"));
        }
        let mut body = vec![0; size + tag];
        self.socket.read_exact(&mut body)?;
        if let Some((key, iv)) = &mut self.cipher {
            key.open_in_place(Self::nonce(iv), Aad::from(length), &mut body)
                .map_err(refused)?;
        }
        body.truncate(size);
        let padding = usize::from(body[0]);
        body.truncate(size - padding);
        body.remove(0);
        Ok(body)
    }
}

fn serve(socket: TcpStream, shared: &Shared) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut writer = Half {
        socket: socket.try_clone()?,
        cipher: None,
    };
    write!(writer.socket, "{BANNER}\r\n")?;
    let their_banner = banner(&socket)?;
    let mut reader = Half {
        socket,
        cipher: None,
    };
    let session = exchange(&mut reader, &mut writer, &their_banner, shared)?;
    // Which signatures of RSA are understood (RFC 8308).
    let known = b"ssh-ed25519,rsa-sha2-512";
    let extension = Writer::message(7).u32(1).string(b"server-sig-algs");
    writer.send(&extension.string(known).0)?;
    authenticate(&mut reader, &mut writer, &session, shared)?;
    run(&mut reader, writer)
}

/// The client's first line, read byte by byte since packets follow it.
fn banner(mut socket: &TcpStream) -> Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

/// Exchanges keys and returns the name of the session.
fn exchange(
    reader: &mut Half,
    writer: &mut Half,
    their_banner: &str,
    shared: &Shared,
) -> Result<Vec<u8>> {
    let mut names: Vec<&str> = shared.host_keys.keys().copied().collect();
    // What another client than ours takes first is not what is to decide.
    names.sort_unstable();
    let cipher: &[u8] = b"aes256-gcm@openssh.com";
    let mut ours = Writer::message(20);
    ours.0.extend_from_slice(&[7; 16]);
    let ours = ours
        .string(b"curve25519-sha256")
        .string(names.join(",").as_bytes())
        .string(cipher)
        .string(cipher)
        .string(b"hmac-sha2-256")
        .string(b"hmac-sha2-256")
        .string(b"none")
        .string(b"none")
        .string(b"")
        .string(b"")
        .byte(0)
        .u32(0)
        .0;
    writer.send(&ours)?;
    let theirs = reader.receive()?;
    let mut init = Reader(&theirs[17..]);
    init.string();
    let wanted = String::from_utf8_lossy(init.string()).into_owned();
    let (algorithm, key) = wanted
        .split(',')
        .find_map(|name| shared.host_keys.get_key_value(name))
        .ok_or_else(|| Error::other("no host key of a kind that the client takes"))?;

    let message = reader.receive()?;
    let their_point = Reader(&message[1..]).string().to_vec();
    let random = SystemRandom::new();
    let mine = EphemeralPrivateKey::generate(&X25519, &random).map_err(refused)?;
    let my_point = mine.compute_public_key().map_err(refused)?;
    let their_key = UnparsedPublicKey::new(&X25519, &their_point);
    let secret = agree_ephemeral(mine, &their_key, |secret| {
        Writer::default().number(secret).0
    })
    .map_err(refused)?;
    let mut hashed = Writer::default()
        .string(their_banner.as_bytes())
        .string(BANNER.as_bytes())
        .string(&theirs)
        .string(&ours)
        .string(&key.public)
        .string(&their_point)
        .string(my_point.as_ref());
    hashed.0.extend_from_slice(&secret);
    let session = digest(&SHA256, &hashed.0).as_ref().to_vec();
    let reply = Writer::message(31)
        .string(&key.public)
        .string(my_point.as_ref())
        .string(&key.sign(algorithm, &session));
    writer.send(&reply.0)?;
    writer.send(&[21])?;
    let derive = |letter: u8| {
        let input = [&secret[..], &session, &[letter], &session].concat();
        digest(&SHA256, &input)
    };
    let cipher = |iv: u8, key: u8| {
        let key = UnboundKey::new(&AES_256_GCM, derive(key).as_ref()).unwrap();
        let iv = derive(iv).as_ref()[..12].try_into().unwrap();
        Some((LessSafeKey::new(key), iv))
    };
    writer.cipher = cipher(b'B', b'D');
    while reader.receive()? != [21] {}
    reader.cipher = cipher(b'A', b'C');
    Ok(session)
}

fn authenticate(
    reader: &mut Half,
    writer: &mut Half,
    session: &[u8],
    shared: &Shared,
) -> Result<()> {
    loop {
        let message = reader.receive()?;
        let mut fields = Reader(&message[1..]);
        match message[0] {
            5 => writer.send(&Writer::message(6).string(fields.string()).0)?,
            50 => {
                fields.string();
                fields.string();
                let is_key = fields.string() == b"publickey";
                let (is_signed, algorithm, key) = if is_key {
                    (fields.byte() == 1, fields.string(), fields.string())
                } else {
                    (false, &b""[..], &b""[..])
                };
                let is_known = shared.allowed.iter().any(|known| known == key);
                if is_known && !is_signed {
                    writer.send(&Writer::message(60).string(algorithm).string(key).0)?;
                    continue;
                }
                let signed = message.len() - fields.0.len();
                let mut text = Writer::default().string(session).0;
                text.extend_from_slice(&message[..signed]);
                if is_known && is_right(key, &text, fields.string()) {
                    shared.accepted.fetch_add(1, Ordering::SeqCst);
                    return writer.send(&[52]);
                }
                writer.send(&Writer::message(51).string(b"publickey").byte(0).0)?;
            }
            _ => {}
        }
    }
}

fn is_right(key: &[u8], text: &[u8], signature: &[u8]) -> bool {
    let mut signature = Reader(signature);
    let (algorithm, signature) = (signature.string(), signature.string());
    let mut key = Reader(key);
    match (key.string(), algorithm) {
        (b"ssh-ed25519", b"ssh-ed25519") => {
            ring::signature::UnparsedPublicKey::new(&ED25519, key.string())
                .verify(text, signature)
                .is_ok()
        }
        (b"ssh-rsa", b"rsa-sha2-512") => {
            let (e, n) = (plain(key.string()), plain(key.string()));
            RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA512, text, signature)
                .is_ok()
        }
        _ => false,
    }
}

/// A number without zeros before it.
fn plain(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// What the client still takes of our data.
#[derive(Default)]
struct Room(Mutex<u64>, Condvar);

/// Runs the one command that the client asks for.
fn run(reader: &mut Half, writer: Half) -> Result<()> {
    let (writer, room) = (Arc::new(Mutex::new(writer)), Arc::new(Room::default()));
    let send = |payload: Writer| writer.lock().unwrap().send(&payload.0);
    let mut channel = 0;
    let mut child: Option<Child> = None;
    loop {
        let message = match reader.receive() {
            Ok(message) => message,
            Err(error) => {
                if let Some(mut child) = child {
                    let _ = child.kill();
                    child.wait()?;
                }
                return Err(error);
            }
        };
        let mut fields = Reader(&message[1..]);
        match message[0] {
            80 => {
                fields.string();
                if fields.byte() == 1 {
                    send(Writer::message(82))?;
                }
            }
            90 => {
                fields.string();
                channel = fields.u32();
                *room.0.lock().unwrap() = fields.u32().into();
                let confirmed = Writer::message(91).u32(channel).u32(0);
                send(confirmed.u32(WINDOW).u32(MAX_DATA as u32))?;
            }
            93 => {
                fields.u32();
                *room.0.lock().unwrap() += u64::from(fields.u32());
                room.1.notify_all();
            }
            94 => {
                fields.u32();
                if let Some(input) = child.as_mut().and_then(|child| child.stdin.as_mut()) {
                    // A command that has ended says why by its status.
                    let _ = input.write_all(fields.string());
                }
            }
            96 => drop(child.as_mut().and_then(|child| child.stdin.take())),
            97 => {
                if let Some(mut child) = child.take() {
                    let _ = child.kill();
                    child.wait()?;
                }
                send(Writer::message(97).u32(channel))?;
            }
            98 => {
                fields.u32();
                let is_command = fields.string() == b"exec";
                let wants_reply = fields.byte() == 1;
                if is_command {
                    let command = String::from_utf8_lossy(fields.string()).into_owned();
                    child = Some(start(&command, channel, &writer, &room)?);
                }
                if wants_reply {
                    let reply = if is_command { 99 } else { 100 };
                    send(Writer::message(reply).u32(channel))?;
                }
            }
            _ => {}
        }
    }
}

fn start(
    command: &str,
    channel: u32,
    writer: &Arc<Mutex<Half>>,
    room: &Arc<Room>,
) -> Result<Child> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().unwrap();
    let errors = child.stderr.take().unwrap();
    let (writer, room) = (Arc::clone(writer), Arc::clone(room));
    thread::spawn(move || {
        let data = Writer::message(94).u32(channel);
        give(output, &data, &writer, &room)?;
        let data = Writer::message(95).u32(channel).u32(1);
        give(errors, &data, &writer, &room)?;
        let mut writer = writer.lock().unwrap();
        writer.send(&Writer::message(96).u32(channel).0)?;
        writer.send(&Writer::message(97).u32(channel).0)
    });
    Ok(child)
}

/// Gives the client what comes, as far as it takes it.
fn give(from: impl Read, data: &Writer, writer: &Mutex<Half>, room: &Room) -> Result<()> {
    let mut from = BufReader::with_capacity(MAX_DATA - 64, from);
    loop {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let size = {
            let left = room.0.lock().unwrap();
            let mut left = room.1.wait_while(left, |left| *left == 0).unwrap();
            let size = (*left).min(bytes.len() as u64);
            *left -= size;
            size as usize
        };
        let message = Writer(data.0.clone()).string(&bytes[..size]);
        writer.lock().unwrap().send(&message.0)?;
        from.consume(size);
    }
}

/// Fields of a message that come. What is not there is empty.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(size.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn u32(&mut self) -> u32 {
        self.take(4).try_into().map_or(0, u32::from_be_bytes)
    }

    fn u64(&mut self) -> u64 {
        self.take(8).try_into().map_or(0, u64::from_be_bytes)
    }

    fn string(&mut self) -> &'a [u8] {
        let size = self.u32() as usize;
        self.take(size)
    }
}

/// Fields of a message that goes.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn message(number: u8) -> Self {
        Self(vec![number])
    }

    fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn string(self, bytes: &[u8]) -> Self {
        let mut writer = self.u32(bytes.len() as u32);
        writer.0.extend_from_slice(bytes);
        writer
    }

    /// A number that is not negative.
    fn number(self, bytes: &[u8]) -> Self {
        let bytes = plain(bytes);
        let sign: &[u8] = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
            &[0]
        } else {
            &[]
        };
        self.string(&[sign, bytes].concat())
    }
}
