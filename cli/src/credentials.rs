//! Who we are to a server, found where users of git and Hugging Face keep it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hyprstream_git2db::{Credentials, RemoteUrl, Scheme};

use crate::failure::{Context as _, Failure};

/// Credentials on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct CredentialArgs {
    /// File with a token for the server, `-` for standard input. By default HF_TOKEN and the file
    /// of `hf auth login` for Hugging Face, then ~/.netrc, then git's credential helpers; for ssh
    /// the keys in ~/.ssh.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Private key for ssh, without a passphrase.
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
}

/// Host of Hugging Face, whose tokens go nowhere else.
const HUGGING_FACE: &str = "huggingface.co";

impl CredentialArgs {
    /// What the server of `url` is shown.
    pub(crate) fn find(&self, url: &RemoteUrl) -> Result<Credentials, Failure> {
        match url.scheme() {
            Scheme::Ssh => self.ssh(),
            Scheme::Https | Scheme::Http => self.http(url),
            Scheme::File if self.token_file.is_some() || self.ssh_key.is_some() => Err(
                Failure::usage("a folder of this machine takes no credentials"),
            ),
            Scheme::File => Ok(Credentials::None),
        }
    }

    fn http(&self, url: &RemoteUrl) -> Result<Credentials, Failure> {
        if self.ssh_key.is_some() {
            return Err(Failure::usage("--ssh-key is for ssh:// URLs"));
        }
        if let Some(file) = &self.token_file {
            return Ok(Credentials::Token(read_token(file)?));
        }
        // What lies around is not sent in the clear.
        if url.scheme() == Scheme::Http && !is_loopback(url.host()) {
            return Ok(Credentials::None);
        }
        if url.host() == HUGGING_FACE
            && let Some(token) = hugging_face()
        {
            return Ok(Credentials::Token(token));
        }
        let netrc = home().map(|home| home.join(".netrc"));
        let netrc = netrc.and_then(|file| std::fs::read_to_string(file).ok());
        if let Some(found) = netrc.and_then(|text| from_netrc(&text, url.host())) {
            return Ok(found);
        }
        Ok(helper(url).unwrap_or_default())
    }

    fn ssh(&self) -> Result<Credentials, Failure> {
        if self.token_file.is_some() {
            return Err(Failure::usage("--token-file is for http URLs"));
        }
        let folder = home()
            .map(|home| home.join(".ssh"))
            .ok_or_else(|| Failure::usage("HOME is not set"))?;
        let usual = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| folder.join(name));
        let key = match &self.ssh_key {
            Some(key) => key,
            None => usual.iter().find(|key| key.is_file()).ok_or_else(|| {
                Failure::usage(format!("there is no ssh key in {}", folder.display()))
                    .hint("name one with --ssh-key")
            })?,
        };
        let read = |path: &Path| {
            std::fs::read_to_string(path).context(format_args!("cannot read {}", path.display()))
        };
        Ok(Credentials::SshKey {
            private_key: read(key)?,
            passphrase: None,
            known_hosts: read(&folder.join("known_hosts")).map_err(|failure| {
                failure.hint("ssh to the host once, or run ssh-keyscan, so that it is known")
            })?,
        })
    }
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("standard input cannot be read")?
    } else {
        std::fs::read_to_string(file).context(format_args!("cannot read {}", file.display()))?
    };
    match text.trim() {
        "" => Err(Failure::usage(format!("{} is empty", file.display()))),
        token => Ok(token.to_owned()),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

fn hugging_face() -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        let cache = set("HF_HOME").map(PathBuf::from);
        Some(
            cache
                .or_else(|| Some(home()?.join(".cache/huggingface")))?
                .join("token"),
        )
    });
    set("HF_TOKEN")
        .or_else(|| std::fs::read_to_string(file?).ok())
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

/// The login and password of `host`, or of `default`.
fn from_netrc(text: &str, host: &str) -> Option<Credentials> {
    let mut words = text.split_whitespace();
    let (mut applies, mut login, mut password) = (false, None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if applies && password.is_some() {
                    break;
                }
                (login, password) = (None, None);
                applies = word == "default" || words.next() == Some(host);
            }
            "login" => login = words.next(),
            "password" => password = words.next(),
            // A macro ends with an empty line, which words do not show; it stands last by custom.
            "macdef" => break,
            _ => {}
        }
    }
    let password = password.filter(|_| applies)?.to_owned();
    Some(match login {
        Some(username) => Credentials::Basic {
            username: username.to_owned(),
            password,
        },
        None => Credentials::Token(password),
    })
}

/// What git's credential helpers know; nobody is asked.
fn helper(url: &RemoteUrl) -> Option<Credentials> {
    let parsed = url::Url::parse(url.as_str()).ok()?;
    let mut child = Command::new("git")
        .args(["credential", "fill"])
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "true")
        .env("SSH_ASKPASS", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let host = match parsed.port() {
        Some(port) => format!("{}:{port}", url.host()),
        None => url.host().to_owned(),
    };
    let question = format!(
        "protocol={}\nhost={host}\npath={}\n\n",
        parsed.scheme(),
        parsed.path().trim_start_matches('/')
    );
    child.stdin.take()?.write_all(question.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .filter(|value| !value.is_empty())
    };
    Some(Credentials::Basic {
        username: value("username")?.to_owned(),
        password: value("password")?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netrc_gives_what_its_machine_says_and_nothing_of_another() {
        let text = "machine a.org login u password p\nmachine b.org\n  password q\n";
        let basic = |username: &str, password: &str| Credentials::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        assert_eq!(from_netrc(text, "a.org"), Some(basic("u", "p")));
        assert_eq!(
            from_netrc(text, "b.org"),
            Some(Credentials::Token("q".to_owned()))
        );
        assert_eq!(from_netrc(text, "c.org"), None);
        let text = format!("{text}default login d password r");
        assert_eq!(from_netrc(&text, "c.org"), Some(basic("d", "r")));
        assert_eq!(from_netrc(&text, "a.org"), Some(basic("u", "p")));
    }

    #[test]
    fn only_this_machine_is_shown_secrets_in_the_clear() {
        assert!(is_loopback("127.0.0.1") && is_loopback("[::1]") && is_loopback("localhost"));
        assert!(!is_loopback("10.0.0.1") && !is_loopback("localhost.example.org"));
    }
}
