//! Disks that hold too little: who gets the space, what goes for it, and what works without any.

use std::path::Path;

use hyprstream_csi::proto::csi::NodeUnpublishVolumeRequest;
use tonic::Code;

use crate::{
    RO, RW, files_below, fill, mount_ext4, mount_tmpfs,
    support::{
        in_private_mounts,
        kubelet::{Kubelet, mounts_below, text},
        program::Node,
        registry::Registry,
    },
    until_staged, wait, weights,
};

/// A commit with one file of these weights.
fn commit_of(registry: &Registry, seed: u8, bytes: usize) -> String {
    registry.write_lfs("one.safetensors", &weights(seed, bytes));
    registry.commit()
}

fn is_whole(folder: &Path, seed: u8, bytes: usize) -> bool {
    std::fs::read(folder.join("one.safetensors")).unwrap() == weights(seed, bytes)
}

#[test]
fn of_two_fetches_that_fit_one_after_the_other_one_ends_and_the_other_is_told() {
    in_private_mounts(
        module_path!(),
        "of_two_fetches_that_fit_one_after_the_other_one_ends_and_the_other_is_told",
        async {
            const SIZE: usize = 6 << 20;
            let registry = Registry::start();
            let commits = [3, 4].map(|seed| commit_of(&registry, seed, SIZE));
            let node = Node::new(registry.url());
            mount_tmpfs(&node.path("state"), "10m");
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let volumes = commits.map(|commit| registry.volume(&commit, RO));

            registry.hold(&weights(3, SIZE), true);
            let first = {
                let (kubelet, volume) = (kubelet.clone(), volumes[0].clone());
                tokio::spawn(async move { kubelet.stage_patiently("a", &volume).await })
            };
            wait(async || registry.is_asked_for(&weights(3, SIZE))).await;
            for _ in 0..3 {
                let full = kubelet.stage("b", &volumes[1]).await.unwrap_err();
                assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
                assert!(full.message().contains("needs 6.0 MiB"), "{full}");
            }
            registry.hold(&weights(3, SIZE), false);
            let staging = first.await.unwrap().unwrap();
            assert!(is_whole(&staging, 3, SIZE));
            assert_eq!(registry.downloads().len(), 1, "nothing began in vain");

            kubelet.unstage("a").await.unwrap();
            let staging = until_staged(&kubelet, "b", &volumes[1]).await;
            assert!(is_whole(&staging, 4, SIZE));
            assert_eq!(registry.downloads().len(), 2, "nothing began anew");
        },
    );
}

#[test]
fn a_fetch_under_way_keeps_nothing_of_others_on_the_disk() {
    in_private_mounts(
        module_path!(),
        "a_fetch_under_way_keeps_nothing_of_others_on_the_disk",
        async {
            let registry = Registry::start();
            let [old, slow, next] = [(3, 6), (4, 1), (5, 5)]
                .map(|(seed, mib)| commit_of(&registry, seed, mib << 20))
                .map(|commit| registry.volume(&commit, RO));
            let node = Node::new(registry.url());
            mount_tmpfs(&node.path("state"), "10m");
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            kubelet.stage("old", &old).await.unwrap();
            kubelet.unstage("old").await.unwrap();

            registry.hold(&weights(4, 1 << 20), true);
            let waits = {
                let kubelet = kubelet.clone();
                tokio::spawn(async move { kubelet.stage_patiently("slow", &slow).await })
            };
            wait(async || registry.is_asked_for(&weights(4, 1 << 20))).await;
            let staging = kubelet.stage("next", &next).await.unwrap();
            assert!(is_whole(&staging, 5, 5 << 20));
            registry.hold(&weights(4, 1 << 20), false);
            assert!(is_whole(&waits.await.unwrap().unwrap(), 4, 1 << 20));
        },
    );
}

#[test]
fn room_is_made_by_the_longest_unused_and_not_by_what_a_failed_fetch_left() {
    in_private_mounts(
        module_path!(),
        "room_is_made_by_the_longest_unused_and_not_by_what_a_failed_fetch_left",
        async {
            let registry = Registry::start();
            let volume = |seed: u8, mib: usize| {
                let commit = commit_of(&registry, seed, mib << 20);
                registry.volume(&commit, RO)
            };
            let [oldest, newer, broken, next] =
                [(3, 2), (4, 2), (5, 4), (6, 3)].map(|(seed, mib)| volume(seed, mib));
            let huge = volume(7, 60);
            let node = Node::new(registry.url());
            mount_tmpfs(&node.path("state"), "9m");
            let program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            for (handle, volume) in [("oldest", &oldest), ("newer", &newer)] {
                kubelet.stage(handle, volume).await.unwrap();
                kubelet.unstage(handle).await.unwrap();
            }
            registry.halve(&weights(5, 4 << 20), true);
            let failed = kubelet
                .stage_patiently("broken", &broken)
                .await
                .unwrap_err();
            assert_eq!(failed.code(), Code::Unavailable, "{failed}");
            let parts = node.path("state/store/parts");
            let part_bytes = || -> u64 {
                let parts = files_below(&parts).into_iter();
                parts.map(|part| part.metadata().unwrap().len()).sum()
            };
            let came = part_bytes();
            assert!(came >= 2 << 20, "{came}");

            // What can never fit takes nothing away.
            let full = kubelet.stage("huge", &huge).await.unwrap_err();
            assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
            let before = registry.downloads().len();
            kubelet.stage("newer", &newer).await.unwrap();
            kubelet.unstage("newer").await.unwrap();
            assert_eq!(registry.downloads().len(), before);

            kubelet.stage("next", &next).await.unwrap();
            assert_eq!(part_bytes(), came);
            assert_eq!(
                program.metric("hyprstream_csi_collected_bytes_total").await,
                f64::from(2 << 20)
            );
            let before = registry.downloads().len();
            kubelet.stage("newer", &newer).await.unwrap();
            assert_eq!(
                registry.downloads().len(),
                before,
                "the longest unused went"
            );
        },
    );
}

