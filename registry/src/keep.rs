//! `POST /api/v1/keeps`: the large files of a branch's older commits are let go.
//!
//! Training pushes a checkpoint again and again, and only the last ones are ever asked for. What
//! goes are LFS objects that nothing but these older commits needs: whatever a commit of another
//! branch or of a tag has, one that a Model was given, or one of the newest, stays. History stays
//! whole, and an object that is pushed again is taken again.

use std::{
    collections::HashSet,
    io::{self, BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use axum::{Json, body::Bytes, extract::State as AxumState, http::StatusCode};
use hyprstream_contract::{
    registry::reason,
    repositories::{Keep, KeepRequest},
};
use hyprstream_git2db::{Digest, lfs::Pointer};

use crate::{
    access::{Access, Who},
    api::parse,
    collect, git,
    names::Repository,
    refusal::Refusal,
    state::{State, blocking},
};

/// A pointer is smaller.
const POINTER_BYTES: u64 = 1024;

/// `POST /api/v1/keeps`
pub(crate) async fn keep(
    AxumState(state): AxumState<Arc<State>>,
    Who(principal): Who,
    body: Bytes,
) -> Result<Json<Keep>, Refusal> {
    let request: KeepRequest = parse(&body)?;
    let access = Access::named(&request.repository, principal)?;
    if access.is_mirror() {
        return Err(Refusal::bad_request(
            "a mirror has what its upstream has; only pushed repositories let go of files",
        ));
    }
    access.readable(&state).await?;
    let name = format!("refs/heads/{}", request.branch);
    if let Some(why) = git::forbids_letting_go(&state, &access, &name).await? {
        return Err(access.refuse(&state, "keep", why));
    }
    let path = state.layout.repository(&access.repository);
    // Nothing comes to need an object while it is looked for what does.
    let Some(_alone) = state.git.alone(&path).await else {
        return Err(Refusal::busy(
            "a push to this repository takes long; try again",
        ));
    };
    let _place = state.git.place(&access.share()).await?;
    let refs = state.git.run(&path, &["for-each-ref", FORMAT]).await;
    let failed = |error: &io::Error| State::io_refusal("letting large files go", error);
    let refs = Refs::read(&refs.map_err(|error| failed(&error))?, &name);
    let Some(tip) = refs.tip.clone() else {
        let message = format!("there is no branch {:?}", request.branch);
        let status = StatusCode::NOT_FOUND;
        return Err(Refusal::new(
            status,
            reason::REFERENCE_NOT_FOUND,
            message,
            false,
        ));
    };
    let newest = request.newest.get();
    let why = format!(
        "branch {} keeps the large files of its {newest} newest commits",
        request.branch
    );
    let mut entry = access.entry("keep");
    let (letting, repository) = (Arc::clone(&state), access.repository.clone());
    let kept = blocking(move || {
        let (older_commits, oids) = unneeded(&path, &tip, &refs, newest as usize)?;
        let (objects, bytes) = let_go_of(&letting, &repository, oids, &why)?;
        Ok(Keep {
            older_commits,
            objects,
            bytes,
        })
    })
    .await?
    .map_err(|error| failed(&error))?;
    if kept.objects > 0 {
        (entry.reference, entry.objects) = (Some(name), Some(kept.objects));
        state.audit.note(&entry);
        tracing::info!(
            repository = %access.repository, branch = request.branch,
            objects = kept.objects, bytes = kept.bytes, "large files were let go"
        );
    }
    Ok(Json(kept))
}

/// Lets objects of the repository go, but for those that were promised. How many went, and their
/// bytes. Blocks.
pub(crate) fn let_go_of(
    state: &State,
    repository: &Repository,
    oids: HashSet<Digest>,
    why: &str,
) -> io::Result<(u64, u64)> {
    let (mut objects, mut bytes) = (0, 0);
    for oid in oids {
        let gone = state
            .promised
            .let_go(&state.layout, repository, &oid, why)?;
        if let Some(size) = gone {
            objects += 1;
            bytes += size;
        }
    }
    if objects > 0 {
        collect::plan(&state.layout)?;
    }
    Ok((objects, bytes))
}

/// How `git for-each-ref` is to list refs.
pub(crate) const FORMAT: &str = "--format=%(objectname) %(refname)";

/// What the refs of a repository name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Refs {
    /// The branch.
    pub(crate) tip: Option<String>,
    /// What needs the files of its own commit and of none before it: commits that Models were given,
    /// and the tags `NAME/*` of a branch `train/NAME`.
    given: Vec<String>,
    /// All others.
    others: Vec<String>,
}

impl Refs {
    /// Reads what git says in [`FORMAT`].
    pub(crate) fn read(listed: &[u8], branch: &str) -> Self {
        let mut refs = Self::default();
        let own_tags = branch
            .strip_prefix("refs/heads/train/")
            .map(|job| format!("refs/tags/{job}/"));
        let is_own_tag = |name: &str| own_tags.as_ref().is_some_and(|own| name.starts_with(own));
        for line in String::from_utf8_lossy(listed).lines() {
            let Some((id, name)) = line.split_once(' ') else {
                continue;
            };
            if name == branch {
                refs.tip = Some(id.to_owned());
            } else if name.starts_with("refs/hyprstream/commits/") || is_own_tag(name) {
                refs.given.push(id.to_owned());
            } else {
                refs.others.push(id.to_owned());
            }
        }
        refs
    }
}

/// How many commits that nothing but the branch has are not among its `newest`, and the objects
/// that only they have. Blocks while git reads the repository.
pub(crate) fn unneeded(
    repository: &Path,
    tip: &str,
    refs: &Refs,
    newest: usize,
) -> io::Result<(u64, HashSet<Digest>)> {
    let mut own = vec![tip.to_owned()];
    own.extend(refs.others.iter().map(|id| format!("^{id}")));
    let commits = lines(repository, &["rev-list", "--topo-order", "--stdin"], &own)?;
    if commits.len() <= newest {
        return Ok((0, HashSet::new()));
    }
    let tree = |commit: &String| format!("{commit}^{{tree}}");
    let mut needed = refs.others.clone();
    needed.extend(refs.given.iter().map(tree));
    needed.extend(commits[..newest].iter().map(tree));
    let needed = pointers(repository, &needed)?;
    let mut oids = pointers(repository, &own)?;
    oids.retain(|oid| !needed.contains(oid));
    Ok(((commits.len() - newest) as u64, oids))
}

/// The objects of all pointers that these lead to: of all files of commits and what came before
/// them, or of a tree. A file that looks like a pointer counts as one.
fn pointers(repository: &Path, from: &[String]) -> io::Result<HashSet<Digest>> {
    let mut found = HashSet::new();
    if from.is_empty() {
        return Ok(found);
    }
    let filter = format!("--filter=combine:object:type=blob+blob:limit={POINTER_BYTES}");
    let arguments = [
        "rev-list",
        "--objects",
        "--no-object-names",
        "--stdin",
        &filter,
    ];
    let blobs = lines(repository, &arguments, from)?;
    if blobs.is_empty() {
        return Ok(found);
    }
    exchange(
        repository,
        &["cat-file", "--batch", "--buffer"],
        &blobs,
        |out| {
            let mut header = String::new();
            while out.read_line(&mut header)? > 0 {
                let (kind, size) = described(&header)?;
                let mut content = vec![0; size];
                out.read_exact(&mut content)?;
                out.read_exact(&mut [0])?;
                if kind == "blob"
                    && let Ok(pointer) = Pointer::parse(&content)
                {
                    found.insert(pointer.oid);
                }
                header.clear();
            }
            Ok(())
        },
    )?;
    Ok(found)
}

/// Kind and size of an object in the line before its bytes.
fn described(header: &str) -> io::Result<(String, usize)> {
    let mut words = header.split_whitespace().skip(1);
    let kind = words.next().unwrap_or_default().to_owned();
    let size = words.next().and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| io::Error::other(format!("git says {:?}", header.trim())))?;
    Ok((kind, size))
}

