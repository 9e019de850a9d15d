//! Which mirror a request belongs to.

use hyprstream_contract::registry::{Credentials, Upstream};
use hyprstream_git2db::RemoteUrl;
use sha2::{Digest, Sha256};

use crate::{auth::Auth, names::MirrorId};

/// The mirror of `url` for those who may read what `upstream` may read.
///
/// Without credentials it is the public one, shared by all. With credentials it belongs to the
/// namespace and to exactly these credentials, so that what was fetched with them is shown to
/// nobody who lacks them. Their digest is keyed: the id stands in PersistentVolumes, and must not
/// let anyone try out passwords.
pub(super) fn mirror_id(url: &RemoteUrl, upstream: &Upstream, auth: &Auth) -> MirrorId {
    let Some(credentials) = &upstream.credentials else {
        return MirrorId::from_bytes(Sha256::digest(fields(&["public", url.as_str()])).into());
    };
    let mut parts = vec!["private", url.as_str(), upstream.namespace.as_str()];
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
            mirror_id(&url, &upstream, &auth)
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
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(all[2], id("https://h/m", "a", token("t")));
    }
}
