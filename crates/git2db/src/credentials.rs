//! How to authenticate to a remote.

use std::fmt;

/// How to authenticate to a remote. Never stored, never logged, not shown by `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None; only what is public can be read.
    #[default]
    None,
    /// An access token. Sent as the password of basic authentication with the user name
    /// `x-access-token`, which GitHub, GitLab (`oauth2` and any other name), Gitea, Hugging Face
    /// and our registry take.
    Token(String),
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A private key for `ssh://`.
    SshKey {
        /// The key in OpenSSH or PEM form.
        private_key: String,
        /// Passphrase of the key.
        passphrase: Option<String>,
        /// Lines as in `known_hosts`. Without a line that names the host it is refused.
        known_hosts: String,
    },
}

impl Credentials {
    /// User name and password for basic authentication, if these are credentials for HTTP.
    pub(crate) fn basic(&self) -> Option<(&str, &str)> {
        match self {
            Self::Token(token) => Some(("x-access-token", token)),
            Self::Basic { username, password } => Some((username, password)),
            Self::None | Self::SshKey { .. } => None,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token(..)",
            Self::Basic { .. } => "Basic(..)",
            Self::SshKey { .. } => "SshKey(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let all = [
            Credentials::Token("hunter2".into()),
            Credentials::Basic {
                username: "hunter2".into(),
                password: "hunter2".into(),
            },
            Credentials::SshKey {
                private_key: "hunter2".into(),
                passphrase: Some("hunter2".into()),
                known_hosts: "hunter2".into(),
            },
        ];
        assert!(!format!("{all:?}").contains("hunter2"));
    }
}
