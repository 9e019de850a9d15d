//! Who changed what, and who was not let: JSON lines in the log under the target `audit`, and in a
//! file on the volume.
//!
//! ```json
//! {"time":"2026-01-02T03:04:05.678Z","action":"push","result":"ok","subject":"alice",
//!  "repository":"git/team-a/m","ref":"refs/heads/main","old":"0a..","new":"4b..","bytes":812}
//! ```
//!
//! The file is rotated at [`MAX_BYTES`], and [`KEPT`] old ones stay. A refusal costs nothing, so
//! that each subject has [`REFUSALS_A_MINUTE`] of them in a minute; how many more there were stands
//! in its next line. No line names a token.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use hyprstream_contract::registry::{Change, ChangeKind};
use parking_lot::Mutex;
use serde::Serialize;

use crate::auth::Principal;

const MAX_BYTES: u64 = 16 << 20;
const KEPT: u32 = 4;
const REFUSALS_A_MINUTE: u32 = 60;
/// Subjects whose refusals are counted.
const MOST_SUBJECTS: usize = 1024;

/// The audit log.
pub(crate) struct Audit {
    file: Mutex<Lines>,
    refusals: Mutex<HashMap<String, Count>>,
}

/// One thing that was done or refused.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Entry {
    pub(crate) action: &'static str,
    pub(crate) result: Outcome,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    pub(crate) repository: String,
    /// What a fork was made from or given from, or a merge merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    /// The handle of a volume that was given a right to read, or lost it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume: Option<String>,
    /// The SHA-256 of an LFS object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) old: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) new: Option<String>,
    /// How many LFS objects were let go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) objects: Option<u64>,
    /// Bytes that came for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    /// It was done.
    #[default]
    Ok,
    /// It was not allowed.
    Refused,
    /// It was allowed and did not succeed.
    Failed,
}

struct Lines {
    folder: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
    failing: bool,
}

struct Count {
    since: Instant,
    /// In this minute.
    refusals: u32,
    /// Not told yet.
    silent: u32,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a Entry,
    /// Further refusals of the subject that have no line.
    #[serde(skip_serializing_if = "Option::is_none")]
    silent: Option<u32>,
}

impl Entry {
    /// An entry for what `who` does to a repository, which is done.
    pub(crate) fn new(action: &'static str, who: &Principal, repository: &impl ToString) -> Self {
        Self {
            action,
            subject: who.subject(),
            pod: who.pod().map(str::to_owned),
            repository: repository.to_string(),
            ..Self::default()
        }
    }

    /// The same, not allowed.
    pub(crate) fn refused(mut self, reason: impl Into<String>) -> Self {
        self.result = Outcome::Refused;
        self.reason = Some(reason.into());
        self
    }

    /// The same as followers of the repository are told, whose default branch is `head`.
    pub(crate) fn change(&self, head: Option<&str>) -> Change {
        let kind = match self.action {
            "push" => ChangeKind::Push,
            "commit" => ChangeKind::Commit,
            "merge" => ChangeKind::Merge,
            "fork" => ChangeKind::Fork,
            "delete" => ChangeKind::Delete,
            _ => ChangeKind::Other,
        };
        Change {
            kind,
            subject: self.subject.clone(),
            reference: self.reference.clone(),
            is_default: self.reference.is_some() && self.reference.as_deref() == head,
            old: self.old.clone(),
            new: self.new.clone(),
            bytes: self.bytes,
        }
    }
}

impl Audit {
    /// Goes on with the file below `root`.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Mutex::new(Lines::open(root.join("audit"), MAX_BYTES)?),
            refusals: Mutex::default(),
        })
    }

    /// Notes an entry. What cannot be written stands in the log alone.
    pub(crate) fn note(&self, entry: &Entry) {
        let Some(silent) = self.has_line(entry) else {
            return;
        };
        let line = Line {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            entry,
            silent: (silent > 0).then_some(silent),
        };
        tracing::info!(
            target: "audit",
            action = entry.action,
            result = ?entry.result,
            subject = entry.subject,
            pod = entry.pod,
            repository = entry.repository,
            from = entry.from,
            reference = entry.reference,
            volume = entry.volume,
            object = entry.object,
            old = entry.old,
            new = entry.new,
            objects = entry.objects,
            bytes = entry.bytes,
            reason = entry.reason,
            silent,
            "audit"
        );
        match serde_json::to_vec(&line) {
            Ok(mut text) => {
                text.push(b'\n');
                self.file.lock().append(&text);
            }
            Err(error) => tracing::error!(%error, "an entry of the audit log cannot be written"),
        }
    }

    /// Whether the entry gets a line; how many refusals of its subject got none before.
    fn has_line(&self, entry: &Entry) -> Option<u32> {
        let mut refusals = self.refusals.lock();
        if entry.result != Outcome::Refused {
            let count = refusals.get_mut(&entry.subject);
            return Some(count.map_or(0, |count| std::mem::take(&mut count.silent)));
        }
        if refusals.len() >= MOST_SUBJECTS {
            refusals.retain(|_, count| count.since.elapsed() < Duration::from_mins(1));
        }
        if refusals.len() >= MOST_SUBJECTS {
            refusals.clear();
        }
        let count = refusals.entry(entry.subject.clone()).or_insert(Count {
            since: Instant::now(),
            refusals: 0,
            silent: 0,
        });
        if count.since.elapsed() >= Duration::from_mins(1) {
            (count.since, count.refusals) = (Instant::now(), 0);
        }
        count.refusals += 1;
        if count.refusals > REFUSALS_A_MINUTE {
            count.silent += 1;
            return None;
        }
        Some(std::mem::take(&mut count.silent))
    }
}