#[test]
fn a_full_disk_keeps_no_pod_from_ending() {
    in_private_mounts(
        module_path!(),
        "a_full_disk_keeps_no_pod_from_ending",
        async {
            let registry = Registry::start();
            let commit = commit_of(&registry, 3, 100_000);
            let node = Node::new(registry.url());
            let state = node.path("state");
            if !mount_ext4(&node, &state, 48) {
                return;
            }
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let (ro, rw) = (registry.volume(&commit, RO), registry.volume(&commit, RW));
            // Enough entries that one more would need a block.
            let pods = [("ro", &["p", "q"][..]), ("rw", &["p"])];
            for ((handle, pods), volume) in pods.iter().zip([&ro, &rw]) {
                kubelet.stage(handle, volume).await.unwrap();
                for pod in *pods {
                    kubelet
                        .publish(handle, &format!("{handle}-{pod}"), *handle == "ro")
                        .await
                        .unwrap();
                }
            }
            std::fs::write(kubelet.target("rw-p").join("adapter"), "x").unwrap();
            let filled = fill(&state, 0);
            for (handle, pods) in pods {
                for pod in pods {
                    kubelet
                        .unpublish(handle, &format!("{handle}-{pod}"))
                        .await
                        .unwrap();
                }
                kubelet.unstage(handle).await.unwrap();
            }
            assert_eq!(mounts_below(&node.path("kubelet")), []);

            // What the disk does not know yet is found out after a kill.
            program.kill();
            let _program = node.start().await;
            std::fs::remove_file(filled).unwrap();
            let kubelet = Kubelet::connect(&node).await;
            let staging = until_staged(&kubelet, "rw", &rw).await;
            assert!(staging.join("adapter").exists(), "what was written stays");
            let target = kubelet.publish("rw", "r", false).await.unwrap();
            assert!(is_whole(&target, 3, 100_000));
        },
    );
}

#[test]
fn a_disk_that_fills_at_any_write_is_told_and_recovered_from() {
    in_private_mounts(
        module_path!(),
        "a_disk_that_fills_at_any_write_is_told_and_recovered_from",
        async {
            const SIZE: usize = 20_000;
            let registry = Registry::start();
            let node = Node::new(registry.url());
            let state = node.path("state");
            if !mount_ext4(&node, &state, 16) {
                return;
            }
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            for (round, free_blocks) in [0, 1, 2, 3, 5, 8, 12, 16, 20, 24, 28, 32, 40, 50]
                .into_iter()
                .enumerate()
            {
                let seed = 10 + round as u8;
                let commit = commit_of(&registry, seed, SIZE);
                let volume = registry.volume(&commit, RO);
                let filled = fill(&state, free_blocks);
                let handle = format!("v{round}");
                if let Err(told) = kubelet.stage_patiently(&handle, &volume).await {
                    assert_eq!(
                        told.code(),
                        Code::ResourceExhausted,
                        "{free_blocks}: {told}"
                    );
                }
                if let Err(told) = kubelet.publish(&handle, &handle, false).await {
                    let codes = [Code::ResourceExhausted, Code::FailedPrecondition];
                    assert!(codes.contains(&told.code()), "{free_blocks}: {told}");
                }
                let target = kubelet.target(&handle);
                let request = NodeUnpublishVolumeRequest {
                    volume_id: handle.clone(),
                    target_path: text(&target),
                };
                let gone = kubelet.client().node_unpublish_volume(request).await;
                gone.unwrap_or_else(|told| panic!("{free_blocks}: {told}"));
                kubelet.unstage(&handle).await.unwrap();
                assert_eq!(mounts_below(&node.path("kubelet")), []);

                std::fs::remove_file(filled).unwrap();
                until_staged(&kubelet, &handle, &volume).await;
                let target = kubelet.publish(&handle, &handle, false).await.unwrap();
                assert!(is_whole(&target, seed, SIZE), "{free_blocks}");
                kubelet.unpublish(&handle, &handle).await.unwrap();
                kubelet.unstage(&handle).await.unwrap();
            }
        },
    );
}
