//! A 20 MB adapter, committed and pushed to a fork on our registry, the program itself.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyprstream_git2db::{
    Credentials, PushRef, Reference, RemoteUrl, RepositoryHandle,
    commit::{self, Author, Change, Content},
    remote, repo,
    store::ObjectStore,
};

use crate::{
    Plan, Row, mebibytes,
    process::{Taken, run, written_bytes},
    seconds,
    support::git::git,
};

const ADMIN: &str = "admin-token-of-the-benchmark";
const ADAPTER_BYTES: usize = 20_000_000;
const ATTRIBUTES: &str = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";

pub(crate) fn measure(plan: &Plan) -> Vec<Row> {
    let Some(program) = &plan.registry else {
        println!("| push of an adapter | not measured: give --registry=PROGRAM | | |");
        return Vec::new();
    };
    let folder = plan.folder.join("push");
    fs::create_dir(&folder).unwrap();
    let registry = Registry::start(program, &folder);
    registry.seed(&folder);
    registry.fork();
    let fork = registry.url("fork");
    let (ours, theirs) = (folder.join("ours"), folder.join("theirs"));
    run(&["push-ours", "clone", ours.to_str().unwrap(), &fork, ""]);
    run(&["push-git", "clone", theirs.to_str().unwrap(), &fork, ""]);
    let mut taken: [Vec<Taken>; 4] = Default::default();
    for round in 0..plan.rounds {
        for (at, (side, place)) in [("push-git", &theirs), ("push-ours", &ours)]
            .into_iter()
            .enumerate()
        {
            let adapter = folder.join("adapter.safetensors");
            fs::write(
                &adapter,
                crate::clone::noise((2 * round + at) as u64 + 7, ADAPTER_BYTES),
            )
            .unwrap();
            rustix::fs::sync();
            for (step, what) in ["commit", "push"].into_iter().enumerate() {
                let adapter = adapter.to_str().unwrap();
                let place = place.to_str().unwrap();
                taken[2 * at + step].push(run(&[side, what, place, &fork, adapter]));
            }
        }
    }
    registry.check(&folder, plan.rounds);
    let [git_commit, git_push, our_commit, our_push] = &taken;
    let times = |taken: &[Taken]| -> Vec<f64> { taken.iter().map(|t| t.seconds).collect() };
    let both = |commit: &[Taken], push: &[Taken]| -> Vec<f64> {
        let pairs = commit.iter().zip(push);
        pairs.map(|(c, p)| c.seconds + p.seconds).collect()
    };
    let most = |taken: &[Taken]| taken.iter().map(|t| t.memory_bytes).max().unwrap();
    vec![
        seconds(
            "push of a 20 MB adapter to a fork",
            times(our_push),
            times(git_push),
        )
        .at_most_of_git(0.5),
        seconds(
            "with its commit before",
            both(our_commit, our_push),
            both(git_commit, git_push),
        )
        .at_most_of_git(0.5),
        mebibytes("peak memory of the push", most(our_push), most(git_push)),
    ]
}

