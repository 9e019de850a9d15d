//! Which credentials an upstream has accepted from a namespace, and so may see the namespace's
//! mirror of it. They are noted by their digests in the mirror itself, and go with it.

use std::{fs, io, path::PathBuf, sync::Arc, time::SystemTime};

use hyprstream_contract::registry::Upstream;
use hyprstream_git2db::{Credentials, RemoteUrl, remote};

use super::{Failure, ask_upstream, background, identity::Identity};
use crate::{
    layout::make_folder,
    names::{MirrorId, Repository},
    state::State,
};

/// Credentials of one mirror that are known; the ones noted first are asked for again.
const MOST: usize = 64;

/// The mirror of `identity`, that of `url` for `upstream`, that the request is about. Credentials that are new are shown to the upstream first,
/// unless `is_settled` says of a mirror of their own that there is nothing to ask now.
///
/// Of credentials that the upstream does not accept it is a mirror of their own, whose fetch says
/// why.
pub(super) async fn repository(
    state: &Arc<State>,
    url: &RemoteUrl,
    upstream: &Upstream,
    credentials: &Credentials,
    identity: Identity,
    is_settled: impl Fn(&Repository) -> bool,
) -> Repository {
    let (shared, own) = match identity {
        Identity::Public(id) => return Repository::Mirror(id),
        Identity::Private { shared, own } => (shared, own),
    };
    let mine = Repository::Mirror(own.clone());
    // One of a release that knew no others stays what it is: volumes name it.
    if has_commits(state, &mine) {
        return mine;
    }
    if note(state, &shared, &own).exists() {
        return Repository::Mirror(shared);
    }
    if is_settled(&mine) {
        return mine;
    }
    let (asked, shown) = (url.clone(), credentials.clone());
    let answer = ask_upstream(state, &upstream.namespace, url, move || {
        remote::list(&asked, &shown, &()).map(drop)
    });
    match answer.await {
        Ok(()) => match accept(state, shared.clone(), own).await {
            Ok(()) => Repository::Mirror(shared),
            Err(_) => mine,
        },
        Err(failure) => {
            tracing::debug!(
                reason = failure.reason,
                repository = %mine,
                "an upstream did not accept credentials"
            );
            mine
        }
    }
}

/// Notes that the upstream accepted the credentials of a request that is answered.
pub(super) async fn accepted(state: &Arc<State>, url: &RemoteUrl, upstream: &Upstream) {
    if let Identity::Private { shared, own } = Identity::of(url, upstream, &state.auth)
        && !note(state, &shared, &own).exists()
    {
        // They are asked for again where it is needed.
        let _ = accept(state, shared, own).await;
    }
}

async fn accept(state: &Arc<State>, shared: MirrorId, own: MirrorId) -> Result<(), Failure> {
    let state = Arc::clone(state);
    background(move || {
        let repository = Repository::Mirror(shared.clone());
        state
            .layout
            .create(&repository)
            .map_err(|error| Failure::internal("making the mirror", &error))?;
        state.touch(&repository);
        write(&state, &shared, &own)
            .map_err(|error| Failure::disk("noting accepted credentials", &error))
    })
    .await
}

fn write(state: &State, shared: &MirrorId, own: &MirrorId) -> io::Result<()> {
    let folder = folder(state, shared);
    make_folder(&folder)?;
    let mut noted = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let at = entry.metadata().and_then(|metadata| metadata.modified());
        noted.push((at.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
    }
    noted.sort();
    for (_, path) in noted.iter().take((noted.len() + 1).saturating_sub(MOST)) {
        fs::remove_file(path)?;
    }
    fs::write(note(state, shared, own), b"")
}

fn folder(state: &State, shared: &MirrorId) -> PathBuf {
    let repository = Repository::Mirror(shared.clone());
    state
        .layout
        .repository(&repository)
        .join("hyprstream/accepted")
}

fn note(state: &State, shared: &MirrorId, own: &MirrorId) -> PathBuf {
    folder(state, shared).join(own.as_str())
}

/// Whether anything was fetched into the mirror.
fn has_commits(state: &State, mirror: &Repository) -> bool {
    let packs = state.layout.repository(mirror).join("objects/pack");
    fs::read_dir(packs).is_ok_and(|mut entries| entries.next().is_some())
}
