//! The program with real mounts, a real git server and a kubelet's calls.

mod support;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use hyprstream_contract::{Manifest, manifest::MANIFEST_PATH, volume::VolumeMode};
use hyprstream_csi::proto::{
    csi::{NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, VolumeHealthErrorType},
    registration::{InfoRequest, RegistrationStatus, registration_client::RegistrationClient},
};
use support::{
    in_private_mounts,
    kubelet::{Kubelet, mounts_below, text},
    program::Node,
    registry::Registry,
};
use tonic::Code;

const RO: VolumeMode = VolumeMode::ReadOnly;
const RW: VolumeMode = VolumeMode::ReadWrite;

/// The test's own name, for [`in_private_mounts`].
macro_rules! scenario {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            in_private_mounts(stringify!($name), $body);
        }
    };
}

fn weights(seed: u8, size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

fn model(registry: &Registry) -> String {
    registry
        .write("config.json", "{\"a\": 1}")
        .write_lfs("one.safetensors", &weights(1, 3 << 20))
        .write_lfs("two.safetensors", &weights(2, 1 << 20))
        .symlink("link.json", "config.json");
    registry.commit()
}

scenario!(
    twenty_volumes_of_a_commit_share_one_fetch_and_one_checkout,
    async {
        let registry = Registry::start();
        let commit = model(&registry);
        let node = Node::new(registry.url());
        let program = node.start().await;
        let kubelet = Kubelet::connect(&node).await;
        let volume = registry.volume(&commit, RO);

        let stages = (0..20).map(|i| {
            let (kubelet, volume) = (kubelet.clone(), volume.clone());
            tokio::spawn(async move {
                let handle = format!("v{i}");
                kubelet.stage_patiently(&handle, &volume).await?;
                kubelet.publish(&handle, &handle, true).await
            })
        });
        let mut inodes = std::collections::HashSet::new();
        for stage in stages.collect::<Vec<_>>() {
            let target = stage.await.unwrap().unwrap();
            assert_eq!(
                std::fs::read(target.join("one.safetensors")).unwrap(),
                weights(1, 3 << 20)
            );
            assert_eq!(
                std::fs::read_to_string(target.join("link.json")).unwrap(),
                "{\"a\": 1}"
            );
            let manifest: Manifest =
                serde_json::from_slice(&std::fs::read(target.join(MANIFEST_PATH)).unwrap())
                    .unwrap();
            assert_eq!(manifest.commit.as_str(), commit);
            let paths: Vec<&str> = manifest
                .files
                .iter()
                .map(|file| file.path.as_str())
                .collect();
            assert_eq!(
                paths,
                [
                    ".gitattributes",
                    "config.json",
                    "link.json",
                    "one.safetensors",
                    "two.safetensors"
                ]
            );
            let refused = std::fs::write(target.join("x"), "x").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
            inodes.insert(
                std::fs::metadata(target.join("one.safetensors"))
                    .unwrap()
                    .ino(),
            );
        }
        assert_eq!(registry.downloads().len(), 2, "each object came once");
        assert_eq!(mounts_below(&node.path("kubelet")).len(), 40);
        let on_disk = disk_use(&node.path("state"));
        assert!(on_disk < 6 << 20, "{on_disk} bytes for 4 MiB in 20 volumes");

        // 20 volumes of 4 MiB on 4 MiB of disk, but for what small files and folders take.
        let expected = f64::from(19 * (4 << 20) - (64 << 10))..f64::from(19 * (4 << 20));
        let mut shared = 0.0;
        for _ in 0..100 {
            shared = program.metric("hyprstream_csi_bytes_shared").await;
            if expected.contains(&shared) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(expected.contains(&shared), "{shared}");
        assert_eq!(program.metric("hyprstream_csi_volumes").await, 20.0);
        assert_eq!(program.metric("hyprstream_csi_checkouts").await, 1.0);
        assert_eq!(
            program.metric("hyprstream_csi_fetched_bytes_total").await,
            f64::from(4 << 20)
        );
        assert_eq!(
            program.metric("hyprstream_csi_stage_seconds_count").await,
            20.0
        );
    }
);

scenario!(the_next_commit_brings_only_what_changed, async {
    let registry = Registry::start();
    let first = model(&registry);
    registry.write_lfs("two.safetensors", &weights(3, 1 << 20));
    let second = registry.commit();
    let node = Node::new(registry.url());
    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    let a = kubelet
        .stage("a", &registry.volume(&first, RO))
        .await
        .unwrap();
    let before = disk_use(&node.path("state"));
    let b = kubelet
        .stage("b", &registry.volume(&second, RO))
        .await
        .unwrap();
    assert_eq!(registry.downloads().len(), 3);
    assert_eq!(
        std::fs::read(a.join("two.safetensors")).unwrap(),
        weights(2, 1 << 20)
    );
    assert_eq!(
        std::fs::read(b.join("two.safetensors")).unwrap(),
        weights(3, 1 << 20)
    );
    let grown = disk_use(&node.path("state")) - before;
    assert!(
        ((1 << 20)..(3 << 19)).contains(&grown),
        "{grown} bytes for 1 MiB of changes"
    );
});

scenario!(what_a_pod_writes_is_its_own, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    let volume = registry.volume(&commit, RW);
    for handle in ["a", "b"] {
        kubelet.stage(handle, &volume).await.unwrap();
        kubelet.publish(handle, handle, false).await.unwrap();
    }
    let (a, b) = (kubelet.target("a"), kubelet.target("b"));
    std::fs::create_dir(a.join("adapters")).unwrap();
    std::fs::write(a.join("adapters/new"), "x").unwrap();
    std::fs::remove_file(a.join("config.json")).unwrap();
    assert!(!b.join("adapters").exists() && b.join("config.json").exists());

    // A changed mode does not copy the weights.
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(a.join("one.safetensors"), mode).unwrap();
    let state = node.path("state/volumes");
    assert!(disk_use(&state) < 1 << 20, "{}", disk_use(&state));

    kubelet.publish("b", "b2", true).await.unwrap();
    let refused = std::fs::write(kubelet.target("b2").join("x"), "x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    std::fs::write(b.join("x"), "x").unwrap();

    // The same volume that comes back has what was written.
    kubelet.unpublish("a", "a").await.unwrap();
    kubelet.unstage("a").await.unwrap();
    let again = kubelet.stage("a", &volume).await.unwrap();
    assert_eq!(
        std::fs::read_to_string(again.join("adapters/new")).unwrap(),
        "x"
    );
});

scenario!(mounts_outlive_kill_and_end_of_the_program, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    let mut program = node.start().await;
    let volume = registry.volume(&commit, RO);
    let kubelet = Kubelet::connect(&node).await;
    kubelet.stage("a", &volume).await.unwrap();
    kubelet.publish("a", "p", true).await.unwrap();
    let open = std::fs::File::open(kubelet.target("p").join("one.safetensors")).unwrap();

    program.kill();
    assert!(
        node.csi_socket().exists(),
        "a killed process leaves its sockets"
    );
    assert!(kubelet.target("p").join("config.json").exists());
    let mut program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    kubelet.stage("a", &volume).await.unwrap();
    kubelet.publish("a", "q", true).await.unwrap();
    assert_eq!(mounts_below(&node.path("kubelet")).len(), 3);

    assert_eq!(program.terminate().await, Some(0));
    assert!(!node.csi_socket().exists() && !node.registration_socket().exists());
    assert_eq!(mounts_below(&node.path("kubelet")).len(), 3);
    assert_eq!(open.metadata().unwrap().len(), 3 << 20);
    drop(open);

    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    for pod in ["p", "q"] {
        kubelet.unpublish("a", pod).await.unwrap();
    }
    kubelet.unstage("a").await.unwrap();
    assert_eq!(mounts_below(&node.path("kubelet")), []);
    assert_eq!(
        std::fs::read_dir(node.path("state/journal"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(registry.downloads().len(), 2);
});

scenario!(kills_at_any_time_are_followed_by_convergence, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    for round in 0..30_u64 {
        let mode = if round % 2 == 0 { RO } else { RW };
        let volume = registry.volume(&commit, mode);
        let handle = format!("v{}", round % 2);
        let mut program = node.start().await;
        let kubelet = Kubelet::connect(&node).await;
        let life = {
            let (kubelet, handle) = (kubelet.clone(), handle.clone());
            tokio::spawn(async move {
                kubelet.stage(&handle, &volume).await?;
                kubelet.publish(&handle, &handle, true).await?;
                kubelet.unpublish(&handle, &handle).await?;
                kubelet.unstage(&handle).await
            })
        };
        // From the first steps of the first fetch to after the end, a little later every round.
        tokio::time::sleep(Duration::from_millis(round * round / 4)).await;
        program.kill();
        let _ = life.await.unwrap();

        let mut program = node.start().await;
        let kubelet = Kubelet::connect(&node).await;
        let volume = registry.volume(&commit, mode);
        kubelet.stage_patiently(&handle, &volume).await.unwrap();
        let target = kubelet.publish(&handle, &handle, true).await.unwrap();
        assert_eq!(
            std::fs::read(target.join("one.safetensors")).unwrap(),
            weights(1, 3 << 20)
        );
        assert!(
            std::fs::write(target.join("x"), "x").is_err(),
            "round {round}"
        );
        kubelet.unpublish(&handle, &handle).await.unwrap();
        kubelet.unstage(&handle).await.unwrap();
        assert_eq!(mounts_below(&node.path("kubelet")), [], "round {round}");
        program.kill();
    }
});

scenario!(what_the_registry_lacks_or_spoils_is_told, async {
    let registry = Registry::start();
    let good = model(&registry);
    let node = Node::new(registry.url());
    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    let volume = registry.volume(&good, RO);

    registry.spoil(&weights(2, 1 << 20), None);
    let missing = kubelet.stage("a", &volume).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    registry.spoil(&weights(2, 1 << 20), Some(&weights(9, 1 << 20)));
    let wrong = kubelet.stage("a", &volume).await.unwrap_err();
    assert_eq!(wrong.code(), Code::FailedPrecondition, "{wrong}");
    assert!(!kubelet.staging("a").join("config.json").exists());
    assert!(wrong.message().contains("wrong bytes"), "{wrong}");

    registry.restore(&weights(2, 1 << 20));
    registry.set_down(true);
    let down = kubelet.stage("a", &volume).await.unwrap_err();
    assert_eq!(down.code(), Code::Unavailable, "{down}");
    registry.set_down(false);
    let unknown = "1111111111111111111111111111111111111111";
    let unknown = kubelet
        .stage("b", &registry.volume(unknown, RO))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");
    kubelet.stage("a", &volume).await.unwrap();

    registry.symlink("escape", "/etc/passwd");
    let evil = registry.commit();
    let refused = kubelet
        .stage("c", &registry.volume(&evil, RO))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("escape"), "{refused}");
});

scenario!(a_full_disk_is_told_and_recovers, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    let state = node.path("state");
    std::fs::create_dir(&state).unwrap();
    let size = |size: &str, remount: &str| {
        let status = std::process::Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size}{remount}"),
                "tmpfs",
            ])
            .arg(&state)
            .status();
        assert!(status.unwrap().success());
    };
    size("3m", "");
    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    let volume = registry.volume(&commit, RO);
    let full = kubelet.stage("a", &volume).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert!(full.message().contains(state.to_str().unwrap()), "{full}");
    assert!(
        full.message().contains("4.0 MiB"),
        "it tells the need: {full}"
    );
    mount_tmpfs(&state, "32m,remount");
    let staging = kubelet.stage_patiently("a", &volume).await.unwrap();
    assert_eq!(
        std::fs::read(staging.join("one.safetensors")).unwrap(),
        weights(1, 3 << 20)
    );
});

