//! Repositories as a user makes them: with git and git-lfs.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{Cluster, run};

/// A working copy with a remote on the cluster's registry.
#[derive(Debug)]
pub struct Repository {
    folder: TempDir,
    /// `hyprstream://NAMESPACE/NAME`.
    pub url: String,
    /// The remote as the host reaches it.
    pub remote: String,
}

impl Repository {
    /// An empty working copy of `git/NAMESPACE/NAME` with LFS for safetensors.
    pub fn new(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let folder = TempDir::new().context("make a folder for the working copy")?;
        let (scheme, host) = cluster.registry.split_once("://").context("registry URL")?;
        let token = &cluster.registry_token;
        let remote = format!("{scheme}://e2e:{token}@{host}/git/{namespace}/{name}.git");
        let repository = Self {
            folder,
            url: format!("hyprstream://{namespace}/{name}"),
            remote,
        };
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        repository.git(&["lfs", "install", "--local"])?;
        repository.git(&["remote", "add", "origin", &repository.remote])?;
        repository.write(
            ".gitattributes",
            b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        )?;
        Ok(repository)
    }

    /// The working copy.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Standard output of git in the working copy.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }

    /// A git command in the working copy, not yet run; nothing of the user's configuration counts.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .current_dir(self.folder.path())
            .args(["-c", "user.name=e2e", "-c", "user.email=e2e@example.org"])
            .args(arguments)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", self.folder.path());
        command
    }

    /// Writes a file.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let file = self.folder.path().join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))
    }

    /// Commits everything; the commit.
    pub fn commit(&self, message: &str) -> Result<String> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Pushes the branch, once: after the registry was restarted, wait for it with
    /// [`Cluster::wait_registry`].
    pub fn push(&self) -> Result<()> {
        self.git(&["push", "--quiet", "origin", "HEAD:main"])
            .map(drop)
    }

    /// Commits everything and pushes; the commit.
    pub fn publish(&self, message: &str) -> Result<String> {
        let commit = self.commit(message)?;
        self.push()?;
        Ok(commit)
    }
}
