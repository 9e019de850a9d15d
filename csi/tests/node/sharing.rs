//! One checkout, many volumes.

use std::{
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::Duration,
};

use hyprstream_contract::{Manifest, manifest::MANIFEST_PATH};
use hyprstream_csi::mount::{Kernel, Mounts, Overlay, Upper};
use tonic::Code;

use crate::{
    Bench, RO, RW, disk_use, has_disks, has_one, model,
    support::{
        in_private_mounts,
        kubelet::{Kubelet, mounts_below},
        program::Node,
        registry::Registry,
    },
    weights,
};

#[test]
fn twenty_volumes_of_a_commit_share_one_fetch_and_one_checkout() {
    in_private_mounts(
        module_path!(),
        "twenty_volumes_of_a_commit_share_one_fetch_and_one_checkout",
        async {
            let bench = Bench::start().await;
            let Bench {
                program,
                kubelet,
                node,
                registry,
                commit,
                ..
            } = &bench;
            let volume = bench.volume(RO);

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
                has_one(&target, 1);
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
        },
    );
}

#[test]
fn the_next_commit_brings_only_what_changed() {
    in_private_mounts(
        module_path!(),
        "the_next_commit_brings_only_what_changed",
        async {
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
        },
    );
}

#[test]
fn a_pointer_gives_no_bytes_of_another_repository() {
    in_private_mounts(
        module_path!(),
        "a_pointer_gives_no_bytes_of_another_repository",
        async {
            let bench = Bench::start().await;
            let Bench {
                kubelet,
                registry,
                commit,
                ..
            } = &bench;
            // The owner's volume brings the objects into the store of the node.
            kubelet.stage("owner", &bench.volume(RO)).await.unwrap();
            let refused = kubelet
                .stage("other", &registry.pointers_only(commit, RO))
                .await
                .unwrap_err();
            assert_eq!(refused.code(), Code::NotFound, "{refused}");
            assert!(!kubelet.staging("other").join("one.safetensors").exists());
            kubelet.stage("again", &bench.volume(RO)).await.unwrap();
        },
    );
}

#[test]
fn what_a_pod_writes_is_its_own() {
    in_private_mounts(module_path!(), "what_a_pod_writes_is_its_own", async {
        if !has_disks() {
            return;
        }
        let bench = Bench::start().await;
        let Bench { kubelet, node, .. } = &bench;
        let volume = bench.volume(RW);
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
        for volume in std::fs::read_dir(node.path("state/volumes")).unwrap() {
            let upper = volume.unwrap().path().join("disk/upper");
            assert!(disk_use(&upper) < 1 << 20, "{}", disk_use(&upper));
        }

        let second = kubelet.publish("b", "b2", true).await.unwrap_err();
        assert_eq!(second.code(), Code::FailedPrecondition, "{second}");
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
}

#[test]
fn old_and_new_kernels_mount_the_same() {
    in_private_mounts(
        module_path!(),
        "old_and_new_kernels_mount_the_same",
        async {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| {
                let path = folder.path().canonicalize().unwrap().join(name);
                std::fs::create_dir_all(&path).unwrap();
                path
            };
            std::fs::write(path("low").join("file"), "low").unwrap();
            std::fs::write(path("top").join("file"), "top").unwrap();
            let mount = |kernel: Kernel, name: &str, writable: bool| {
                let upper = Upper {
                    upper: path(&format!("{name}-up")),
                    work: path(&format!("{name}-w")),
                };
                let overlay = Overlay {
                    lowers: vec![path("top"), path("low")],
                    upper: writable.then_some(upper),
                    context: None,
                };
                kernel.overlay(&overlay, &path(name)).unwrap();
                assert_eq!(
                    std::fs::read_to_string(path(name).join("file")).unwrap(),
                    "top"
                );
                assert_eq!(
                    std::fs::write(path(name).join("file"), "x").is_ok(),
                    writable
                );
                let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
                let line = mounts
                    .lines()
                    .find(|line| line.contains(&format!("/{name} ")))
                    .unwrap();
                for option in ["nosuid", "nodev", "noatime"] {
                    assert!(line.contains(option), "{line}");
                }
                kernel
                    .list()
                    .unwrap()
                    .into_iter()
                    .find(|m| m.path == path(name))
                    .unwrap()
            };
            for writable in [false, true] {
                let new = mount(Kernel::default(), &format!("new-{writable}"), writable);
                let old = mount(Kernel::old(), &format!("old-{writable}"), writable);
                for mounted in [&new, &old] {
                    assert!(mounted.is_ours());
                    assert_eq!(mounted.read_only, !writable);
                    assert!(mounted.folders.contains(&path("low")), "{mounted:?}");
                }
                assert_eq!(new.folders.len(), old.folders.len());
            }
        },
    );
}
