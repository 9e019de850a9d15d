//! Where secrets stand that were planted: in what was found somewhere, on command lines.

// Every test program uses another part of it.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// What was found, and where.
pub type Found = Vec<(String, Vec<u8>)>;

/// The files below a folder with what they hold.
pub fn files(folder: &Path, found: &mut Found) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            found.push((
                path.display().to_string(),
                target.display().to_string().into(),
            ));
        } else if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

/// The secret as it is, and in all forms in which it travels.
fn forms(secret: &str) -> Vec<String> {
    let hex = secret.bytes().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    let mut forms = vec![secret.to_owned(), hex];
    // Three ways in which base64 may begin within a longer text, less what its neighbours change.
    for before in ["", "x", "xx"] {
        let text = STANDARD.encode(format!("{before}{secret}"));
        forms.push(text[4..text.len() - 4].to_owned());
    }
    forms
}

/// Where secrets stand.
pub fn told(secrets: &[impl AsRef<str>], found: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut told = Vec::new();
    for (place, bytes) in found {
        let text = String::from_utf8_lossy(bytes);
        for secret in secrets.iter().map(AsRef::as_ref) {
            assert!(secret.len() >= 16, "{secret} could stand anywhere");
            if forms(secret).iter().any(|form| text.contains(form)) {
                told.push(format!("{secret} stands in {place}"));
            }
        }
    }
    told
}

/// Looks again and again at the command lines of a process and those below it, which anybody on the
/// machine sees.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Watch {
    pub fn over(root: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut seen = BTreeSet::new();
                while !stop.load(Ordering::SeqCst) {
                    look(root, &mut seen);
                    std::thread::yield_now();
                }
                seen
            }
        });
        Self { stop, thread }
    }

    /// All command lines that were seen, with spaces between their words.
    pub fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn look(root: u32, seen: &mut BTreeSet<String>) {
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: HashMap<u32, u32> = ids.filter_map(|id| Some((id, parent(id)?))).collect();
    for id in parents.keys() {
        let mut above = Some(id);
        while above.is_some_and(|id| *id != root) {
            above = above.and_then(|id| parents.get(id));
        }
        // One that has just ended is none any more.
        if above.is_some()
            && let Ok(line) = fs::read(format!("/proc/{id}/cmdline"))
        {
            seen.insert(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
}

fn parent(id: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}
