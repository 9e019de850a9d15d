//! Volumes that a pod writes to, with a plain pod and nothing of the operator's.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, Repository, TinyModel, wait_until};
use hyprstream_git2db::{
    Include,
    commit::{self, Author, Upper, stage_upper},
    store::ObjectStore,
};

use crate::{PATIENCE, fresh_seed, grants::grant_by_hand};

/// Of the volume, in bytes.
const CAPACITY: u64 = 64 << 20;
/// Long enough for a scheduler that would place the pod.
const STAYS: Duration = Duration::from_secs(5);

struct Written {
    cluster: Cluster,
    namespace: String,
    /// One that the nodes have, with a shell.
    image: String,
}

impl Written {
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster
            .kubectl(&[&["-n", &self.namespace], args].concat())
    }

    /// A pod with the volume at `/m` that runs `script` and then waits.
    /// It runs on `node`, or where the scheduler likes.
    fn pod(&self, name: &str, node: Option<&str>, script: &str) -> Result<()> {
        let Self {
            namespace, image, ..
        } = self;
        let node = node.map_or_else(String::new, |node| {
            format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}\n")
        });
        self.cluster.apply(&format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
{node}  terminationGracePeriodSeconds: 0
  securityContext:
    runAsUser: 65532
    runAsGroup: 65532
    runAsNonRoot: true
    seccompProfile: {{type: RuntimeDefault}}
  containers:
  - name: shell
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "{script}; sleep 3600"]
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
    volumeMounts: [{{name: m, mountPath: /m}}]
  volumes:
  - name: m
    persistentVolumeClaim: {{claimName: work}}
"#
        ))
    }

    fn wait_running(&self, name: &str) -> Result<()> {
        let phase = || self.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.phase}"]);
        wait_until(PATIENCE, || Ok((phase()? == "Running").then_some(())))
    }

    fn run(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }
}

/// The upper in which a file has this content, as the node plugin sees it: its disk is mounted in the
/// plugin's namespace alone.
fn upper_with(file: &str, content: &str) -> Result<PathBuf> {
    for process in fs::read_dir("/proc").context("list processes")? {
        let volumes = process?.path().join("root/var/lib/hyprstream/volumes");
        // Not a process, or one that has no volumes.
        let Ok(volumes) = fs::read_dir(volumes) else {
            continue;
        };
        for volume in volumes.flatten() {
            let upper = volume.path().join("disk/upper");
            if fs::read_to_string(upper.join(file)).is_ok_and(|found| found.trim() == content) {
                return Ok(upper);
            }
        }
    }
    anyhow::bail!("no node plugin has a volume with {content:?} in {file}")
}

/// Commits what is in the upper on the commit below it, with git2db, and requires that just these
/// files changed, as `git diff --name-status` says it.
fn require_committed(
    work: &Repository,
    base: &str,
    folder: &Path,
    expected: &[&str],
) -> Result<()> {
    let place = tempfile::tempdir()?;
    let bare = place.path().join("bare");
    let bare_text = bare.to_str().context("a path")?;
    work.git(&["clone", "--quiet", "--bare", ".", bare_text])?;
    let store = ObjectStore::open(&place.path().join("store"))?;
    let base_commit = base.parse()?;
    let upper = Upper {
        folder,
        base: &base_commit,
        include: &Include::all(),
        user_attributes: false,
    };
    let staged = stage_upper(&bare, &upper, &store)?;
    let author = Author {
        name: "e2e".to_owned(),
        email: "e2e@example.org".to_owned(),
    };
    let made = commit::commit(&bare, "main", &staged, &author, "what a pod wrote")?;
    let made = made.to_string();
    let git = |args: &[&str]| work.git(&[&["--git-dir", bare_text], args].concat());
    assert_eq!(git(&["rev-parse", &format!("{made}^")])?, base);
    let changed = git(&["diff", "--name-status", "--no-renames", base, &made])?;
    assert_eq!(changed.lines().collect::<Vec<_>>(), expected);
    assert_eq!(git(&["show", &format!("{made}:config.json")])?, "changed");
    git(&["fsck", "--strict", "--no-dangling"]).map(drop)
}

