//! All that hyprstream does with git, LFS and checkouts.
//!
//! | Module | What it does |
//! |---|---|
//! | [`remote`] | asks a remote what a branch or tag names now |
//! | [`repo`] | bare repositories and how single commits come into them |
//! | [`tree`] | the files of a commit, and which of them are refused |
//! | [`lfs`] | pointers, the batch API, verified downloads that continue, uploads |
//! | [`store`] | contents by their SHA-256, each once per disk |
//! | [`checkout`] | a commit's files as hard links into the store, whole or not there |
//! | [`storage`] | writable folders over a checkout: overlay mounts, reflinks, copies; disks of a fixed size |
//! | [`mod@commit`] | staging, also of an overlay's upper, committing, pushing |
//! | [`manager`] | [`Git2DB`]: repositories tracked in one folder, [clones](CloneBuilder), the open ones |
//! | [`handle`] | [`RepositoryHandle`]: a repository as its users work with it: branches, tags, worktrees, merging, history, remotes, fetches, pushes |
//! | [`transport`] | git objects from others than git servers: paths, peers |
//!
//! It is synchronous: calls block, so an async program makes them on threads of their own
//! (`hyprstream-git2db-async`) and ends them through an [`Observer`]. It knows nothing of Kubernetes, reads
//! no environment but that for proxies and certificates, and no git configuration but a
//! repository's own.
//!
//! Every error has a `reason()` for conditions and metrics and an `is_retriable()`. No error, log
//! or `Debug` shows a credential.
//!
//! # Example
//!
//! What the node plugin does, with a repository on this machine in place of a server:
//!
//! ```
//! use hyprstream_git2db::{
//!     Credentials, Include, Reference, RemoteUrl, checkout, commit, lfs, remote, repo, store, tree,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let store = store::ObjectStore::open(&dir.path().join("store"))?;
//!
//! // Somebody commits a model.
//! let upstream = dir.path().join("upstream.git");
//! repo::init_bare(&upstream)?;
//! let config = commit::Change::Put {
//!     path: "config.json".to_owned(),
//!     content: commit::Content::Bytes(b"{}".to_vec()),
//!     executable: false,
//! };
//! let staged = commit::stage(&upstream, None, &[config], &store)?;
//! let author = commit::Author { name: "A".to_owned(), email: "a@example.org".to_owned() };
//! commit::commit(&upstream, "main", &staged, &author, "Add a model")?;
//!
//! // Which commit is it, and its git objects.
//! let url = RemoteUrl::local(&upstream)?; // RemoteUrl::parse("https://...") for a server
//! let reference = Reference::Branch("main".to_owned());
//! let credentials = Credentials::None;
//! let commit = remote::resolve(&url, &reference, &credentials)?;
//! let bare = dir.path().join("node.git");
//! repo::init_bare(&bare)?;
//! let fetch = repo::Fetch {
//!     url: &url,
//!     reference: &reference,
//!     commit: &commit,
//!     history: repo::History::None,
//!     credentials: &credentials,
//! };
//! repo::fetch_commit(&bare, &fetch, &())?;
//!
//! // Its LFS objects.
//! let include = Include::all();
//! let limits = tree::Limits::default();
//! let objects = tree::pointers(&tree::walk(&bare, &commit, &include, &limits)?);
//! if !objects.is_empty() {
//!     lfs::Client::new(&url, &credentials, lfs::Options::default())?
//!         .download(&objects, &store, &())?;
//! }
//!
//! // Its files.
//! let source = checkout::Source { bare: &bare, commit: &commit, include: &include, limits, store: &store };
//! let checkout = checkout::materialise(&source, &dir.path().join("node"))?;
//! assert_eq!(std::fs::read(checkout.path.join("config.json"))?, b"{}");
//! # Ok(())
//! # }
//! ```
//!
//! # Limitations
//!
//! - Git with SHA-1 only; no protocol v2, no partial clone, no submodules.
//! - libgit2 cannot fetch from a shallow repository on a server. One that is served to this library
//!   is fetched with [`repo::History::Whole`]. By path, [`transport::LocalSource`] can.
//! - libgit2 cannot ask a server for all or none of several pushed refs; see
//!   [`RepositoryHandle::push`]. Paths are pushed to without hooks.
//! - An upload of an LFS object that broke off begins anew, object by object.
//! - Which branch a remote's `HEAD` names is guessed from the commit.
//! - LFS over HTTP with the `basic` transfer only: no `git-lfs-authenticate` over ssh, no
//!   extensions, no locks. XET is to be another [`lfs::ObjectSource`].
//! - Files of a checkout are what the blobs say: no line endings are converted and no filter but
//!   LFS is run. In a worktree, libgit2's own filters (line endings, `ident`) run too, but none
//!   that is another program.
//! - Of merges: no rename of a whole folder is found, octopus merges are not made, texts are
//!   compared by Myers' algorithm where git takes histograms, and nothing is left half merged for
//!   somebody to go on with. Renames that are close to half the same may be told otherwise than by
//!   git.
//! - `git add -N`, sparse checkouts, submodules and names that are not UTF-8 are not supported in
//!   worktrees.
//! - ssh host keys are read from a home of libgit2 that exists once per process, so connections
//!   over ssh are begun one after the other (they then run side by side).
//! - An LFS server may send downloads to any HTTP host that this machine reaches, unless a
//!   [`lfs::Guard`] forbids it ([`lfs::Client::guarded`], and [`guarded`] for git's own
//!   connections). What comes is visible only if it has the digest that the commit names.
//! - A blocked read ends with its timeout ([`set_timeouts`], [`lfs::Options::stall_timeout`],
//!   [`Pace`]), not at once when the work is cancelled.
//! - Over ssh the rate is watched once objects come; before that, each answer has its timeout.
//! - A worktree by a mount is shown by [`handle::worktrees::Worktrees::mount_all`] after a reboot; until then its
//!   folder is empty. Its files are as read-only as those of the checkout (mode 0444): whoever is not
//!   root, in no user namespace either, replaces them or changes their mode before writing.
//! - A worktree with an include list is not git's sparse checkout: switching to a commit brings what
//!   differs in files that were left out.
//! - Linux only: `flock`, `renameat2`, hard links, overlays.

pub mod checkout;
mod clone;
pub mod commit;
mod credentials;
mod durable;
mod filter;
pub mod handle;
mod id;
mod include;
pub mod lfs;
mod libgit;
mod limits;
mod lock;
pub mod manager;
mod observer;
mod pace;
pub mod remote;
mod remote_url;
pub mod repo;
pub mod storage;
pub mod store;
pub mod transport;
pub mod tree;
mod trusted;

pub use clone::{CloneBuilder, CloneError, Cloned};
pub use commit::CommitError;
pub use credentials::Credentials;
pub use handle::{
    Depth, Expected, FetchError, FetchOptions, PushError, PushRef, RepositoryHandle, Tags, Worktree,
};
pub use id::{CommitId, Digest, InvalidId, Reference};
pub use include::{Include, InvalidGlob};
pub use libgit::{Timeouts, guarded, set_timeouts};
pub use limits::Limits;
pub use manager::{Git2DB, GitManager};
pub use observer::{Cancel, Observer, Progress, Watch};
pub use pace::Pace;
pub use remote::RemoteError;
pub use remote_url::{InvalidUrl, RemoteUrl, Scheme};
pub use repo::RepoError;
pub use trusted::{NoServer, trust_only, trust_server};
