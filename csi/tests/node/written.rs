//! What pods write: how much, for how long, and whose.

use std::{
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use hyprstream_csi::proto::csi::NodeGetVolumeStatsRequest;
use tonic::Code;

use crate::{
    Bench, RO, RW, disk_use, files_below, has_disks, has_one, model, mount_ext4,
    support::{
        in_private_mounts,
        kubelet::{Kubelet, text},
        program::Node,
        registry::Registry,
    },
    until_staged, wait,
};

const MIB: u64 = 1 << 20;

/// Writes until there is no room; the bytes that were written.
fn write_until_full(path: &Path) -> u64 {
    let mut file = std::fs::File::create(path).unwrap();
    let piece = vec![7; 64 << 10];
    let error = loop {
        match file.write_all(&piece) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    // What the kernel took has a place: nothing fails later.
    file.sync_all().unwrap();
    file.metadata().unwrap().len()
}

/// Files below the node's folder that loop devices show.
fn devices_of(node: &Node) -> usize {
    let devices = std::fs::read_dir("/sys/block").unwrap();
    let files = devices.filter_map(|device| {
        std::fs::read_to_string(device.unwrap().path().join("loop/backing_file")).ok()
    });
    let folder = text(&node.path(""));
    files.filter(|file| file.starts_with(&folder)).count()
}

fn unmount_all(folder: &Path) {
    let list = hyprstream_csi::mount::parse_mountinfo(
        &std::fs::read_to_string("/proc/self/mountinfo").unwrap(),
    );
    let paths: Vec<PathBuf> = list.into_iter().map(|m| m.mount.path).collect();
    for path in paths.iter().rev().filter(|path| path.starts_with(folder)) {
        let status = std::process::Command::new("umount").arg(path).status();
        assert!(status.unwrap().success(), "{}", path.display());
    }
}

#[test]
fn a_volume_takes_its_capacity_and_no_more() {
    in_private_mounts(
        module_path!(),
        "a_volume_takes_its_capacity_and_no_more",
        async {
            if !has_disks() {
                return;
            }
            let bench = Bench::start().await;
            let Bench { kubelet, node, .. } = &bench;
            for handle in ["a", "b"] {
                kubelet.stage(handle, &bench.volume(RW)).await.unwrap();
                kubelet.publish(handle, handle, false).await.unwrap();
            }
            let [a, b] = ["a", "b"].map(|pod| kubelet.target(pod));
            let before = disk_use(&node.path("state"));
            let written = write_until_full(&a.join("fill"));
            println!("{written} bytes could be written of a capacity of 16 MiB");
            assert!((8 * MIB..16 * MIB).contains(&written), "{written}");
            let taken = disk_use(&node.path("state")) - before;
            assert!(taken < MIB, "its place was taken before: {taken}");
            let request = NodeGetVolumeStatsRequest {
                volume_id: "a".into(),
                volume_path: text(&a),
                staging_target_path: String::new(),
            };
            let stats = kubelet.client().node_get_volume_stats(request).await;
            let bytes = stats.unwrap().into_inner().usage[0];
            assert!(
                bytes.available < 64 << 10 && bytes.total <= 16 << 20,
                "{bytes:?}"
            );

            // Nobody else is harmed, and neither is what can be read.
            has_one(&a, 1);
            std::fs::write(b.join("x"), vec![1; 1 << 20]).unwrap();
            kubelet.stage("c", &bench.volume(RO)).await.unwrap();

            std::fs::remove_file(a.join("fill")).unwrap();
            std::fs::write(a.join("y"), vec![1; 1 << 20]).unwrap();
        },
    );
}

#[test]
fn a_volume_for_which_there_is_no_room_is_refused_until_there_is() {
    in_private_mounts(
        module_path!(),
        "a_volume_for_which_there_is_no_room_is_refused_until_there_is",
        async {
            let registry = Registry::start();
            let commit = model(&registry);
            let node = Node::new(registry.url());
            if !has_disks() || !mount_ext4(&node, &node.path("state"), 48) {
                return;
            }
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let volume = registry.volume(&commit, RW);
            kubelet.stage("a", &volume).await.unwrap();
            let fill = node.path("state/fill");
            std::fs::write(&fill, vec![1; 16 << 20]).unwrap();
            let refused = kubelet.stage("b", &volume).await.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
            for word in ["\"b\"", "takes 16.0 MiB", "state"] {
                assert!(refused.message().contains(word), "{refused}");
            }
            let images = files_below(&node.path("state/volumes"));
            let images = images.iter().filter(|path| path.ends_with("image")).count();
            assert_eq!(images, 1);
            std::fs::remove_file(&fill).unwrap();
            let staging = until_staged(&kubelet, "b", &volume).await;
            std::fs::write(staging.join("x"), "x").unwrap();
        },
    );
}

#[test]
fn what_is_gone_goes_first_when_another_volume_needs_the_room() {
    in_private_mounts(
        module_path!(),
        "what_is_gone_goes_first_when_another_volume_needs_the_room",
        async {
            let registry = Registry::start();
            let commit = model(&registry);
            let node = Node::new(registry.url());
            // Room for two of 16 MiB beside the model, and not for a third.
            if !has_disks() || !mount_ext4(&node, &node.path("state"), 48) {
                return;
            }
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let volume = registry.volume(&commit, RW);
            let image = |handle: &str| {
                let hash = hyprstream_csi::layout::handle_hash(handle);
                node.path("state/volumes").join(hash).join("image")
            };
            // The kubelet of these tests calls every PersistentVolume "v".
            registry.put_volume("v", "gone");
            kubelet.stage("kept", &volume).await.unwrap();
            kubelet.unstage("kept").await.unwrap();
            kubelet.stage("gone", &volume).await.unwrap();
            kubelet.publish("gone", "p", false).await.unwrap();
            let journal = node.path("state/journal");
            let is_seen = || {
                let entries = files_below(&journal).into_iter();
                let mut texts = entries.filter_map(|path| std::fs::read_to_string(path).ok());
                texts.any(|text| text.contains("uid of v"))
            };
            wait(async || is_seen()).await;
            kubelet.unpublish("gone", "p").await.unwrap();
            kubelet.unstage("gone").await.unwrap();

            // A checkout that nothing uses is worth more than nothing.
            let read = registry.write("other.json", "{}").commit();
            let read = registry.volume(&read, RO);
            kubelet.stage("read", &read).await.unwrap();
            kubelet.unstage("read").await.unwrap();
            let before = registry.downloads().len();

            let refused = kubelet.stage("next", &volume).await.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
            let left = "2 that left the node hold 32.0 MiB";
            assert!(refused.message().contains(left), "{refused}");
            assert!(image("gone").exists(), "its volume is there");

            registry.remove_volume("v");
            let staging = until_staged(&kubelet, "next", &volume).await;
            std::fs::write(staging.join("x"), "x").unwrap();
            assert!(!image("gone").exists());
            assert!(image("kept").exists(), "nobody said that it is gone");
            kubelet.stage("read", &read).await.unwrap();
            assert_eq!(registry.downloads().len(), before);
            assert!(registry.volume_calls() < 20, "{}", registry.volume_calls());
        },
    );
}

#[test]
fn what_was_written_is_there_after_a_reboot_and_its_disk_is_let_go_of() {
    in_private_mounts(
        module_path!(),
        "what_was_written_is_there_after_a_reboot_and_its_disk_is_let_go_of",
        async {
            if !has_disks() {
                return;
            }
            let registry = Registry::start();
            let volume = registry.volume(&model(&registry), RW);
            let node = Node::new(registry.url());
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            kubelet.stage("a", &volume).await.unwrap();
            let target = kubelet.publish("a", "p", false).await.unwrap();
            std::fs::create_dir(target.join("adapters")).unwrap();
            std::fs::write(target.join("adapters/new"), "x").unwrap();
            std::fs::remove_file(target.join("config.json")).unwrap();
            assert_eq!(devices_of(&node), 1);

            program.kill();
            unmount_all(&node.path(""));
            assert_eq!(devices_of(&node), 0);
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            kubelet.stage("a", &volume).await.unwrap();
            let target = kubelet.publish("a", "p", false).await.unwrap();
            let is_kept = |target: &Path| {
                target.join("adapters/new").exists() && !target.join("config.json").exists()
            };
            assert!(is_kept(&target));

            // A kill of the program alone does nothing to the pod.
            program.kill();
            std::fs::write(target.join("more"), "x").unwrap();
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            kubelet.unpublish("a", "p").await.unwrap();
            let target = kubelet.publish("a", "q", false).await.unwrap();
            assert!(is_kept(&target) && target.join("more").exists());
            kubelet.unpublish("a", "q").await.unwrap();
            kubelet.unstage("a").await.unwrap();
            assert_eq!(devices_of(&node), 0);
            let staging = kubelet.stage("a", &volume).await.unwrap();
            assert!(is_kept(&staging) && staging.join("more").exists());
        },
    );
}
