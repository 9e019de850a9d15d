//! What opens the registry to a volume: its own word.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use hyprstream_contract::{
    adapters::{AdapterEntry, AdapterFolder, AdapterState, FOLDER_FILE},
    grants::Word,
};
use hyprstream_csi::proto::csi::{NodeGetVolumeHealthRequest, VolumeHealthErrorType};
use tonic::Code;

use crate::{
    Bench, RO, files_below, has_one,
    support::{
        in_private_mounts,
        kubelet::Kubelet,
        registry::{POINTERS_ONLY, REPOSITORY, Registry},
    },
    wait, weights,
};

const MODEL: &str = "default/chat";
const ADAPTERS: &str = "adapters/default/chat";

fn word(byte: u8) -> Word {
    Word::from_bytes([byte; 32])
}

/// Whether an adapter is shown and ready.
fn is_ready(folder: &Path, name: &str) -> bool {
    let text = std::fs::read(folder.join(FOLDER_FILE)).unwrap_or_default();
    let content: AdapterFolder = serde_json::from_slice(&text).unwrap_or_default();
    let mut adapters = content.adapters.iter();
    adapters.any(|a| a.name == name && a.state == AdapterState::Ready)
}

/// Files below the state directory that hold this text.
fn holding(folder: &Path, text: &str) -> Vec<std::path::PathBuf> {
    let mut files = files_below(folder);
    files.retain(|file| {
        std::fs::read(file).is_ok_and(|content| {
            content
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        })
    });
    files
}

async fn health(kubelet: &Kubelet, handle: &str) -> Option<(VolumeHealthErrorType, String)> {
    let request = NodeGetVolumeHealthRequest {
        volume_id: handle.into(),
        ..Default::default()
    };
    let answer = kubelet.client().node_get_volume_health(request).await;
    let health = answer.unwrap().into_inner().volume_health.unwrap();
    let told = health.health_statuses.first()?;
    Some((told.status(), told.reason.clone()))
}

#[test]
fn a_volume_is_read_by_its_own_word_which_is_written_nowhere() {
    in_private_mounts(
        module_path!(),
        "a_volume_is_read_by_its_own_word_which_is_written_nowhere",
        async {
            let bench = Bench::start().await;
            let Bench {
                program,
                kubelet,
                node,
                registry,
                ..
            } = &bench;
            registry.close();
            let volume = bench.volume(RO);
            let refused = kubelet.stage("a", &volume).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "it is tried again");
            assert!(
                refused.message().contains("no word of its own"),
                "{refused}"
            );

            let (own, other) = (word(1), word(2));
            registry.grant(&other, POINTERS_ONLY);
            kubelet.set_word("a", &other);
            let refused = kubelet.stage("a", &volume).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable);
            assert!(
                refused
                    .message()
                    .contains("does not know the volume's word"),
                "{refused}"
            );
            assert!(!refused.message().contains(other.expose()));
            assert!(registry.downloads().is_empty());

            registry.grant(&own, REPOSITORY);
            kubelet.set_word("a", &own);
            let staging = kubelet.stage_patiently("a", &volume).await.unwrap();
            has_one(&staging, 1);
            kubelet.publish("a", "p", true).await.unwrap();
            let command = std::fs::read(format!("/proc/{}/cmdline", program.pid())).unwrap();
            let command = String::from_utf8_lossy(&command).into_owned();
            for word in [&own, &other] {
                assert!(!node.log().contains(word.expose()), "the log has a word");
                assert!(!command.contains(word.expose()));
                assert_eq!(
                    holding(&node.path("state"), word.expose()),
                    Vec::<std::path::PathBuf>::new()
                );
            }

            // What is here needs nobody's leave, and another volume of the same commit shares it.
            registry.revoke(&own);
            kubelet.unpublish("a", "p").await.unwrap();
            kubelet.unstage("a").await.unwrap();
            let staging = kubelet.stage("b", &volume).await.unwrap();
            has_one(&staging, 1);
        },
    );
}

#[test]
fn a_fetch_goes_on_by_the_word_of_who_is_left() {
    in_private_mounts(
        module_path!(),
        "a_fetch_goes_on_by_the_word_of_who_is_left",
        async {
            let bench = Bench::start().await;
            let (kubelet, registry) = (&bench.kubelet, &bench.registry);
            registry.close();
            let (gone, left) = (word(1), word(2));
            kubelet.set_word("a", &gone);
            kubelet.set_word("b", &left);
            registry.grant(&left, REPOSITORY);
            // Both ask for one fetch; only one of them is let in.
            let volume = bench.volume(RO);
            let held = weights(1, 3 << 20);
            registry.hold(&held, true);
            let first = {
                let (kubelet, volume) = (kubelet.clone(), volume.clone());
                tokio::spawn(async move { kubelet.stage_patiently("b", &volume).await })
            };
            wait(async || registry.is_asked_for(&held)).await;
            let second = {
                let (kubelet, volume) = (kubelet.clone(), volume.clone());
                tokio::spawn(async move { kubelet.stage_patiently("a", &volume).await })
            };
            tokio::time::sleep(Duration::from_millis(300)).await;
            registry.hold(&held, false);
            has_one(&first.await.unwrap().unwrap(), 1);
            has_one(&second.await.unwrap().unwrap(), 1);
            assert_eq!(registry.downloads().len(), 2, "each object came once");
        },
    );
}

