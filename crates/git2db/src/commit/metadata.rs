//! What a commit says beside its files.

use std::path::{Path, PathBuf};

use git2::{Commit, Oid, Repository, Signature, Time, Tree};

use super::{Author, CommitError, sign};
use crate::repo;

/// What a commit says beside its files. Shared by everything that makes commits.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Who wrote the change.
    pub author: Author,
    /// When it was written; now, if it is not said.
    pub author_time: Option<Timestamp>,
    /// Who makes the commit; the author, if it is not said.
    pub committer: Option<Author>,
    /// When it is made; now, if it is not said.
    pub committer_time: Option<Timestamp>,
    /// The message.
    pub message: Message,
    /// A private ssh key without a passphrase that signs the commit as `gpg.format=ssh` does, by
    /// the program `ssh-keygen`. The file must be readable by nobody else.
    pub signing_key: Option<PathBuf>,
}

/// A moment with its time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970 in UTC.
    pub seconds: i64,
    /// Minutes that the local time is ahead of UTC.
    pub offset_minutes: i32,
}

/// A commit's message by its parts. White space at ends of lines and empty lines in a row go, as
/// with `git commit --cleanup=whitespace`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The first line.
    pub subject: String,
    /// What follows after an empty line, if there is any.
    pub body: String,
    /// The last lines, as `Signed-off-by: A <a@example.org>`. Where the body ends with trailers
    /// they are put below those.
    pub trailers: Vec<Trailer>,
}

/// A line such as `Reviewed-by: A <a@example.org>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Letters, digits and `-`.
    pub key: String,
    /// One line.
    pub value: String,
}

impl Metadata {
    /// By `author`, now, with a whole message.
    pub fn new(author: Author, message: &str) -> Self {
        Self {
            author,
            author_time: None,
            committer: None,
            committer_time: None,
            message: Message::parse(message),
            signing_key: None,
        }
    }

    /// Adds a trailer.
    #[must_use]
    pub fn with_trailer(mut self, key: &str, value: &str) -> Self {
        self.message.trailers.push(Trailer {
            key: key.to_owned(),
            value: value.to_owned(),
        });
        self
    }

    /// At one moment for author and committer.
    #[must_use]
    pub fn at(mut self, time: Timestamp) -> Self {
        self.author_time = Some(time);
        self.committer_time = Some(time);
        self
    }

    /// Signed with the private ssh key in the file `key`.
    #[must_use]
    pub fn signed_with(mut self, key: &Path) -> Self {
        self.signing_key = Some(key.to_owned());
        self
    }

    pub(crate) fn author_signature(&self) -> Result<Signature<'static>, CommitError> {
        signature(&self.author, self.author_time)
    }
}

impl Message {
    /// A whole message: its first paragraph's first line is the subject, all else the body.
    pub fn parse(text: &str) -> Self {
        let text = text.trim_start_matches('\n');
        let (subject, body) = text.split_once('\n').unwrap_or((text, ""));
        Self {
            subject: subject.to_owned(),
            body: body.to_owned(),
            trailers: Vec::new(),
        }
    }

    /// The text as it stands in the commit.
    ///
    /// # Errors
    /// The subject is empty or more than a line, or a trailer cannot be read back.
    pub fn to_text(&self) -> Result<String, CommitError> {
        let refuse = |why: &str| CommitError::InvalidMessage {
            why: why.to_owned(),
        };
        if self.subject.trim().is_empty() {
            return Err(refuse("its subject is empty"));
        }
        if self.subject.contains('\n') {
            return Err(refuse("its subject has more than one line"));
        }
        let whole = format!("{}\n{}", self.subject, with_gap(&self.body));
        let mut text =
            git2::message_prettify(whole, None).map_err(|_| refuse("it holds a zero byte"))?;
        if self.trailers.is_empty() {
            return Ok(text);
        }
        let ends_with_trailers =
            git2::message_trailers_strs(&text).is_ok_and(|found| found.iter().next().is_some());
        if !ends_with_trailers {
            text.push('\n');
        }
        for Trailer { key, value } in &self.trailers {
            let known = |c: char| c.is_ascii_alphanumeric() || c == '-';
            if key.is_empty() || !key.chars().all(known) {
                return Err(refuse(
                    "a trailer's key is more than letters, digits and '-'",
                ));
            }
            let value = value.trim();
            if value.is_empty() || value.contains(['\n', '\r', '\0']) {
                return Err(refuse("a trailer's value is not one line"));
            }
            text.extend([key, ": ", value, "\n"]);
        }
        Ok(text)
    }
}

