//! What people name a model by: a reference, a folder or a URL.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use hyprstream_contract::{ModelRef, model_ref::AdapterRef};
use hyprstream_git2db::RemoteUrl;

use crate::failure::{Failure, chain};

/// A model, and the adapters that it is asked with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) model: Place,
    /// In the order in which they are stacked.
    pub(crate) adapters: Vec<AdapterRef>,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// A tracked repository: name, branch, commit.
    Tracked {
        name: String,
        branch: Option<String>,
        commit: Option<String>,
    },
    /// A folder of this machine.
    Folder(PathBuf),
    /// A repository elsewhere, and what of it.
    Remote {
        url: String,
        reference: Option<String>,
    },
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("name a model: NAME[:BRANCH[:COMMIT]], a folder or a URL".to_owned());
        }
        if is_url(text) {
            return remote(text);
        }
        if is_path(text) {
            return Ok(folder(text));
        }
        let reference: ModelRef = text
            .parse()
            .map_err(|error| format!("{error}; a folder is named with a slash, as in ./{text}"))?;
        if let Some(namespace) = reference.namespace {
            return Err(format!(
                "{namespace}/ is a namespace of a cluster: here repositories have a name alone, \
                 and folders begin with ./"
            ));
        }
        Ok(Self {
            model: Place::Tracked {
                name: reference.name,
                branch: reference.branch,
                commit: reference.commit,
            },
            adapters: reference.adapters,
        })
    }
}

/// `scheme://...` or `user@host:path`.
pub(crate) fn is_url(text: &str) -> bool {
    if text.contains("://") {
        return true;
    }
    let Some((host, _)) = text.split_once(':') else {
        return false;
    };
    host.contains('@') && !host.contains('/')
}

/// The repository at a URL; `file://` is a folder of this machine.
pub(crate) fn url(text: &str) -> Result<RemoteUrl, Failure> {
    let folder = url::Url::parse(text)
        .ok()
        .filter(|url| url.scheme() == "file")
        .and_then(|url| url.to_file_path().ok());
    match folder {
        Some(folder) => local_url(&folder),
        None => RemoteUrl::parse(text).map_err(|error| Failure::usage(chain(&error))),
    }
}

/// The repository in a folder, or in its `.git`.
pub(crate) fn local_url(folder: &Path) -> Result<RemoteUrl, Failure> {
    let folder = folder
        .canonicalize()
        .map_err(|error| Failure::not_found(format!("{}: {error}", folder.display())))?;
    let inner = folder.join(".git");
    let folder = if inner.is_dir() { inner } else { folder };
    RemoteUrl::local(&folder).map_err(|error| Failure::usage(chain(&error)))
}

fn is_path(text: &str) -> bool {
    text.starts_with(['/', '.', '~']) || text.contains('/') && folder_before_plus(text).is_some()
}

/// The longest beginning that is a folder, and what follows its `+`.
fn folder_before_plus(text: &str) -> Option<(&str, Option<&str>)> {
    if PathBuf::from(text).exists() {
        return Some((text, None));
    }
    text.rmatch_indices('+')
        .map(|(at, _)| (&text[..at], Some(&text[at + 1..])))
        .find(|(folder, _)| PathBuf::from(folder).exists())
}

fn folder(text: &str) -> Named {
    let (path, rest) = folder_before_plus(text).unwrap_or((text, None));
    let adapters = rest.and_then(|rest| adapters(rest).ok());
    // What does not read as adapters is part of the path, which is then told as missing.
    let path = if rest.is_some() && adapters.is_none() {
        text
    } else {
        path
    };
    Named {
        model: Place::Folder(PathBuf::from(path)),
        adapters: adapters.unwrap_or_default(),
    }
}