#[test]
fn adapters_are_followed_by_a_word_that_outlives_the_program_and_can_be_changed() {
    in_private_mounts(
        module_path!(),
        "adapters_are_followed_by_a_word_that_outlives_the_program_and_can_be_changed",
        async {
            let mut bench = Bench::start().await;
            let commit = {
                let registry = &bench.registry;
                for (name, seed) in [("sql", 1), ("tone", 2), ("late", 3)] {
                    registry
                        .write(&format!("{name}.json"), "{}")
                        .write_lfs(&format!("{name}.safetensors"), &weights(seed, 1 << 16));
                }
                registry.commit()
            };
            let entries = ["sql", "tone", "late"].map(|name| bench.registry.adapter(name, &commit));
            bench.registry.close();
            let (first, second) = (word(1), word(2));
            bench.registry.grant(&first, ADAPTERS);
            bench.registry.put_list(MODEL, &entries[..1]);
            let volume = Registry::adapters_of(MODEL);
            bench.kubelet.set_word("h", &first);
            bench.kubelet.stage("h", &volume).await.unwrap();
            let folder = bench.kubelet.publish("h", "p", true).await.unwrap();
            wait(async || is_ready(&folder, "sql")).await;
            let kept = holding(&bench.node.path("state"), first.expose());
            assert_eq!(kept.len(), 1, "{kept:?}");
            let mode = std::fs::metadata(&kept[0]).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);

            // No call of the kubelet is needed after a restart.
            bench.program.kill();
            bench.program = bench.node.start().await;
            bench.kubelet = Kubelet::connect(&bench.node).await;
            bench.registry.put_list(MODEL, &entries[..2]);
            wait(async || is_ready(&folder, "tone")).await;
            assert_eq!(health(&bench.kubelet, "h").await, None);

            // The word is another: what is here stays, and the volume says that nothing comes.
            bench.registry.revoke(&first);
            bench.registry.grant(&second, ADAPTERS);
            bench.registry.put_list(MODEL, &entries);
            let denied = (VolumeHealthErrorType::Degraded, "AccessDenied".to_owned());
            wait(async || health(&bench.kubelet, "h").await == Some(denied.clone())).await;
            assert!(is_ready(&folder, "sql") && !is_ready(&folder, "late"));
            // The kubelet publishes again and again, and so brings it.
            bench.kubelet.set_word("h", &first);
            bench.kubelet.publish("h", "p", true).await.unwrap();
            bench.kubelet.set_word("h", &second);
            bench.kubelet.publish("h", "p", true).await.unwrap();
            wait(async || is_ready(&folder, "late")).await;
            wait(async || health(&bench.kubelet, "h").await.is_none()).await;
            let state = bench.node.path("state");
            assert!(holding(&state, first.expose()).is_empty());
            assert_eq!(holding(&state, second.expose()).len(), 1);

            bench.kubelet.unpublish("h", "p").await.unwrap();
            bench.kubelet.unstage("h").await.unwrap();
            assert!(
                holding(&state, second.expose()).is_empty(),
                "it goes with the volume"
            );
            for word in [&first, &second] {
                assert!(
                    !bench.node.log().contains(word.expose()),
                    "the log has a word"
                );
            }
        },
    );
}

#[test]
fn one_model_whose_word_is_refused_keeps_no_other_waiting() {
    in_private_mounts(
        module_path!(),
        "one_model_whose_word_is_refused_keeps_no_other_waiting",
        async {
            let bench = Bench::start().await;
            let (kubelet, registry) = (&bench.kubelet, &bench.registry);
            registry.close();
            registry.grant(&word(1), ADAPTERS);
            registry.grant(&word(2), "adapters/default/other");
            for (handle, model, word) in [("h", MODEL, word(1)), ("i", "default/other", word(2))] {
                kubelet.set_word(handle, &word);
                kubelet
                    .stage(handle, &Registry::adapters_of(model))
                    .await
                    .unwrap();
            }
            let folder = kubelet.publish("h", "p", true).await.unwrap();
            registry.revoke(&word(2));
            registry.put_list("default/other", &[]);
            // Whoever waits at the registry is told of a change of the other's list.
            registry
                .write("sql.json", "{}")
                .write_lfs("sql.safetensors", &weights(1, 1 << 16));
            let commit = registry.commit();
            for name in ["sql", "again"] {
                let entry = AdapterEntry {
                    name: name.to_owned(),
                    ..registry.adapter("sql", &commit)
                };
                registry.put_list(MODEL, &[entry]);
                wait(async || is_ready(&folder, name)).await;
            }
            // The one that is refused is not asked for over and over.
            let calls = registry.list_calls();
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(
                registry.list_calls() - calls <= 3,
                "{calls} {}",
                registry.list_calls()
            );
        },
    );
}
