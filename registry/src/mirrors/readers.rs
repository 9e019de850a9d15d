//! Who may read a mirror: a note in it, for those who fork it.
//!
//! A mirror's name tells it, but only to those who know the credentials. `<mirror>.git/hyprstream/
//! readers` holds `public`, or `namespace NAME`. One without the note was made by an older release,
//! and gets it when it is next asked for; until then it is the control plane's.

use std::{
    fs,
    io::{self, Write as _},
};

use hyprstream_contract::registry::Upstream;

use crate::{
    layout::Layout,
    names::{Namespace, Repository},
};

/// Who may read a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Everyone who has a token: it was fetched without credentials.
    All,
    /// Those who read everything in this namespace, which has the credentials.
    Namespace(Namespace),
}

const PUBLIC: &str = "public";

/// Who may read the mirror, if that is known.
pub(crate) fn of(layout: &Layout, mirror: &Repository) -> Option<Readers> {
    let text = fs::read_to_string(file(layout, mirror)).ok()?;
    match text.trim().strip_prefix("namespace ") {
        Some(name) => name.parse().ok().map(Readers::Namespace),
        None => (text.trim() == PUBLIC).then_some(Readers::All),
    }
}

/// Notes in a mirror of `upstream`, if it is there, who may read it.
pub(super) fn note(layout: &Layout, mirror: &Repository, upstream: &Upstream) -> io::Result<()> {
    let file = file(layout, mirror);
    if file.exists() || !layout.exists(mirror) {
        return Ok(());
    }
    let text = match &upstream.credentials {
        None => PUBLIC.to_owned(),
        Some(_) => format!("namespace {}", upstream.namespace),
    };
    let mut made = tempfile::NamedTempFile::new_in(layout.tmp())?;
    writeln!(made, "{text}")?;
    made.as_file().sync_all()?;
    made.persist(&file).map(drop).map_err(|error| error.error)
}

fn file(layout: &Layout, mirror: &Repository) -> std::path::PathBuf {
    layout.repository(mirror).join("hyprstream/readers")
}
