//! A tiny model on a registry, a job on it, and its pod.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use hyprstream_goldens::Tiny;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};

use crate::registry::{Registry, free_port};

pub(crate) const REPOSITORY: &str = "ns/m";
pub(crate) const UID: &str = "0b9f1a5e-uid";

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) registry: Registry,
    pub(crate) model: String,
}

impl Place {
    /// A registry that has the model, whose weights its own attributes give to LFS or not.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::new(&folder.path().join("registry"));
        let mut place = Self {
            folder,
            registry,
            model: String::new(),
        };
        fs::write(
            place.path("gitconfig"),
            "[user]\nname = t\nemail = t@example.org\n[init]\ndefaultBranch = main\n\
             [filter \"lfs\"]\nclean = git-lfs clean -- %f\nsmudge = git-lfs smudge -- %f\n\
             process = git-lfs filter-process\nrequired = true\n[advice]\ndetachedHead = false\n",
        )
        .unwrap();
        let model = place.path("model");
        fs::create_dir(&model).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(Tiny::read("qwen3").dir().join(name), model.join(name)).unwrap();
        }
        fs::write(model.join("tokenizer.json"), tokenizer()).unwrap();
        fs::write(
            model.join(".gitattributes"),
            "model.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        )
        .unwrap();
        place.git("model", &["init", "-q"]);
        place.git("model", &["lfs", "install", "--local"]);
        place.git("model", &["add", "-A"]);
        place.git("model", &["commit", "-qm", "A model"]);
        let url = place.registry.git_url(REPOSITORY);
        place.git("model", &["push", "-q", &url, "main"]);
        place.model = place.git("model", &["rev-parse", "HEAD"]);
        let records: Vec<String> = (3..35)
            .map(|token| format!("{{\"input_ids\": [{token}, 2, 1, {token}, 5, {token}]}}"))
            .collect();
        fs::write(place.path("data.jsonl"), records.join("\n")).unwrap();
        fs::write(place.path("token"), place.registry.token("ns")).unwrap();
        fs::create_dir(place.path("key")).unwrap();
        fs::write(place.path("key/key"), "key-of-the-pod").unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs git, which must succeed. Returns what it prints.
    #[track_caller]
    pub(crate) fn git(&self, folder: &str, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(self.path(folder))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.path("gitconfig"))
            .env("GIT_TERMINAL_PROMPT", "0")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "git {arguments:?}: {out}\n{err}");
        out
    }

    /// Puts files on the model's branch, and returns the commit.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            let path = self.path("model").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.git("model", &["add", "-A"]);
        self.git("model", &["commit", "-qm", "More"]);
        let url = self.registry.git_url(REPOSITORY);
        self.git("model", &["push", "-q", &url, "main"]);
        self.git("model", &["rev-parse", "HEAD"])
    }

    /// A pod of the job `name`, with an empty folder.
    pub(crate) fn pod(
        &self,
        name: &str,
        uid: &str,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Pod {
        let folder = self.path(&format!("pods/{name}-{}", free_port()));
        fs::create_dir_all(&folder).unwrap();
        let mut job = json!({
            "model": self.path("model"),
            "data": {"path": self.path("data.jsonl"), "maxLength": 64},
            "output": folder.join("out"),
            "adapter": {"rank": 4, "dropout": 0.1},
            "training": {"steps": 12, "batch": 4, "warmup": 0.0},
            "checkpoints": {"every": 1, "keep": 2},
        });
        let mut pod = json!({
            "namespace": "ns", "name": name, "uid": uid,
            "registry": self.registry.url(), "repository": REPOSITORY,
            "model": {"url": "https://huggingface.co/org/m", "commit": self.model},
            "dataset": {"url": "configmap://ns/data"},
            "adapter": name, "keep": 2, "tag": false,
        });
        change(&mut job, &mut pod);
        fs::write(folder.join("job.json"), job.to_string()).unwrap();
        fs::write(folder.join("pod.json"), pod.to_string()).unwrap();
        Pod {
            around: self.folder.path().to_owned(),
            more: Vec::new(),
            folder,
            port: free_port(),
        }
    }

    /// Commits of a branch on the registry, the last first: message and files.
    pub(crate) fn log(&self, name: &str) -> Vec<(String, Vec<String>)> {
        let folder = format!("clone-{name}-{}", free_port());
        let url = self.registry.git_url(REPOSITORY);
        let branch = format!("train/{name}");
        self.git("", &["clone", "-q", "--branch", &branch, &url, &folder]);
        let range = format!("{}..HEAD", self.model);
        let ids = self.git(&folder, &["rev-list", &range]);
        let commits = ids.lines().map(|id| {
            let message = self.git(&folder, &["log", "-1", "--format=%B", id]);
            let files = self.git(&folder, &["ls-tree", "-r", "--name-only", id]);
            (message, files.lines().map(str::to_owned).collect())
        });
        commits.collect()
    }
}