/// `URL[@REF][+ADAPTER[@SCALE]]...`; what follows the last slash is looked at, so that a user's
/// name in front of a host is none.
fn remote(text: &str) -> Result<Named, String> {
    let last = text.rfind(['/', ':']).map_or(0, |at| at + 1);
    let (base, rest) = match text[last..].split_once('+') {
        Some((base, rest)) => (last + base.len(), Some(rest)),
        None => (text.len(), None),
    };
    // A branch may hold slashes: the first `@` behind the host decides.
    let path = match text.find("://") {
        Some(at) => text[at + 3..]
            .find('/')
            .map_or(base, |slash| at + 3 + slash),
        None => text.find(':').unwrap_or(0),
    };
    let (url, reference) = match text[path.min(base)..base].find('@') {
        Some(at) => {
            let at = path + at;
            (&text[..at], Some(text[at + 1..base].to_owned()))
        }
        None => (&text[..base], None),
    };
    if reference.as_deref() == Some("") {
        // The URL is not repeated: a password may stand in it.
        return Err(
            "the URL names nothing behind its last @: write a branch, tag or commit".into(),
        );
    }
    Ok(Named {
        model: Place::Remote {
            url: url.to_owned(),
            reference,
        },
        adapters: rest.map(adapters).transpose()?.unwrap_or_default(),
    })
}

fn adapters(text: &str) -> Result<Vec<AdapterRef>, String> {
    // The parser of references reads them; the name in front is any.
    let reference: ModelRef = format!("m+{text}")
        .parse()
        .map_err(|error| format!("{error}"))?;
    Ok(reference.adapters)
}

/// The suffix by which a request asks for adapters.
pub(crate) fn suffix(adapters: &[AdapterRef]) -> String {
    adapters
        .iter()
        .map(|adapter| match adapter.scale {
            Some(scale) => format!("+{}@{scale}", adapter.name),
            None => format!("+{}", adapter.name),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, model: &Place, with: &str) {
        let named: Named = text.parse().unwrap();
        assert_eq!(&named.model, model, "{text}");
        assert_eq!(suffix(&named.adapters), with, "{text}");
    }

    fn tracked(name: &str, branch: Option<&str>, commit: Option<&str>) -> Place {
        Place::Tracked {
            name: name.to_owned(),
            branch: branch.map(str::to_owned),
            commit: commit.map(str::to_owned),
        }
    }

    fn elsewhere(url: &str, reference: Option<&str>) -> Place {
        Place::Remote {
            url: url.to_owned(),
            reference: reference.map(str::to_owned),
        }
    }

    #[test]
    fn references_folders_and_urls_are_told_apart() {
        check("qwen3", &tracked("qwen3", None, None), "");
        check(
            "qwen3:main:1a2b3c4+sql@0.5+tone",
            &tracked("qwen3", Some("main"), Some("1a2b3c4")),
            "+sql@0.5+tone",
        );
        check("./m", &Place::Folder("./m".into()), "");
        check("/tmp+sql@2", &Place::Folder("/tmp".into()), "+sql@2");
        check("/no/such+x y", &Place::Folder("/no/such+x y".into()), "");
        check(
            "https://u@example.org/a/m",
            &elsewhere("https://u@example.org/a/m", None),
            "",
        );
        check(
            "https://example.org/a/m@v1+sql",
            &elsewhere("https://example.org/a/m", Some("v1")),
            "+sql",
        );
        check(
            "https://example.org/a/m@feature/x",
            &elsewhere("https://example.org/a/m", Some("feature/x")),
            "",
        );
        check(
            "git@example.org:a/m.git@main",
            &elsewhere("git@example.org:a/m.git", Some("main")),
            "",
        );
    }

    #[test]
    fn what_names_nothing_is_an_error_that_says_what_to_type() {
        let error = |text: &str| text.parse::<Named>().unwrap_err();
        assert!(error("").contains("name a model"));
        assert!(error("My Model").contains("./My Model"));
        assert!(error("prod/qwen").contains("namespace"));
        assert!(error("https://example.org/m@").contains('@'));
        assert!(!error("https://u:hunter2@example.org/m@").contains("hunter2"));
        assert!(error("https://example.org/m+a@99").contains("-10 to 10"));
    }
}