/// The program, which ends with the value.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(program: &Path, folder: &Path) -> Self {
        let secret = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let mut child = Command::new(program)
            .arg("serve")
            .arg("--root")
            .arg(folder.join("registry"))
            .arg("--admin-token-file")
            .arg(secret("admin", ADMIN))
            .arg("--node-token-file")
            .arg(secret("node", "node-token-of-the-benchmark"))
            .arg("--signing-key-file")
            .arg(secret("key", "a signing key of the benchmark, long enough"))
            .args(["--min-free-bytes", "0", "--log-format", "json"])
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serving = lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains("\"serving\""))
            .unwrap();
        // Whoever closes the pipe would end a program that logs.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let line: serde_json::Value = serde_json::from_str(&serving).unwrap();
        let address = line["listen"].as_str().unwrap().to_owned();
        Self { child, address }
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/git/bench/{name}.git", self.address)
    }

    /// A model with a large file.
    fn seed(&self, folder: &Path) {
        let work = folder.join("work");
        git(folder, &["init", "-q", "-b", "main", "work"]);
        git(&work, &["lfs", "install", "--local"]);
        fs::write(work.join(".gitattributes"), ATTRIBUTES).unwrap();
        fs::write(
            work.join("model.safetensors"),
            crate::clone::noise(1, ADAPTER_BYTES),
        )
        .unwrap();
        for words in [
            &["add", "-A"][..],
            &["commit", "-q", "-m", "A model"],
            &["push", "-q", &with_token(&self.url("model")), "main"],
        ] {
            git(&work, words);
        }
    }

    fn fork(&self) {
        let body = serde_json::json!({"from": "bench/model", "to": "bench/fork"});
        let token = STANDARD.encode(format!("any:{ADMIN}"));
        let answer = ureq::post(format!("http://{}/api/v1/forks", self.address))
            .header("authorization", format!("Basic {token}"))
            .send_json(body)
            .unwrap();
        assert_eq!(answer.status().as_u16(), 201);
    }

    /// Both sides' adapters are there, and whole.
    fn check(&self, folder: &Path, rounds: usize) {
        let url = with_token(&self.url("fork"));
        for branch in ["ours", "theirs"] {
            let name = format!("seen-{branch}");
            git(folder, &["clone", "-q", "-b", branch, &url, &name]);
            git(&folder.join(&name), &["lfs", "install", "--local"]);
            git(&folder.join(&name), &["lfs", "pull"]);
            let log = git(&folder.join(&name), &["rev-list", "--count", "HEAD"]);
            assert_eq!(log, (rounds + 1).to_string());
            let adapter = folder.join(&name).join("adapter.safetensors");
            assert_eq!(fs::metadata(adapter).unwrap().len(), ADAPTER_BYTES as u64);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_token(url: &str) -> String {
    url.replacen("http://", &format!("http://any:{ADMIN}@"), 1)
}

/// One side's step, in a process of its own.
pub(crate) fn side(words: &[String]) {
    let [side, step, folder, url, adapter] = words else {
        panic!("side NAME STEP FOLDER URL ADAPTER");
    };
    let folder = Path::new(folder);
    if side == "push-git" {
        theirs(step, folder, url, adapter);
    } else {
        ours(step, folder, url, adapter);
    }
    println!("{}", written_bytes());
}

fn ours(step: &str, folder: &Path, url: &str, adapter: &str) {
    fs::create_dir_all(folder).unwrap();
    let store = ObjectStore::open(&folder.join("store")).unwrap();
    let repository = RepositoryHandle::init(&folder.join("bare.git"), store).unwrap();
    let url = RemoteUrl::parse(url).unwrap();
    let credentials = Credentials::Token(ADMIN.to_owned());
    match step {
        "clone" => {
            let reference = Reference::Branch("main".to_owned());
            let commit = remote::resolve(&url, &reference, &credentials).unwrap();
            let fetch = repo::Fetch {
                url: &url,
                reference: &reference,
                commit: &commit,
                history: repo::History::Whole,
                credentials: &credentials,
            };
            repo::fetch_commit(repository.path(), &fetch, &()).unwrap();
            repository.create_branch("ours", &commit, false).unwrap();
        }
        "commit" => {
            let base = repository.resolve("ours").unwrap();
            let put = Change::Put {
                path: "adapter.safetensors".to_owned(),
                content: Content::File(PathBuf::from(adapter)),
                executable: false,
            };
            let staged =
                commit::stage(repository.path(), Some(&base), &[put], repository.store()).unwrap();
            let author = Author {
                name: "A".to_owned(),
                email: "a@example.org".to_owned(),
            };
            commit::commit(repository.path(), "ours", &staged, &author, "An adapter").unwrap();
        }
        _ => {
            let refs = [PushRef::branch("ours")];
            let pushed = repository.push(&url, &refs, &credentials, &()).unwrap();
            assert_eq!(pushed.objects.bytes_moved, ADAPTER_BYTES as u64);
        }
    }
}

fn theirs(step: &str, folder: &Path, url: &str, adapter: &str) {
    let quiet = |words: &[&str], place: &Path| {
        git(place, words);
    };
    match step {
        "clone" => {
            let above = folder.parent().unwrap();
            quiet(&["clone", "-q", &with_token(url), "theirs"], above);
            for words in [
                &["lfs", "install", "--local"][..],
                &["config", "lfs.locksverify", "false"],
                &["switch", "-q", "-c", "theirs"],
                &["lfs", "pull"],
            ] {
                quiet(words, folder);
            }
        }
        "commit" => {
            fs::rename(adapter, folder.join("adapter.safetensors")).unwrap();
            quiet(&["add", "adapter.safetensors"], folder);
            quiet(&["commit", "-q", "-m", "An adapter"], folder);
        }
        _ => quiet(&["push", "-q", "origin", "theirs"], folder),
    }
}
