//! Starts, ends and kills of the program, and what the kubelet asks it.

use std::time::Duration;

use hyprstream_csi::proto::{
    csi::NodeGetVolumeStatsRequest,
    registration::{InfoRequest, RegistrationStatus, registration_client::RegistrationClient},
};

use crate::{
    Bench, RO, RW, has_disks, has_one, model,
    support::{
        in_private_mounts,
        kubelet::{Kubelet, mounts_below, text},
        program::Node,
        registry::Registry,
    },
};

#[test]
fn mounts_outlive_kill_and_end_of_the_program() {
    in_private_mounts(
        module_path!(),
        "mounts_outlive_kill_and_end_of_the_program",
        async {
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
        },
    );
}

#[test]
fn kills_at_any_time_are_followed_by_convergence() {
    in_private_mounts(
        module_path!(),
        "kills_at_any_time_are_followed_by_convergence",
        async {
            let registry = Registry::start();
            let commit = model(&registry);
            let node = Node::new(registry.url());
            let has_disks = has_disks();
            for round in 0..30_u64 {
                let mode = if round % 2 == 0 || !has_disks { RO } else { RW };
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
                has_one(&target, 1);
                assert!(
                    std::fs::write(target.join("x"), "x").is_err(),
                    "round {round}"
                );
                kubelet.unpublish(&handle, &handle).await.unwrap();
                kubelet.unstage(&handle).await.unwrap();
                assert_eq!(mounts_below(&node.path("kubelet")), [], "round {round}");
                program.kill();
            }
        },
    );
}

#[test]
fn stats_and_condition_are_told() {
    in_private_mounts(module_path!(), "stats_and_condition_are_told", async {
        let bench = Bench::start().await;
        let Bench { kubelet, .. } = &bench;
        kubelet.stage("a", &bench.volume(RO)).await.unwrap();
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
                .map(tonic::Response::into_inner)
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
}

#[test]
fn the_kubelet_registers_the_plugin_or_ends_it() {
    in_private_mounts(
        module_path!(),
        "the_kubelet_registers_the_plugin_or_ends_it",
        async {
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
        },
    );
}

#[test]
fn an_idle_program_is_small() {
    in_private_mounts(module_path!(), "an_idle_program_is_small", async {
        let bench = Bench::start().await;
        let Bench {
            program, kubelet, ..
        } = &bench;
        kubelet.stage("a", &bench.volume(RO)).await.unwrap();
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
}