/// The body is a paragraph of its own, unless it goes on from the subject (`parse`).
fn with_gap(body: &str) -> String {
    if body.starts_with('\n') || body.is_empty() {
        body.to_owned()
    } else {
        format!("\n{body}")
    }
}

pub(super) fn signature(
    author: &Author,
    time: Option<Timestamp>,
) -> Result<Signature<'static>, CommitError> {
    match time {
        Some(time) => {
            let time = Time::new(time.seconds, time.offset_minutes);
            Signature::new(&author.name, &author.email, &time)
        }
        None => Signature::now(&author.name, &author.email),
    }
    .map_err(|_| CommitError::InvalidAuthor(author.name.clone()))
}

/// Writes a commit that nothing names yet.
pub(crate) fn write(
    repo: &Repository,
    tree: &Tree<'_>,
    parents: &[&Commit<'_>],
    metadata: &Metadata,
) -> Result<Oid, CommitError> {
    let text = metadata.message.to_text()?;
    let author = metadata.author_signature()?;
    let committer = signature(
        metadata.committer.as_ref().unwrap_or(&metadata.author),
        metadata.committer_time,
    )?;
    let access = |e| CommitError::Repo(repo::access(repo.path())(e));
    let Some(key) = &metadata.signing_key else {
        return repo
            .commit(None, &author, &committer, &text, tree, parents)
            .map_err(access);
    };
    let buffer = repo
        .commit_create_buffer(&author, &committer, &text, tree, parents)
        .map_err(access)?;
    let content = buffer.as_str().map_err(access)?;
    let signed = sign::by_ssh(content.as_bytes(), key)?;
    repo.commit_signed(content, &signed, None).map_err(access)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &str, trailers: &[(&str, &str)]) -> String {
        let author = Author {
            name: "A".to_owned(),
            email: "a@example.org".to_owned(),
        };
        let mut metadata = Metadata::new(author, message);
        for (key, value) in trailers {
            metadata = metadata.with_trailer(key, value);
        }
        metadata.message.to_text().unwrap()
    }

    #[test]
    fn trailers_are_a_paragraph_of_their_own_or_go_on_the_one_that_is_there() {
        let signed = [("Signed-off-by", "A <a@example.org>")];
        assert_eq!(text("Do", &[]), "Do\n");
        assert_eq!(text("Do\n\n\n\nwell  \n", &[]), "Do\n\nwell\n");
        assert_eq!(
            text("Do", &signed),
            "Do\n\nSigned-off-by: A <a@example.org>\n"
        );
        assert_eq!(
            text("Do\n\nbody\n\nCloses: 3\n", &signed),
            "Do\n\nbody\n\nCloses: 3\nSigned-off-by: A <a@example.org>\n"
        );
        assert_eq!(
            text("Fix: it", &[("A-b", "c")]),
            "Fix: it\n\nA-b: c\n",
            "a subject is no trailer"
        );
    }

    #[test]
    fn messages_that_git_would_read_otherwise_are_refused() {
        let make = |subject: &str, key: &str, value: &str| Message {
            subject: subject.to_owned(),
            body: String::new(),
            trailers: vec![Trailer {
                key: key.to_owned(),
                value: value.to_owned(),
            }],
        };
        for wrong in [
            make(" ", "A", "b"),
            make("a\nb", "A", "b"),
            make("a\0", "A", "b"),
            make("a", "", "b"),
            make("a", "A b", "b"),
            make("a", "A", "b\nC: d"),
            make("a", "A", ""),
        ] {
            let error = wrong.to_text().unwrap_err();
            assert_eq!(error.reason(), "InvalidMessage", "{wrong:?}");
            assert!(!error.is_retriable());
        }
    }
}
