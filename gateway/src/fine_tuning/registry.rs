//! Client of the registry: commits, branches, and large files by the LFS protocol.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use hyprstream_contract::repositories::{
    BRANCHES_PATH, Branch, BranchPage, COMMITS_PATH, CommitRequest, Committed, FileChange,
    FileContent, MergeRefusal, REFERENCE_MOVED,
};
use hyprstream_tls::Trust;
use reqwest::{Body, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::fs::File;
use tokio_util::io::ReaderStream;
use url::Url;

/// Longest that a call may take, but for those that move files.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that the registry may be silent while a file moves.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(2);
/// Branches that are asked for at once.
const PAGE: usize = 1000;
/// Most branches of one kind that are looked through.
const MAX_BRANCHES: usize = 100_000;
/// Longest message that is passed on, in characters.
const MAX_MESSAGE_CHARS: usize = 500;
const LFS_TYPE: &str = "application/vnd.git-lfs+json";

/// The registry, as the gateway sees it.
#[derive(Clone, Debug)]
pub struct Registry {
    http: reqwest::Client,
    url: Url,
    token_file: PathBuf,
}

/// A call to the registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client could not be made.
    #[error("make an HTTP client")]
    Client(#[source] reqwest::Error),
    /// The token's file cannot be read.
    #[error("read the registry's token from {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No answer.
    #[error("call {url}")]
    Unreachable {
        /// What was called.
        url: Url,
        /// Why.
        source: reqwest::Error,
    },
    /// The branch does not name what was expected.
    #[error("the branch {branch} of {repository} names something else")]
    Moved {
        /// The repository.
        repository: String,
        /// The branch.
        branch: String,
    },
    /// The registry said what was wrong.
    #[error("{url} answered with status {status}: {message}")]
    Refused {
        /// What was called.
        url: Url,
        /// Status of the answer.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// An answer that does not follow the contract, as of a proxy.
    #[error("{url} answered what it may not: {why}")]
    Unexpected {
        /// What was called.
        url: Url,
        /// What.
        why: String,
    },
    /// The file could not be read again.
    #[error("read the file that is uploaded")]
    File(#[source] std::io::Error),
    /// There are more branches than are looked through.
    #[error("{repository} has more than {MAX_BRANCHES} branches")]
    TooMany {
        /// The repository.
        repository: String,
    },
}

impl RegistryError {
    /// What clients of the gateway may know.
    pub(super) fn for_clients(&self) -> String {
        match self {
            Self::Refused { message, .. } if self.is_of_request() => {
                format!("refuses it: {message}")
            }
            Self::Refused { status, .. } => format!("answered with status {status}"),
            Self::TooMany { .. } => {
                format!("has more than {MAX_BRANCHES} of the namespace: delete some")
            }
            _ => "does not answer as it should; try again later".to_owned(),
        }
    }

    /// Whether the request is at fault, so that it cannot succeed later.
    pub(super) fn is_of_request(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(status.as_u16(), 400 | 413 | 422),
            Self::TooMany { .. } => true,
            _ => false,
        }
    }
}

/// A large file, by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// SHA-256, 64 hexadecimal digits.
    pub(super) oid: String,
    /// Bytes.
    pub(super) size: u64,
}

impl Object {
    /// The change that puts it at a path.
    pub(super) fn at(&self, path: &str) -> FileChange {
        FileChange {
            path: path.to_owned(),
            content: FileContent::Lfs {
                oid: self.oid.clone(),
                size: self.size,
            },
        }
    }
}

#[derive(Serialize)]
struct Batch<'a> {
    operation: &'static str,
    transfers: [&'static str; 1],
    hash_algo: &'static str,
    objects: [&'a Object; 1],
}

#[derive(Deserialize)]
struct BatchAnswer {
    #[serde(default)]
    objects: Vec<Offered>,
}

#[derive(Deserialize)]
struct Offered {
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<ObjectError>,
}

#[derive(Default, Deserialize)]
struct Actions {
    #[serde(default)]
    upload: Option<Action>,
    #[serde(default)]
    verify: Option<Action>,
    #[serde(default)]
    download: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

impl Registry {
    /// A client of the registry at `url`. The token is read from its file for every call, so that
    /// it may change.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(url: Url, token_file: PathBuf, trust: &Trust) -> Result<Self, RegistryError> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_TIMEOUT)
            .no_proxy()
            .tls_backend_preconfigured(trust.client_config())
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(RegistryError::Client)?;
        Ok(Self {
            http,
            url,
            token_file,
        })
    }

    /// Makes a commit.
    pub(super) async fn commit(&self, request: &CommitRequest) -> Result<Committed, RegistryError> {
        let url = self.endpoint(COMMITS_PATH);
        let call = self.http.post(url.clone()).json(request).timeout(TIMEOUT);
        let response = self.send(call, &url).await?;
        if response.status() == StatusCode::CONFLICT {
            let refusal: MergeRefusal = read(response, &url).await?;
            return Err(if refusal.reason == REFERENCE_MOVED {
                RegistryError::Moved {
                    repository: request.repository.clone(),
                    branch: request.branch.clone(),
                }
            } else {
                RegistryError::Refused {
                    url,
                    status: StatusCode::CONFLICT,
                    message: short(&refusal.message),
                }
            });
        }
        read(good(response, &url).await?, &url).await
    }

    /// All branches whose names begin with `prefix`; none if the repository does not exist.
    pub(super) async fn branches(
        &self,
        repository: &str,
        prefix: &str,
    ) -> Result<Vec<Branch>, RegistryError> {
        let mut all: Vec<Branch> = Vec::new();
        loop {
            let url = self.some(repository, prefix, all.last());
            let Some(page) = self.page(url).await? else {
                return Ok(all);
            };
            let is_over = !page.has_more || page.branches.is_empty();
            all.extend(page.branches);
            if is_over {
                return Ok(all);
            }
            if all.len() >= MAX_BRANCHES {
                return Err(RegistryError::TooMany {
                    repository: repository.to_owned(),
                });
            }
        }
    }

    /// The branch of that name, if there is one.
    pub(super) async fn branch(
        &self,
        repository: &str,
        name: &str,
    ) -> Result<Option<Branch>, RegistryError> {
        let page = self.page(self.one(repository, name)).await?;
        Ok(page.and_then(|page| page.branches.into_iter().find(|branch| branch.name == name)))
    }

    /// Deletes a branch; false if there is none.
    pub(super) async fn delete_branch(
        &self,
        repository: &str,
        name: &str,
    ) -> Result<bool, RegistryError> {
        let url = self.one(repository, name);
        let call = self.http.delete(url.clone()).timeout(TIMEOUT);
        let response = self.send(call, &url).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        good(response, &url).await?;
        Ok(true)
    }

    /// Has a repository take an object, unless it has it. One that does not exist is made.
    pub(super) async fn upload(
        &self,
        repository: &str,
        object: &Object,
        file: File,
    ) -> Result<(), RegistryError> {
        let offered = match self.batch(repository, "upload", object).await {
            Err(RegistryError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => {
                self.make(repository).await?;
                self.batch(repository, "upload", object).await?
            }
            other => other?,
        };
        let Some(upload) = offered.upload else {
            return Ok(());
        };
        let place = self.place(&upload)?;
        let body = Body::wrap_stream(ReaderStream::with_capacity(file, 256 << 10));
        let call = with_headers(self.http.put(place.clone()), &upload)
            .header("content-type", "application/octet-stream")
            .header("content-length", object.size)
            .body(body);
        good(self.send(call, &place).await?, &place).await?;
        if let Some(verify) = offered.verify {
            let place = self.place(&verify)?;
            let body = serde_json::to_vec(object).expect("texts and numbers are JSON");
            let call = with_headers(self.http.post(place.clone()), &verify)
                .header("content-type", LFS_TYPE)
                .body(body)
                .timeout(TIMEOUT);
            good(self.send(call, &place).await?, &place).await?;
        }
        Ok(())
    }

    /// An object as it comes.
    pub(super) async fn download(
        &self,
        repository: &str,
        object: &Object,
    ) -> Result<Response, RegistryError> {
        let offered = self.batch(repository, "download", object).await?;
        let Some(download) = offered.download else {
            return Err(RegistryError::Unexpected {
                url: self.url.clone(),
                why: "an object is offered without a place".to_owned(),
            });
        };
        let place = self.place(&download)?;
        let call = with_headers(self.http.get(place.clone()), &download);
        good(self.send(call, &place).await?, &place).await
    }

    /// Makes the repository, by a first commit on a branch of its own.
    async fn make(&self, repository: &str) -> Result<(), RegistryError> {
        let text = "Files that were uploaded through the OpenAI API, one branch each.\n";
        let request = CommitRequest {
            repository: repository.to_owned(),
            branch: "main".to_owned(),
            expected: Some(None),
            changes: vec![FileChange {
                path: "README.md".to_owned(),
                content: FileContent::Text(text.to_owned()),
            }],
            author: None,
            message: "Begin\n".to_owned(),
        };
        match self.commit(&request).await {
            // Another request was faster.
            Ok(_) | Err(RegistryError::Moved { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn batch(
        &self,
        repository: &str,
        operation: &'static str,
        object: &Object,
    ) -> Result<Actions, RegistryError> {
        let url = self.endpoint(&format!("/git/{repository}.git/info/lfs/objects/batch"));
        let batch = Batch {
            operation,
            transfers: ["basic"],
            hash_algo: "sha256",
            objects: [object],
        };
        let body = serde_json::to_vec(&batch).expect("texts and numbers are JSON");
        let call = self.http.post(url.clone()).body(body).timeout(TIMEOUT);
        let call = call
            .header("content-type", LFS_TYPE)
            .header("accept", LFS_TYPE);
        let response = good(self.send(call, &url).await?, &url).await?;
        let answer: BatchAnswer = read(response, &url).await?;
        let offered = answer.objects.into_iter().next();
        let offered = offered.ok_or_else(|| RegistryError::Unexpected {
            url: url.clone(),
            why: "no object".to_owned(),
        })?;
        match offered.error {
            Some(ObjectError { code, message }) => Err(RegistryError::Refused {
                url,
                status: StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                message: short(&message),
            }),
            None => Ok(offered.actions.unwrap_or_default()),
        }
    }

    /// Where an action leads: to the registry, and nowhere else, since it is shown our token.
    fn place(&self, action: &Action) -> Result<Url, RegistryError> {
        let unexpected = |why: &str| RegistryError::Unexpected {
            url: self.url.clone(),
            why: format!("{why}: {}", short(&action.href)),
        };
        let url: Url = action
            .href
            .parse()
            .map_err(|_| unexpected("an action leads to no address"))?;
        if url.origin() == self.url.origin() {
            Ok(url)
        } else {
            Err(unexpected("an action leads elsewhere"))
        }
    }

    async fn page(&self, url: Url) -> Result<Option<BranchPage>, RegistryError> {
        let call = self.http.get(url.clone()).timeout(TIMEOUT);
        let response = self.send(call, &url).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        read(good(response, &url).await?, &url).await.map(Some)
    }

    fn some(&self, repository: &str, prefix: &str, after: Option<&Branch>) -> Url {
        let mut url = self.endpoint(&format!("{BRANCHES_PATH}/{repository}"));
        let mut query = url.query_pairs_mut();
        query.append_pair("prefix", prefix);
        query.append_pair("limit", &PAGE.to_string());
        if let Some(after) = after {
            query.append_pair("after", &after.name);
        }
        drop(query);
        url
    }

    fn one(&self, repository: &str, branch: &str) -> Url {
        let mut url = self.endpoint(&format!("{BRANCHES_PATH}/{repository}"));
        url.query_pairs_mut().append_pair("branch", branch);
        url
    }

    fn endpoint(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    async fn send(&self, call: RequestBuilder, url: &Url) -> Result<Response, RegistryError> {
        let token = tokio::fs::read_to_string(&self.token_file)
            .await
            .map_err(|source| RegistryError::Token {
                path: self.token_file.clone(),
                source,
            })?;
        let sent = call.bearer_auth(token.trim()).send().await;
        sent.map_err(|source| RegistryError::Unreachable {
            url: url.clone(),
            source,
        })
    }
}

/// The headers that an action asks for, but for the credentials, which are ours.
fn with_headers(call: RequestBuilder, action: &Action) -> RequestBuilder {
    let headers = action
        .header
        .iter()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
    headers.fold(call, |call, (name, value)| call.header(name, value))
}

async fn good(response: Response, url: &Url) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let said = response.json::<Said>().await;
    Err(RegistryError::Refused {
        url: url.clone(),
        status,
        message: said.map_or_else(|_| "it did not say why".to_owned(), |s| short(&s.message)),
    })
}

async fn read<T: DeserializeOwned>(response: Response, url: &Url) -> Result<T, RegistryError> {
    let status = response.status();
    response
        .json()
        .await
        .map_err(|error| RegistryError::Unexpected {
            url: url.clone(),
            why: format!("status {status}, {error}"),
        })
}

fn short(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}
