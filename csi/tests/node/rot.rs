//! Disks that lose bytes, and files that are not what their name says.

use std::os::unix::fs::FileExt;

use tonic::Code;

use crate::{
    Bench, RO, files_below, has_one, model,
    support::{in_private_mounts, kubelet::Kubelet, program::Node, registry::Registry},
    until_staged, wait, weights,
};

/// Changes one bit of every object of this size.
fn flip(node: &Node, bytes: u64) {
    for file in files_below(&node.path("state/store/objects")) {
        if file.metadata().unwrap().len() == bytes {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(b"?", bytes / 2).unwrap();
        }
    }
}

#[test]
fn a_flipped_bit_is_found_kept_from_further_pods_and_fetched_anew() {
    in_private_mounts(
        module_path!(),
        "a_flipped_bit_is_found_kept_from_further_pods_and_fetched_anew",
        async {
            let registry = Registry::start();
            let volume = registry.volume(&model(&registry), RO);
            let mut node = Node::new(registry.url());
            node.flags = vec!["--scrub-every=100ms".into()];
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            kubelet.stage("a", &volume).await.unwrap();
            kubelet.publish("a", "p", true).await.unwrap();
            wait(async || {
                program.metric("hyprstream_csi_scrubbed_bytes_total").await >= f64::from(4 << 20)
            })
            .await;
            flip(&node, 3 << 20);
            wait(async || program.metric("hyprstream_csi_damaged_objects_total").await >= 1.0)
                .await;

            let stats = hyprstream_csi::proto::csi::NodeGetVolumeStatsRequest {
                volume_id: "a".into(),
                volume_path: crate::support::kubelet::text(&kubelet.target("p")),
                staging_target_path: String::new(),
            };
            let stats = kubelet.client().node_get_volume_stats(stats).await.unwrap();
            let condition = stats.into_inner().volume_condition.unwrap();
            assert!(
                condition.abnormal && condition.message.contains("one.safetensors"),
                "{condition:?}"
            );

            // A restart forgets none of it.
            program.kill();
            node.flags = vec!["--scrub-mib-per-second=0".into()];
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            for refused in [
                kubelet.stage("b", &volume).await.unwrap_err(),
                kubelet.publish("a", "q", true).await.unwrap_err(),
            ] {
                assert_eq!(refused.code(), Code::Unavailable, "{refused}");
                assert!(refused.message().contains("one.safetensors"), "{refused}");
            }
            kubelet.unpublish("a", "p").await.unwrap();
            kubelet.unstage("a").await.unwrap();
            let staging = until_staged(&kubelet, "b", &volume).await;
            has_one(&staging, 1);
            assert_eq!(
                registry.downloads().len(),
                3,
                "only the damaged file came again"
            );
        },
    );
}

#[test]
fn a_truncated_object_comes_again_for_the_next_commit_that_shares_it() {
    in_private_mounts(
        module_path!(),
        "a_truncated_object_comes_again_for_the_next_commit_that_shares_it",
        async {
            let bench = Bench::start().await;
            let Bench {
                kubelet,
                node,
                registry,
                ..
            } = &bench;
            kubelet.stage("a", &bench.volume(RO)).await.unwrap();
            registry.write_lfs("two.safetensors", &weights(3, 1 << 20));
            let next = registry.volume(&registry.commit(), RO);
            for file in files_below(&node.path("state/store/objects")) {
                if file.metadata().unwrap().len() == 3 << 20 {
                    let file = std::fs::File::options().write(true).open(file).unwrap();
                    file.set_len(5).unwrap();
                }
            }
            let staging = kubelet.stage_patiently("b", &next).await.unwrap();
            has_one(&staging, 1);
        },
    );
}

#[test]
fn weights_that_are_a_pointer_are_refused_by_name() {
    in_private_mounts(
        module_path!(),
        "weights_that_are_a_pointer_are_refused_by_name",
        async {
            let registry = Registry::start();
            // Somebody put the text of a pointer into LFS.
            let pointer = format!(
                "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
                hyprstream_git2db::Digest::of(b"hello")
            );
            registry
                .write("config.json", "{}")
                .write_lfs("lost.safetensors", pointer.as_bytes());
            let volume = registry.volume(&registry.commit(), RO);
            let node = Node::new(registry.url());
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            for _ in 0..2 {
                let refused = kubelet.stage("a", &volume).await.unwrap_err();
                assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
                assert!(refused.message().contains("lost.safetensors"), "{refused}");
            }
        },
    );
}