fn lines(repository: &Path, arguments: &[&str], input: &[String]) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    exchange(repository, arguments, input, |out| {
        for line in out.lines() {
            lines.push(line?);
        }
        Ok(())
    })?;
    Ok(lines)
}

/// Runs git with lines of input, and reads what it says meanwhile.
fn exchange(
    repository: &Path,
    arguments: &[&str],
    input: &[String],
    read: impl FnOnce(&mut BufReader<std::process::ChildStdout>) -> io::Result<()>,
) -> io::Result<()> {
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*", "--git-dir"])
        .arg(repository)
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("git has no pipes"));
    };
    let result = std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut text = input.join("\n");
            text.push('\n');
            stdin.write_all(text.as_bytes())
        });
        let result = read(&mut BufReader::new(stdout));
        let written = writing.join();
        result.and_then(|()| written.unwrap_or_else(|_| Err(io::Error::other("a thread died"))))
    });
    let status = child.wait()?;
    result?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "git {} failed: {status}",
        arguments.join(" ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_are_those_of_the_branch_of_models_and_all_others() {
        let listed = b"1 refs/heads/train/a\n2 refs/heads/train/a/b\n3 refs/hyprstream/commits/3\n\
                       4 refs/tags/v1\n5 refs/tags/a/step-1\n6 refs/tags/b/step-1\n";
        let refs = Refs::read(listed, "refs/heads/train/a");
        assert_eq!(refs.tip.as_deref(), Some("1"));
        assert_eq!(refs.given, ["3", "5"]);
        assert_eq!(refs.others, ["2", "4", "6"]);
    }
}
