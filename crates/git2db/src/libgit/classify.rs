//! What an error of libgit2 means. It tells classes, codes and English texts; all three are
//! needed. The texts are those of libgit2 1.9.

use git2::{ErrorClass, ErrorCode};

use crate::{RemoteError, RemoteUrl, Scheme};

/// Whether libgit2 failed because no space is left.
pub(crate) fn is_disk_full(error: &git2::Error) -> bool {
    let text = error.message();
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}

/// Whether libgit2 asked for more memory than it may have, so that an object is too large.
pub(crate) fn is_memory_full(error: &git2::Error) -> bool {
    error.class() == ErrorClass::NoMemory || error.message().contains("ut of memory")
}

/// Whether an object is not as git would write it.
pub(crate) fn is_malformed(error: &git2::Error) -> bool {
    matches!(
        error.class(),
        ErrorClass::Tree | ErrorClass::Object | ErrorClass::Tag
    ) && error.code() != ErrorCode::NotFound
}

/// What `error` of an operation on `url` means.
pub(crate) fn remote_error(url: &RemoteUrl, error: &git2::Error) -> RemoteError {
    let text = error.message();
    let detail = shortened(text);
    let url_ = || url.clone();
    let unreachable = || RemoteError::HostUnreachable {
        host: url.host().to_owned(),
        detail: shortened(text),
    };
    if is_disk_full(error) {
        return RemoteError::DiskFull { detail };
    }
    if is_memory_full(error) {
        return RemoteError::Refused {
            url: url_(),
            detail: format!(
                "one of its git objects is larger than {} bytes when it is unpacked, which is the \
                 limit: large files belong into LFS",
                super::largest_object()
            ),
        };
    }
    if text.contains("object format") || text.contains("extensions.objectformat") {
        return RemoteError::Refused {
            url: url_(),
            detail: format!(
                "its git objects are named by SHA-256, which is not supported: push it to a \
                 repository with SHA-1 ({detail})"
            ),
        };
    }
    let connecting = [
        "failed to resolve address",
        "failed to connect",
        "SSL error: ",
    ];
    if connecting.iter().any(|sign| text.starts_with(sign)) {
        return unreachable();
    }
    match error.code() {
        ErrorCode::Timeout => {
            return RemoteError::Timeout {
                url: url_(),
                detail,
            };
        }
        ErrorCode::Auth => {
            return RemoteError::AuthenticationFailed {
                url: url_(),
                detail,
            };
        }
        ErrorCode::Certificate => {
            return RemoteError::HostNotTrusted {
                host: url.host().to_owned(),
                detail,
            };
        }
        _ => {}
    }
    match error.class() {
        ErrorClass::Http => http_error(url, text, detail),
        ErrorClass::Ssl if text.contains("certificate") => RemoteError::HostNotTrusted {
            host: url.host().to_owned(),
            detail,
        },
        ErrorClass::Ssl => unreachable(),
        ErrorClass::Ssh => ssh_error(url, text, detail),
        ErrorClass::Net if tells_not_found(text) => RemoteError::RepositoryNotFound {
            url: url_(),
            detail,
        },
        // What the other side sent is not as git sends it; the last are about names and objects.
        ErrorClass::Net
        | ErrorClass::Indexer
        | ErrorClass::Zlib
        | ErrorClass::Object
        | ErrorClass::Tree
        | ErrorClass::Tag
        | ErrorClass::Sha1
        | ErrorClass::Reference
        | ErrorClass::Invalid
            if url.scheme() != Scheme::File =>
        {
            RemoteError::Upstream {
                url: url_(),
                detail,
            }
        }
        ErrorClass::Net | ErrorClass::Indexer | ErrorClass::Zlib => RemoteError::Upstream {
            url: url_(),
            detail,
        },
        _ if url.scheme() == Scheme::File
            && (error.code() == ErrorCode::NotFound
                || text.starts_with("failed to resolve path")) =>
        {
            RemoteError::RepositoryNotFound {
                url: url_(),
                detail,
            }
        }
        _ => RemoteError::Local { detail },
    }
}

