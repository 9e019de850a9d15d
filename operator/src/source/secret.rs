//! Credentials out of a Secret.
//!
//! Only out of one that is meant for it. Whoever may write Models need not be somebody who may read
//! Secrets, and chooses the host that the credentials are sent to.

use std::collections::BTreeMap;

use hyprstream_contract::{grants::SECRET_TYPE, registry::Credentials};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, ResourceExt};

/// Type of Secrets for git, and label of others that may be used for it, with the value `true`.
const MARK: &str = "hyprstream.io/git-credentials";
/// Types of Kubernetes' own that are for git and the like.
const TYPES: [&str; 2] = ["kubernetes.io/basic-auth", "kubernetes.io/ssh-auth"];

/// Credentials and the version of the Secret that they come from.
pub(super) struct Found {
    pub(super) credentials: Credentials,
    pub(super) version: String,
}

/// A Secret gives no credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("get Secret {0}")]
    Get(String, #[source] kube::Error),
    #[error("the operator may not read Secret {0}: grant it get on secrets in this namespace")]
    Forbidden(String),
    #[error(
        "there is no Secret {0} in this namespace: create it, or correct spec.source.secretRef"
    )]
    NotFound(String),
    #[error(
        "Secret {name} is not marked as credentials for git, so it is not used: if its content may \
         be sent to the host in spec.source.url, run kubectl label secret {name} {MARK}=true, or \
         make it with type {MARK}, {} or {}",
        TYPES[0],
        TYPES[1]
    )]
    Unmarked { name: String, version: String },
    #[error("Secret {name} holds no credentials: {why}")]
    Invalid {
        name: String,
        why: String,
        version: String,
    },
}

pub(super) async fn read(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Found, SecretError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match api.get_opt(name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(SecretError::NotFound(name.to_owned())),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Err(SecretError::Forbidden(name.to_owned()));
        }
        Err(error) => return Err(SecretError::Get(name.to_owned(), error)),
    };
    let version = secret.resource_version().unwrap_or_default();
    if !is_marked(&secret) {
        return Err(SecretError::Unmarked {
            name: name.to_owned(),
            version,
        });
    }
    match credentials(&secret.data.unwrap_or_default()) {
        Ok(credentials) => Ok(Found {
            credentials,
            version,
        }),
        Err(why) => Err(SecretError::Invalid {
            name: name.to_owned(),
            why,
            version,
        }),
    }
}

fn is_marked(secret: &Secret) -> bool {
    let kind = secret.type_.as_deref().unwrap_or_default();
    // The word of a volume is for the registry alone, whoever marks its Secret.
    if kind == SECRET_TYPE {
        return false;
    }
    kind == MARK || TYPES.contains(&kind) || secret.labels().get(MARK).is_some_and(|v| v == "true")
}

/// Reads the keys of the types Opaque, `kubernetes.io/basic-auth` and `kubernetes.io/ssh-auth`.
fn credentials(data: &BTreeMap<String, ByteString>) -> Result<Credentials, String> {
    let text = |key: &str| match data.get(key) {
        None => Ok(None),
        Some(bytes) => match std::str::from_utf8(&bytes.0) {
            Err(_) => Err(format!("key {key} is not text")),
            // `kubectl create secret --from-file` keeps the line end of the file.
            Ok(text) if text.trim().is_empty() => Err(format!("key {key} is empty")),
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
        },
    };
    if let Some(token) = text("token")? {
        return Ok(Credentials::Token(token));
    }
    if let Some(private_key) = text("ssh-privatekey")? {
        let Some(known_hosts) = text("known_hosts")? else {
            return Err(
                "with ssh-privatekey it needs known_hosts, as ssh-keyscan HOST prints \
                        them; without them no host can be trusted"
                    .to_owned(),
            );
        };
        // OpenSSH refuses a key without a line end.
        let private_key = private_key + "\n";
        return Ok(Credentials::SshKey {
            private_key,
            passphrase: text("passphrase")?,
            known_hosts,
        });
    }
    match (text("username")?, text("password")?) {
        (Some(username), Some(password)) => Ok(Credentials::Basic { username, password }),
        (Some(_), None) => Err("it has username but no password".to_owned()),
        (None, Some(password)) => Ok(Credentials::Token(password)),
        (None, None) => Err(
            "it needs token, or username and password, or ssh-privatekey and known_hosts"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(data: &[(&str, &str)], expected: Result<Credentials, &str>) {
        let data = data
            .iter()
            .map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())))
            .collect();
        match (credentials(&data), expected) {
            (Ok(found), Ok(expected)) => assert!(found == expected, "{data:?}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn only_secrets_that_say_so_are_for_git() {
        for (kind, value, expected) in [
            ("Opaque", None, false),
            ("Opaque", Some("true"), true),
            ("Opaque", Some("false"), false),
            ("kubernetes.io/service-account-token", None, false),
            ("kubernetes.io/basic-auth", None, true),
            ("kubernetes.io/ssh-auth", None, true),
            ("hyprstream.io/git-credentials", None, true),
            ("hyprstream.io/volume-word", None, false),
            ("hyprstream.io/volume-word", Some("true"), false),
        ] {
            let mut secret = Secret {
                type_: Some(kind.to_owned()),
                ..Secret::default()
            };
            if let Some(value) = value {
                secret
                    .labels_mut()
                    .insert(MARK.to_owned(), value.to_owned());
            }
            assert_eq!(is_marked(&secret), expected, "{kind} {value:?}");
        }
    }

    #[test]
    fn the_usual_kinds_of_secrets_give_credentials() {
        check(&[("token", "t\n")], Ok(Credentials::Token("t".into())));
        check(
            &[("username", "u"), ("password", "p")],
            Ok(Credentials::Basic {
                username: "u".into(),
                password: "p".into(),
            }),
        );
        check(
            &[("ssh-privatekey", "k"), ("known_hosts", "h")],
            Ok(Credentials::SshKey {
                private_key: "k\n".into(),
                passphrase: None,
                known_hosts: "h".into(),
            }),
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&[], Err("it needs token"));
        check(&[("username", "u")], Err("no password"));
        check(&[("ssh-privatekey", "k")], Err("known_hosts"));
        check(&[("token", " ")], Err("key token is empty"));
    }
}