/// A pod that runs, or ran.
pub(crate) struct Pod {
    /// The folder of its place.
    around: PathBuf,
    more: Vec<String>,
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
}

impl Pod {
    pub(crate) fn command(&self) -> Command {
        let file = |name: &str| self.folder.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyprstream-worker"));
        #[cfg(feature = "torch")]
        command.env("LD_LIBRARY_PATH", concat!(env!("LIBTORCH"), "/lib"));
        command
            .args(["train", "--json", "--threads", "1"])
            .args(["--log", "info,hyprstream_worker::train::pod=debug"])
            .arg("--job")
            .arg(file("job.json"))
            .arg("--pod")
            .arg(file("pod.json"))
            .arg("--token-file")
            .arg(self.around.join("token"))
            .arg("--key-dir")
            .arg(self.around.join("key"))
            .arg("--termination-log")
            .arg(file("words.json"))
            .args(["--host", "127.0.0.1", "--port", &self.port.to_string()])
            .args(&self.more);
        command
    }

    pub(crate) fn start(&self) -> Child {
        let mut command = self.command();
        let log = fs::File::create(self.folder.join("log")).unwrap();
        let command = command.stdout(Stdio::null()).stderr(log);
        command.spawn().expect("the program starts")
    }

    /// With these options too.
    pub(crate) fn with(mut self, more: &[&str]) -> Self {
        self.more = more.iter().map(|&option| option.to_owned()).collect();
        self
    }

    /// Runs to its end, which has this exit code. Returns its last words.
    #[track_caller]
    pub(crate) fn ends(&self, code: i32) -> Value {
        let output: Output = self.command().output().expect("the program starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        self.words()
    }

    #[track_caller]
    pub(crate) fn waits(&self, mut child: Child, code: i32) -> Value {
        let status = child.wait().unwrap();
        let told = fs::read_to_string(self.folder.join("log")).unwrap();
        assert_eq!(status.code(), Some(code), "{told}");
        self.words()
    }

    pub(crate) fn words(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder.join("words.json")).unwrap()).unwrap()
    }

    /// Waits until the log has a line with this text.
    #[track_caller]
    pub(crate) fn until(&self, text: &str) {
        let log = self.folder.join("log");
        let found = |log: &Path| fs::read_to_string(log).is_ok_and(|log| log.contains(text));
        let since = Instant::now();
        while !found(&log) {
            let told = fs::read_to_string(&log).unwrap_or_default();
            assert!(
                since.elapsed() < Duration::from_mins(2),
                "no {text:?}: {told}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

pub(crate) fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

/// A tokenizer of bytes.
pub(crate) fn tokenizer() -> String {
    let printable = |b: u8| (b'!'..=b'~').contains(&b) || (0xa1..=0xac).contains(&b) || b >= 0xae;
    let mut vocab = Map::new();
    let mut next = 0x100_u32;
    for byte in 0..=255_u8 {
        let code = if printable(byte) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        let name = char::from_u32(code).unwrap().to_string();
        vocab.insert(name, byte.into());
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    json.to_string()
}
