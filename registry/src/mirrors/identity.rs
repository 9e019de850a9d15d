//! Which mirror a request belongs to.
//!
//! Without credentials it is the public one, shared by all. With credentials it belongs to the
//! namespace, and to all credentials that the upstream has accepted from it: a token that is
//! exchanged for another names the same mirror, so that nothing is fetched again and no volume
//! changes. What was fetched is shown to nobody who lacks all of them.
//!
//! The digests are keyed: they stand in PersistentVolumes, and must not let anyone try out
//! passwords.

use hyprstream_contract::registry::{Credentials, Upstream};
use hyprstream_git2db::RemoteUrl;
use sha2::{Digest, Sha256};

use crate::{auth::Auth, names::MirrorId};

/// The mirrors of one upstream that a request can mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Everybody's.
    Public(MirrorId),
    /// Of a namespace.
    Private {
        /// For all credentials that the upstream accepts.
        shared: MirrorId,
        /// For exactly these, as long as the upstream has not accepted them. Also their name where
        /// it is noted that it has.
        own: MirrorId,
    },
}

impl Identity {
    /// Those of `url` for `upstream`.
    pub(super) fn of(url: &RemoteUrl, upstream: &Upstream, auth: &Auth) -> Self {
        match &upstream.credentials {
            None => Self::Public(public(url)),
            Some(credentials) => Self::Private {
                shared: {
                    let parts = ["accepted", url.as_str(), upstream.namespace.as_str()];
                    MirrorId::from_bytes(auth.keyed_digest(&fields(&parts)))
                },
                own: own(url, &upstream.namespace, credentials, auth),
            },
        }
    }
}

fn public(url: &RemoteUrl) -> MirrorId {
    MirrorId::from_bytes(Sha256::digest(fields(&["public", url.as_str()])).into())
}

fn own(url: &RemoteUrl, namespace: &str, credentials: &Credentials, auth: &Auth) -> MirrorId {
    let mut parts = vec!["private", url.as_str(), namespace];
    match credentials {
        Credentials::Token(token) => parts.extend(["token", token]),
        Credentials::Basic { username, password } => parts.extend(["basic", username, password]),
        // Neither passphrase nor known hosts decide who one is to the upstream, but a wrong one
        // must not be served what a right one fetched.
        Credentials::SshKey {
            private_key,
            passphrase,
            known_hosts,
        } => {
            let passphrase = passphrase.as_deref().unwrap_or_default();
            parts.extend(["ssh", private_key, passphrase, known_hosts]);
        }
    }
    MirrorId::from_bytes(auth.keyed_digest(&fields(&parts)))
}

/// The parts with their lengths, so that no two lists give the same bytes.
fn fields(parts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend((part.len() as u64).to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::TokenFiles;

    fn auth(dir: &std::path::Path) -> Auth {
        let file = |name: &str| {
            let path = dir.join(name);
            std::fs::write(&path, name.repeat(20)).unwrap();
            path
        };
        let files = TokenFiles {
            admin: file("adm"),
            node: file("nod"),
            signing_key: file("key"),
        };
        Auth::open(files, None).unwrap()
    }

    #[test]
    fn a_mirror_is_shared_only_by_those_who_show_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let auth = auth(dir.path());
        let id = |url: &str, namespace: &str, credentials: Option<Credentials>| {
            let url = RemoteUrl::parse(url).unwrap();
            let text = url.to_string();
            let upstream = Upstream {
                url: text,
                namespace: namespace.into(),
                credentials,
            };
            Identity::of(&url, &upstream, &auth)
        };
        let token = |t: &str| Some(Credentials::Token(t.into()));
        let basic = |u: &str, p: &str| {
            Some(Credentials::Basic {
                username: u.into(),
                password: p.into(),
            })
        };
        let public = id("https://h/m", "a", None);
        assert_eq!(public, id("https://H:443/m/", "b", None));
        let all = [
            public,
            id("https://h/n", "a", None),
            id("https://h/m", "a", token("t")),
            id("https://h/m", "b", token("t")),
            id("https://h/m", "a", token("u")),
            id("https://h/m", "a", token("")),
            id("https://h/m", "a", basic("t", "")),
            id("https://h/m", "a", basic("", "t")),
        ];
        let distinct = |identity: &Identity| match identity {
            Identity::Public(id) | Identity::Private { own: id, .. } => id.as_str().to_owned(),
        };
        let distinct: std::collections::HashSet<_> = all.iter().map(distinct).collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[2], id("https://h/m", "a", token("t")));
        let shared = |identity: &Identity| match identity {
            Identity::Public(id) => id.clone(),
            Identity::Private { shared, own } => {
                assert_ne!(shared, own);
                shared.clone()
            }
        };
        // Of a namespace and an upstream, whatever it shows there.
        assert_eq!(shared(&all[2]), shared(&all[4]));
        assert_ne!(shared(&all[2]), shared(&all[3]));
        assert_ne!(shared(&all[0]), shared(&all[2]));
        assert_ne!(shared(&all[2]), shared(&id("https://h/n", "a", token("t"))));
    }
}