fn http_error(url: &RemoteUrl, text: &str, detail: String) -> RemoteError {
    let url = url.clone();
    let status = text
        .strip_prefix("unexpected http status code: ")
        .and_then(|code| code.trim().parse::<u16>().ok());
    match status {
        Some(401 | 403) => RemoteError::AuthenticationFailed { url, detail },
        Some(404 | 410) => RemoteError::RepositoryNotFound { url, detail },
        Some(408 | 504) => RemoteError::Timeout { url, detail },
        None if text.contains("content-type") => RemoteError::RepositoryNotFound {
            url,
            detail: format!("the server does not answer as a git server does ({detail})"),
        },
        _ => RemoteError::Upstream { url, detail },
    }
}

fn ssh_error(url: &RemoteUrl, text: &str, detail: String) -> RemoteError {
    if text.contains("hostkey") || text.contains("host key") {
        let detail = format!("its host key is not the one in known_hosts ({detail})");
        return RemoteError::HostNotTrusted {
            host: url.host().to_owned(),
            detail,
        };
    }
    if text.contains("Timed out") || text.contains("timed out") {
        return RemoteError::Timeout {
            url: url.clone(),
            detail,
        };
    }
    let key = [
        "authenticat",
        "publickey",
        "private key",
        "Unable to extract",
        "callback",
    ];
    if key.iter().any(|sign| text.contains(sign)) {
        return RemoteError::AuthenticationFailed {
            url: url.clone(),
            detail,
        };
    }
    if tells_not_found(text) {
        return RemoteError::RepositoryNotFound {
            url: url.clone(),
            detail,
        };
    }
    if text.contains("failed to start SSH session") {
        return RemoteError::HostUnreachable {
            host: url.host().to_owned(),
            detail,
        };
    }
    RemoteError::Upstream {
        url: url.clone(),
        detail,
    }
}

/// What GitHub, GitLab, Gitea, git itself and git daemon say.
fn tells_not_found(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    [
        "not found",
        "does not appear to be a git repository",
        "could not be found",
        "not exported",
        "does not exist",
        "no such",
    ]
    .iter()
    .any(|sign| text.contains(sign))
}

fn shortened(text: &str) -> String {
    text.trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(class: ErrorClass, code: ErrorCode, text: &str, reason: &str) {
        let url = RemoteUrl::parse("https://host/a").unwrap();
        let error = remote_error(&url, &git2::Error::new(code, class, text));
        assert_eq!(error.reason(), reason, "{error}");
    }

    #[test]
    fn what_libgit2_says_is_told_apart() {
        use ErrorClass::{Http, Net, Odb, Os, Ssh, Ssl};
        use ErrorCode::{Auth, Certificate, GenericError as Other, Timeout};
        check(
            Net,
            Other,
            "failed to resolve address for host: Name",
            "HostUnreachable",
        );
        check(
            Os,
            Other,
            "failed to connect to host: Connection refused",
            "HostUnreachable",
        );
        check(
            Net,
            Timeout,
            "failed to connect to host: Operation timed out",
            "HostUnreachable",
        );
        check(
            Net,
            Timeout,
            "could not read from socket: timed out",
            "UpstreamError",
        );
        check(
            Ssl,
            Certificate,
            "the SSL certificate is invalid",
            "HostUnreachable",
        );
        check(Ssl, Other, "SSL error: unknown error", "HostUnreachable");
        check(
            Os,
            Other,
            "SSL error: syscall failure: Resource temporarily",
            "HostUnreachable",
        );
        check(Http, Auth, "refused", "AuthenticationFailed");
        check(
            Http,
            Other,
            "unexpected http status code: 403",
            "AuthenticationFailed",
        );
        check(
            Http,
            Other,
            "unexpected http status code: 404",
            "RepositoryNotFound",
        );
        check(
            Http,
            Other,
            "unexpected http status code: 503",
            "UpstreamError",
        );
        check(
            Http,
            Other,
            "invalid content-type: 'text/html'",
            "RepositoryNotFound",
        );
        check(
            Ssh,
            Other,
            "ERROR: Repository not found.",
            "RepositoryNotFound",
        );
        check(
            Ssh,
            Certificate,
            "invalid or unknown remote ssh hostkey",
            "HostUnreachable",
        );
        check(
            Net,
            Other,
            "remote error: access denied or repository not exported: /a",
            "RepositoryNotFound",
        );
        check(Net, Other, "unexpected EOF", "UpstreamError");
        check(
            Os,
            Other,
            "failed to write: No space left on device",
            "DiskFull",
        );
        check(Odb, Other, "odd", "InternalError");
    }
}