impl Lines {
    fn open(folder: PathBuf, max_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .read(true)
            .append(true)
            .open(folder.join("audit.jsonl"))?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            // A process that was killed may have left half a line.
            let mut last = [0];
            file.seek(io::SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self {
            folder,
            file,
            bytes,
            max_bytes,
            failing: false,
        })
    }

    fn append(&mut self, line: &[u8]) {
        match self.try_append(line) {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                tracing::error!(%error, "the audit file cannot be written; the log has the lines");
                self.failing = true;
            }
            Err(_) => {}
        }
    }

    fn try_append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let name = |number: u32| match number {
            0 => self.folder.join("audit.jsonl"),
            number => self.folder.join(format!("audit.{number}.jsonl")),
        };
        for number in (0..KEPT).rev() {
            match fs::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        *self = Self::open(self.folder.clone(), self.max_bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(root: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(root.join("audit/audit.jsonl")).unwrap();
        let parse = |line| serde_json::from_str(line).unwrap();
        text.lines().map(parse).collect()
    }

    #[test]
    fn an_entry_is_one_line_that_says_who_did_what() {
        let dir = tempfile::tempdir().unwrap();
        let mut entry = Entry::new("push", &Principal::Admin, &"git/a/m");
        entry.reference = Some("refs/heads/a\nb".to_owned());
        entry.bytes = Some(7);
        Audit::open(dir.path()).unwrap().note(&entry);
        // The next process goes on in the same file, after half a line too.
        let file = dir.path().join("audit/audit.jsonl");
        let mut half = OpenOptions::new().append(true).open(&file).unwrap();
        half.write_all(b"1").unwrap();
        let refused =
            Entry::new("push", &Principal::Node { reads_all: false }, &"git/a/m").refused("no");
        Audit::open(dir.path()).unwrap().note(&refused);
        let lines = lines(dir.path());
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["subject"], "admin token");
        assert_eq!(lines[0]["ref"], "refs/heads/a\nb");
        assert_eq!(lines[0]["bytes"], 7);
        assert_eq!(
            (&lines[2]["result"], &lines[2]["reason"]),
            (&"refused".into(), &"no".into())
        );
    }

    #[test]
    fn the_file_is_rotated_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Lines::open(dir.path().join("audit"), 10).unwrap();
        for number in 0..20 {
            lines.append(format!("{number:07}\n").as_bytes());
        }
        let mut names: Vec<_> = fs::read_dir(dir.path().join("audit"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len() as u32, KEPT + 1, "{names:?}");
        let newest = fs::read_to_string(dir.path().join("audit/audit.jsonl")).unwrap();
        let oldest = fs::read_to_string(dir.path().join("audit/audit.4.jsonl")).unwrap();
        assert_eq!(
            (newest.as_str(), oldest.as_str()),
            ("0000019\n", "0000015\n")
        );
    }

    #[test]
    fn many_refusals_do_not_push_out_what_was_done() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path()).unwrap();
        let refused =
            Entry::new("push", &Principal::Node { reads_all: false }, &"git/a/m").refused("no");
        for _ in 0..REFUSALS_A_MINUTE + 5 {
            audit.note(&refused);
        }
        assert_eq!(lines(dir.path()).len() as u32, REFUSALS_A_MINUTE);
        audit.note(&Entry::new("push", &Principal::Admin, &"git/a/m"));
        audit.note(&Entry::new(
            "push",
            &Principal::Node { reads_all: false },
            &"git/a/m",
        ));
        let lines = lines(dir.path());
        let last = &lines[lines.len() - 2..];
        assert_eq!(
            (&last[0]["silent"], &last[1]["silent"]),
            (&serde_json::Value::Null, &5.into())
        );
    }
}