scenario!(a_full_disk_is_freed_of_what_nothing_uses, async {
    let registry = Registry::start();
    let first = model(&registry);
    registry.write_lfs("one.safetensors", &weights(5, 3 << 20));
    let second = registry.commit();
    let node = Node::new(registry.url());
    mount_tmpfs(&node.path("state"), "7m");
    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    kubelet
        .stage("a", &registry.volume(&first, RO))
        .await
        .unwrap();
    kubelet.unstage("a").await.unwrap();

    let volume = registry.volume(&second, RO);
    let full = kubelet.stage("b", &volume).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    let staging = until_staged(&kubelet, "b", &volume).await;
    assert_eq!(
        std::fs::read(staging.join("one.safetensors")).unwrap(),
        weights(5, 3 << 20)
    );
});

scenario!(what_is_used_outlives_every_collection, async {
    let registry = Registry::start();
    let first = model(&registry);
    registry.write_lfs("one.safetensors", &weights(5, 3 << 20));
    let second = registry.commit();
    let mut node = Node::new(registry.url());
    let mut program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    for (handle, commit) in [("a", &first), ("b", &second)] {
        kubelet
            .stage(handle, &registry.volume(commit, RO))
            .await
            .unwrap();
    }
    kubelet
        .stage("w", &registry.volume(&first, RW))
        .await
        .unwrap();
    let before = disk_use(&node.path("state"));
    kubelet.unstage("b").await.unwrap();
    kubelet.unstage("w").await.unwrap();
    assert_eq!(
        disk_use(&node.path("state")) >> 20,
        before >> 20,
        "kept for a while"
    );

    // It collects when it starts.
    program.kill();
    node.flags = vec!["--keep-unused=0s".into()];
    let program = node.start().await;
    let volumes = node.path("state/volumes");
    wait(async || {
        program.metric("hyprstream_csi_collected_bytes_total").await >= f64::from(3 << 20)
            && std::fs::read_dir(&volumes).unwrap().count() == 0
    })
    .await;
    let kubelet = Kubelet::connect(&node).await;
    let a = kubelet.publish("a", "p", true).await.unwrap();
    assert_eq!(
        std::fs::read(a.join("one.safetensors")).unwrap(),
        weights(1, 3 << 20)
    );
    assert!(a.join(MANIFEST_PATH).is_file());
    assert_eq!(registry.downloads().len(), 3);
    kubelet
        .stage("b", &registry.volume(&second, RO))
        .await
        .unwrap();
    assert_eq!(
        registry.downloads().len(),
        4,
        "only the file that was deleted comes again"
    );
});

