//! A home, an upstream made by git and git-lfs, and the program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct Place {
    dir: TempDir,
}

/// What a command printed and its exit code.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("user")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with a user's environment in which nothing of this machine's user is found.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.path("user"))
            .env("HYPRSTREAM_HOME", self.path("home"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_NAME", "A")
            .env("GIT_AUTHOR_EMAIL", "a@example.org")
            .env("GIT_COMMITTER_NAME", "A")
            .env("GIT_COMMITTER_EMAIL", "a@example.org")
            .env_remove("XDG_DATA_HOME")
            .env_remove("HF_TOKEN")
            .current_dir(self.dir.path());
        command
    }

    /// Runs the program.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_in(".", args)
    }

    /// The same in a folder.
    pub(crate) fn run_in(&self, folder: &str, args: &[&str]) -> Ran {
        let output = self
            .command(env!("CARGO_BIN_EXE_hyprstream"))
            .current_dir(self.path(folder))
            .args(args)
            .output()
            .unwrap();
        Ran::of(&output)
    }

    /// Runs it, which has to work.
    #[track_caller]
    pub(crate) fn ok(&self, folder: &str, args: &[&str]) -> String {
        let ran = self.run_in(folder, args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.out
    }

    /// Runs it with --json.
    #[track_caller]
    pub(crate) fn json(&self, folder: &str, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(folder, &all)).unwrap()
    }

    /// Runs stock git, which has to work.
    #[track_caller]
    pub(crate) fn git(&self, folder: &str, args: &[&str]) -> String {
        let output = self
            .command("git")
            .current_dir(self.path(folder))
            .args(args)
            .output()
            .unwrap();
        let ran = Ran::of(&output);
        assert_eq!(ran.code, 0, "git {args:?}: {ran:?}");
        ran.out.trim().to_owned()
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.path(path)).unwrap()
    }

    /// A bare repository `upstream.git`, made by git, with a large file by git-lfs.
    pub(crate) fn upstream(&self) -> Vec<u8> {
        let weights: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::create_dir_all(self.path("work")).unwrap();
        self.git("work", &["init", "--quiet", "--initial-branch=main"]);
        self.git("work", &["lfs", "install", "--local"]);
        self.write(
            "work/.gitattributes",
            "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        );
        self.write("work/config.json", "{}\n");
        self.write("work/model.safetensors", &weights);
        self.git("work", &["add", "--all"]);
        self.git("work", &["commit", "--quiet", "--message", "A model"]);
        self.git("work", &["tag", "v1"]);
        self.git(
            ".",
            &[
                "init",
                "--quiet",
                "--bare",
                "--initial-branch=main",
                "upstream.git",
            ],
        );
        let url = self.url();
        self.git("work", &["remote", "add", "origin", &url]);
        self.git("work", &["push", "--quiet", "origin", "main", "v1"]);
        weights
    }

    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.path("upstream.git").display())
    }
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