#[test]
fn s17_a_plain_pod_writes_to_a_volume_of_its_capacity_and_no_more() -> Result<()> {
    let cluster = Cluster::from_env()?;
    // It goes with the value.
    let space = cluster.namespace("written")?;
    let namespace = space.name.clone();
    let repository = Repository::new(&cluster, &namespace, "tiny")?;
    TinyModel::new(fresh_seed()).write(&repository)?;
    let commit = repository.publish("first")?;
    let csi = [
        "-n",
        &cluster.system,
        "get",
        "daemonset",
        "hyprstream-csi",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    ];
    let here = Written {
        image: cluster.kubectl(&csi)?,
        namespace: namespace.clone(),
        cluster,
    };
    let volume = format!("{namespace}-work");
    let handle = format!("own-{volume}");
    let word = grant_by_hand(&here.cluster, &handle, &format!("git/{namespace}/tiny"))?;
    here.cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Secret
type: hyprstream.io/volume-word
metadata: {{name: work-word, namespace: {namespace}}}
stringData: {{word: {word}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {volume}}}
spec:
  accessModes: [ReadWriteOncePod]
  capacity: {{storage: 64Mi}}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {{namespace: {namespace}, name: work}}
  csi:
    driver: csi.hyprstream.io
    volumeHandle: {handle}
    nodeStageSecretRef: {{name: work-word, namespace: {namespace}}}
    volumeAttributes:
      hyprstream.io/repository: git/{namespace}/tiny
      hyprstream.io/commit: {commit}
      hyprstream.io/source: hyprstream://{namespace}/tiny
      hyprstream.io/mode: rw
      hyprstream.io/capacity: "{CAPACITY}"
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: work, namespace: {namespace}}}
spec:
  accessModes: [ReadWriteOncePod]
  storageClassName: ""
  volumeName: {volume}
  resources: {{requests: {{storage: 64Mi}}}}
"#
    ))?;

    here.pod(
        "first",
        None,
        "cat /m/config.json > /dev/null && echo changed > /m/c && mv -f /m/c /m/config.json",
    )?;
    here.wait_running("first")?;
    let full = here.run(
        "first",
        &format!(
            "echo {namespace} > /m/new.txt; rm /m/generation_config.json; \
             mv /m/tokenizer.json /m/moved.json; dd if=/dev/zero of=/m/big bs=1M count=200 2>&1 || \
             true; ls -l /m/big"
        ),
    )?;
    ensure!(full.contains("No space left on device"), "{full}");
    // What is in the way of nobody: the same file again, and smaller ones.
    here.run("first", "rm /m/big && echo fits > /m/small && sync")?;

    // Nobody else has it meanwhile.
    here.pod("second", None, "true")?;
    std::thread::sleep(STAYS);
    let phase = here.kubectl(&["get", "pod", "second", "-o", "jsonpath={.status.phase}"])?;
    ensure!(phase == "Pending", "{phase}");
    let node = ["get", "pod", "first", "-o", "jsonpath={.spec.nodeName}"];
    let node = here.kubectl(&node)?;
    here.kubectl(&["delete", "pod", "second", "--wait=true"])?;
    here.kubectl(&["delete", "pod", "first", "--wait=true"])?;

    // A pod that comes after it, on the same node, finds what it wrote, and the commit beneath.
    here.pod("third", Some(&node), "true")?;
    here.wait_running("third")?;
    let read = here.run("third", "cat /m/new.txt /m/small /m/config.json")?;
    assert_eq!(read.trim(), format!("{namespace}\nfits\nchanged"));
    here.run("third", "test -s /m/model.safetensors && test ! -e /m/big")?;

    // Nobody writes to it now, and it is there for as long as the pod has it.
    here.run("third", "sync")?;
    let upper = upper_with("new.txt", &namespace)?;
    let changed = [
        "M\tconfig.json",
        "D\tgeneration_config.json",
        "A\tmoved.json",
        "A\tnew.txt",
        "A\tsmall",
        "D\ttokenizer.json",
    ];
    require_committed(&repository, &commit, &upper, &changed)?;
    here.kubectl(&["delete", "pod", "third", "--wait=true"])?;
    here.kubectl(&["delete", "pvc", "work"])?;
    here.cluster.kubectl(&["delete", "pv", &volume])?;
    Ok(())
}