scenario!(a_file_damaged_on_the_disk_is_told_and_fetched_anew, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    let program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    let volume = registry.volume(&commit, RO);
    kubelet.stage("a", &volume).await.unwrap();
    let target = kubelet.publish("a", "p", true).await.unwrap();
    for file in files_below(&node.path("state/repositories")) {
        if file.file_name().unwrap() == "one.safetensors" {
            std::fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_len(5)
                .unwrap();
        }
    }
    let request = NodeGetVolumeHealthRequest {
        volume_id: "a".into(),
        ..Default::default()
    };
    let health = kubelet
        .client()
        .node_get_volume_health(request)
        .await
        .unwrap()
        .into_inner();
    let told = &health.volume_health.unwrap().health_statuses[0];
    assert_eq!(told.status(), VolumeHealthErrorType::DataLoss);
    assert!(told.message.contains("one.safetensors"), "{told:?}");

    // While it is used, it stays as it is, and others do not get it.
    let other = kubelet.stage("b", &volume).await.unwrap_err();
    assert_eq!(other.code(), Code::Unavailable);
    assert!(other.message().contains("delete the pods"), "{other}");
    assert!(target.join("config.json").exists());

    kubelet.unpublish("a", "p").await.unwrap();
    kubelet.unstage("a").await.unwrap();
    let staging = until_staged(&kubelet, "b", &volume).await;
    assert_eq!(
        std::fs::read(staging.join("one.safetensors")).unwrap(),
        weights(1, 3 << 20)
    );
    assert_eq!(registry.downloads().len(), 3);
    drop(program);
});

