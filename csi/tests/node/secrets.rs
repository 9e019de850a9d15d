//! The token that the node shows the registry.

use hyprstream_csi::proto::csi::NodeGetVolumeHealthRequest;

use crate::{
    Bench, RO, RW, has_disks, model,
    support::{
        in_private_mounts,
        kubelet::Kubelet,
        program::Node,
        registry::{Registry, TOKEN},
        remote::secrets::{Found, Watch, files, told},
    },
    weights,
};

const WRONG: &str = "planted-token-that-is-wrong";

#[test]
fn the_token_is_neither_told_nor_kept_nor_seen_on_a_command_line() {
    in_private_mounts(
        module_path!(),
        "the_token_is_neither_told_nor_kept_nor_seen_on_a_command_line",
        async {
            let watch = Watch::over(std::process::id());
            let mut found = Found::new();
            let registry = Registry::start();
            let volume = registry.volume(&model(&registry), RO);
            let node = Node::new(registry.url());
            std::fs::write(node.path("token"), WRONG).unwrap();
            let program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let refused = kubelet.stage("a", &volume).await.unwrap_err();
            found.push(("a refusal".to_owned(), format!("{refused:?}").into_bytes()));
            for path in ["/metrics", "/healthz", "/readyz"] {
                found.push((path.to_owned(), program.get(path).await.into_bytes()));
            }
            found.push(("the first log".to_owned(), node.log().into_bytes()));
            files(&node.path("state"), &mut found);
            drop(program);

            let bench = Bench::start().await;
            let Bench {
                kubelet,
                node,
                registry,
                program,
                ..
            } = &bench;
            registry.spoil(&weights(2, 1 << 20), None);
            let missing = kubelet.stage("a", &bench.volume(RO)).await.unwrap_err();
            found.push(("an error".to_owned(), format!("{missing:?}").into_bytes()));
            registry.restore(&weights(2, 1 << 20));
            kubelet.stage("a", &bench.volume(RO)).await.unwrap();
            let pod = kubelet.publish("a", "p", true).await.unwrap();
            files(&pod, &mut found);
            if has_disks() {
                // By programs that make a disk.
                kubelet.stage("w", &bench.volume(RW)).await.unwrap();
            }
            let request = NodeGetVolumeHealthRequest {
                volume_id: "a".into(),
                ..Default::default()
            };
            let health = kubelet.client().node_get_volume_health(request).await;
            found.push(("its health".to_owned(), format!("{health:?}").into_bytes()));
            registry.set_down(true);
            let down = kubelet.stage("b", &bench.volume(RO)).await;
            found.push(("its answer".to_owned(), format!("{down:?}").into_bytes()));
            for path in ["/metrics", "/healthz", "/readyz"] {
                found.push((path.to_owned(), program.get(path).await.into_bytes()));
            }
            found.push(("the log".to_owned(), node.log().into_bytes()));
            for folder in ["state/store", "state/repositories", "registration"] {
                files(&node.path(folder), &mut found);
            }
            let lines: Vec<String> = watch.end().into_iter().collect();
            assert!(
                lines
                    .iter()
                    .any(|line| line.contains("--registry-token-file=")),
                "{lines:?}"
            );
            found.push(("command lines".to_owned(), lines.join("\n").into_bytes()));
            assert_eq!(told(&[TOKEN, WRONG], &found), [""; 0]);
            // What is no secret stands there.
            let known = [registry.url(), "one.safetensors\"".to_owned()];
            assert!(told(&known, &found).len() > 1);
        },
    );
}
