//! Full disks, damaged files, a registry that lacks what is asked, and what is deleted when.

use hyprstream_contract::manifest::MANIFEST_PATH;
use hyprstream_csi::proto::csi::{NodeGetVolumeHealthRequest, VolumeHealthErrorType};
use tonic::Code;

use crate::{
    Bench, RO, RW, disk_use, files_below, has_disks, has_one, model, mount_tmpfs,
    support::{in_private_mounts, kubelet::Kubelet, program::Node, registry::Registry},
    until_staged, wait, weights,
};

#[test]
fn what_the_registry_lacks_or_spoils_is_told() {
    in_private_mounts(
        module_path!(),
        "what_the_registry_lacks_or_spoils_is_told",
        async {
            let bench = Bench::start().await;
            let Bench {
                kubelet, registry, ..
            } = &bench;
            let volume = bench.volume(RO);

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
        },
    );
}

#[test]
fn a_full_disk_is_told_and_recovers() {
    in_private_mounts(module_path!(), "a_full_disk_is_told_and_recovers", async {
        let registry = Registry::start();
        let commit = model(&registry);
        let node = Node::new(registry.url());
        let state = node.path("state");
        mount_tmpfs(&state, "3m");
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
        has_one(&staging, 1);
    });
}

#[test]
fn a_full_disk_is_freed_of_what_nothing_uses() {
    in_private_mounts(
        module_path!(),
        "a_full_disk_is_freed_of_what_nothing_uses",
        async {
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
            let staging = kubelet.stage("b", &volume).await.unwrap();
            has_one(&staging, 5);
        },
    );
}

#[test]
fn what_is_used_outlives_every_collection() {
    in_private_mounts(
        module_path!(),
        "what_is_used_outlives_every_collection",
        async {
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
            if has_disks() {
                kubelet
                    .stage("w", &registry.volume(&first, RW))
                    .await
                    .unwrap();
            }
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
            has_one(&a, 1);
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
        },
    );
}

#[test]
fn a_file_damaged_on_the_disk_is_told_and_fetched_anew() {
    in_private_mounts(
        module_path!(),
        "a_file_damaged_on_the_disk_is_told_and_fetched_anew",
        async {
            let bench = Bench::start().await;
            let Bench {
                kubelet,
                node,
                registry,
                ..
            } = &bench;
            let volume = bench.volume(RO);
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
            let staging = until_staged(kubelet, "b", &volume).await;
            has_one(&staging, 1);
            assert_eq!(registry.downloads().len(), 3);
        },
    );
}