scenario!(stats_and_condition_are_told, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    let _program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    kubelet
        .stage("a", &registry.volume(&commit, RO))
        .await
        .unwrap();
    let target = kubelet.publish("a", "p", true).await.unwrap();
    let request = NodeGetVolumeStatsRequest {
        volume_id: "a".into(),
        volume_path: text(&target),
        staging_target_path: String::new(),
    };
    let stats = async || {
        kubelet
            .client()
            .node_get_volume_stats(request.clone())
            .await
            .map(|r| r.into_inner())
    };
    let good = stats().await.unwrap();
    assert!(good.usage[0].used >= 4 << 20 && good.usage[0].total > good.usage[0].used);
    assert!(!good.volume_condition.unwrap().abnormal);

    let umount = std::process::Command::new("umount")
        .arg(&target)
        .status()
        .unwrap();
    assert!(umount.success());
    let gone = stats().await.unwrap().volume_condition.unwrap();
    assert!(gone.abnormal && gone.message.contains("gone"), "{gone:?}");
});

scenario!(the_kubelet_registers_the_plugin_or_ends_it, async {
    let node = Node::new("http://127.0.0.1:1".into());
    let mut program = node.start().await;
    assert!(program.get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(program.get("/readyz").await.starts_with("HTTP/1.1 503"));
    let channel = node.connect(&node.registration_socket()).await;
    let mut client = RegistrationClient::new(channel);
    let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.hyprstream.io");
    assert_eq!(info.endpoint, text(&node.csi_socket()));
    let status = |plugin_registered| RegistrationStatus {
        plugin_registered,
        error: "no such thing".into(),
    };
    client
        .notify_registration_status(status(true))
        .await
        .unwrap();
    assert!(program.get("/readyz").await.starts_with("HTTP/1.1 200"));
    client
        .notify_registration_status(status(false))
        .await
        .unwrap();
    assert_eq!(program.wait().await, Some(1));
    assert!(node.log().contains("no such thing"));
});

scenario!(an_idle_program_is_small, async {
    let registry = Registry::start();
    let commit = model(&registry);
    let node = Node::new(registry.url());
    let program = node.start().await;
    let kubelet = Kubelet::connect(&node).await;
    kubelet
        .stage("a", &registry.volume(&commit, RO))
        .await
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("resident after a stage: {kib} KiB");
    // The build with debug checks takes more than the one that is shipped.
    let limit_mib = if cfg!(debug_assertions) { 60 } else { 30 };
    assert!(kib < limit_mib << 10, "{kib} KiB");
});

/// A disk of its own for `folder`, or another size for the one that it has.
fn mount_tmpfs(folder: &Path, size: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(folder)
        .status();
    assert!(status.unwrap().success());
}

/// Stages as the kubelet does, which tries again after every failure.
async fn until_staged(
    kubelet: &Kubelet,
    handle: &str,
    volume: &BTreeMap<String, String>,
) -> PathBuf {
    for _ in 0..200 {
        match kubelet.stage(handle, volume).await {
            Ok(staging) => return staging,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{:?}", kubelet.stage(handle, volume).await);
}

async fn wait(done: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not come to be");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() && !path.is_symlink() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// Bytes below `folder`, each inode once.
fn disk_use(folder: &Path) -> u64 {
    let output = std::process::Command::new("du")
        .args(["-s", "-B1", "-x"])
        .arg(folder)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
