//! The adapters of Models: folders whose content changes while pods have them mounted.

use std::{
    io::{ErrorKind, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyprstream_contract::adapters::{
    AdapterEntry, AdapterFolder, AdapterState, CONFIG_FILE, FOLDER_FILE, WEIGHTS_FILE,
};
use hyprstream_csi::proto::csi::NodeGetVolumeStatsRequest;

use crate::{
    RO, files_below, fill, mount_ext4, mount_tmpfs,
    support::{
        in_private_mounts,
        kubelet::{Kubelet, mounts_below, text},
        program::Node,
        registry::Registry,
    },
    wait, weights,
};

const MODEL: &str = "default/chat";
const SIZE: usize = 1 << 20;

/// A commit with adapters of these names and seeds.
fn commit(registry: &Registry, adapters: &[(&str, u8)]) -> String {
    for (name, seed) in adapters {
        registry
            .write(&format!("{name}.json"), format!("{{\"seed\": {seed}}}"))
            .write_lfs(&format!("{name}.safetensors"), &weights(*seed, SIZE));
    }
    registry.commit()
}

fn content(folder: &Path) -> AdapterFolder {
    let text = std::fs::read(folder.join(FOLDER_FILE)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Waits until the adapter is shown in that state.
async fn until(folder: &Path, name: &str, is: impl Fn(&AdapterState) -> bool) -> AdapterState {
    let state = || {
        let adapters = content(folder).adapters.into_iter();
        adapters.filter(|a| a.name == name).map(|a| a.state).next()
    };
    for _ in 0..600 {
        if let Some(state) = state().filter(&is) {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{:?}", content(folder));
}

async fn until_ready(folder: &Path, name: &str) {
    until(folder, name, |state| *state == AdapterState::Ready).await;
}

async fn until_failed(folder: &Path, name: &str) -> (String, String) {
    let failed = |state: &AdapterState| matches!(state, AdapterState::Failed { .. });
    match until(folder, name, failed).await {
        AdapterState::Failed {
            reason, message, ..
        } => (reason, message),
        other => panic!("{other:?}"),
    }
}

fn weights_of(folder: &Path, entry: &AdapterEntry) -> PathBuf {
    folder.join(entry.folder()).join(WEIGHTS_FILE)
}

#[track_caller]
fn has(folder: &Path, entry: &AdapterEntry, seed: u8) {
    let found = std::fs::read(weights_of(folder, entry)).unwrap();
    assert!(found == weights(seed, SIZE));
    let config = std::fs::read_to_string(folder.join(entry.folder()).join(CONFIG_FILE));
    assert_eq!(config.unwrap(), format!("{{\"seed\": {seed}}}"));
}

/// Stages the adapters of a Model and publishes them to a pod.
async fn pod(kubelet: &Kubelet, model: &str, pod: &str) -> PathBuf {
    let volume = Registry::adapters_of(model);
    kubelet.stage(model, &volume).await.unwrap();
    kubelet.publish(model, pod, true).await.unwrap()
}

#[test]
fn an_adapter_comes_to_a_pod_that_has_the_volume_mounted() {
    in_private_mounts(
        module_path!(),
        "an_adapter_comes_to_a_pod_that_has_the_volume_mounted",
        async {
            let registry = Registry::start();
            let node = Node::new(registry.url());
            let program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let pods = [
                pod(&kubelet, MODEL, "p").await,
                kubelet.publish(MODEL, "q", true).await.unwrap(),
            ];
            assert!(content(&pods[0]).adapters.is_empty());
            let other = pod(&kubelet, "other/chat", "r").await;
            let refused = std::fs::write(pods[0].join("x"), "x").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
            let mounts = mounts_below(&node.path("kubelet"));
            assert_eq!(mounts.len(), 5);
            assert!(mounts.iter().all(|mounted| mounted.read_only));

            let commit = commit(&registry, &[("sql", 1), ("tone", 2), ("other", 3)]);
            let [sql, tone, third] = ["sql", "tone", "other"].map(|n| registry.adapter(n, &commit));
            let begun = Instant::now();
            registry.put_list(MODEL, &[sql.clone(), tone.clone()]);
            for folder in &pods {
                for (name, entry, seed) in [("sql", &sql, 1), ("tone", &tone, 2)] {
                    until_ready(folder, name).await;
                    has(folder, entry, seed);
                }
            }
            println!("adapters are there after {:?}", begun.elapsed());
            assert_eq!(registry.downloads().len(), 2, "each object came once");
            let linked = std::fs::metadata(weights_of(&pods[0], &sql)).unwrap();
            assert!(linked.nlink() >= 3, "no copy of the object");
            assert!(content(&other).adapters.is_empty());

            // Another Model, other adapters; the file that both have is the same.
            registry.put_list("other/chat", &[sql.clone(), third.clone()]);
            until_ready(&other, "other").await;
            has(&other, &third, 3);
            let shared = std::fs::metadata(weights_of(&other, &sql)).unwrap();
            assert_eq!(shared.ino(), linked.ino());
            assert_eq!(content(&pods[0]).adapters.len(), 2);
            assert_eq!(registry.downloads().len(), 3);
            wait(async || program.metric("hyprstream_csi_adapters").await == 4.0).await;
            assert_eq!(program.metric("hyprstream_csi_adapters_missing").await, 0.0);

            // What is not listed any more is not named any more, and stays for who reads it.
            registry.put_list(MODEL, std::slice::from_ref(&tone));
            wait(async || content(&pods[0]).adapters.len() == 1).await;
            assert_eq!(content(&pods[1]).adapters[0].name, "tone");
            has(&pods[0], &sql, 1);

            let stats = NodeGetVolumeStatsRequest {
                volume_id: MODEL.into(),
                volume_path: text(&pods[0]),
                staging_target_path: String::new(),
            };
            let stats = kubelet.client().node_get_volume_stats(stats).await.unwrap();
            let stats = stats.into_inner();
            assert!(!stats.volume_condition.unwrap().abnormal);
            assert!(stats.usage[0].used >= 2 * SIZE as i64);

            for (model, pod) in [(MODEL, "p"), (MODEL, "q"), ("other/chat", "r")] {
                kubelet.unpublish(model, pod).await.unwrap();
            }
            for model in [MODEL, "other/chat"] {
                kubelet.unstage(model).await.unwrap();
            }
            assert_eq!(mounts_below(&node.path("kubelet")), []);
            // Nobody asks for what nobody has.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let calls = registry.list_calls();
            registry.put_list(MODEL, &[]);
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(registry.list_calls(), calls);
        },
    );
}

#[test]
fn another_commit_under_a_name_keeps_the_old_file_for_who_has_it_open() {
    in_private_mounts(
        module_path!(),
        "another_commit_under_a_name_keeps_the_old_file_for_who_has_it_open",
        async {
            let registry = Registry::start();
            let first = registry.adapter("sql", &commit(&registry, &[("sql", 1)]));
            let second = registry.adapter("sql", &commit(&registry, &[("sql", 2)]));
            registry.put_list(MODEL, std::slice::from_ref(&first));
            let node = Node::new(registry.url());
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            until_ready(&folder, "sql").await;
            let mut open = std::fs::File::open(weights_of(&folder, &first)).unwrap();

            registry.put_list(MODEL, std::slice::from_ref(&second));
            wait(async || content(&folder).adapters[0].commit == second.commit).await;
            until_ready(&folder, "sql").await;
            has(&folder, &second, 2);
            has(&folder, &first, 1);
            let mut found = Vec::new();
            open.read_to_end(&mut found).unwrap();
            assert!(found == weights(1, SIZE));
        },
    );
}

#[test]
fn what_cannot_be_had_is_told_and_keeps_nothing_else_back() {
    in_private_mounts(
        module_path!(),
        "what_cannot_be_had_is_told_and_keeps_nothing_else_back",
        async {
            let registry = Registry::start();
            let model = registry.write("config.json", "{}").commit();
            let pointer = format!(
                "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
                hyprstream_git2db::Digest::of(b"hello")
            );
            registry
                .write("lost.json", "{}")
                .write_lfs("lost.safetensors", pointer.as_bytes());
            let names = [("good", 1), ("missing", 2), ("wrong", 3)];
            let commit = commit(&registry, &names);
            registry.spoil(&weights(2, SIZE), None);
            registry.spoil(&weights(3, SIZE), Some(&weights(9, SIZE)));
            let names = ["good", "missing", "wrong", "lost", "absent"];
            let list = names.map(|name| registry.adapter(name, &commit));
            registry.put_list(MODEL, &list);
            let node = Node::new(registry.url());
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            until_ready(&folder, "good").await;
            has(&folder, &list[0], 1);
            for (name, reason, words) in [
                ("missing", "NotFound", "does not have all of the commit"),
                ("wrong", "Refused", "wrong bytes"),
                (
                    "lost",
                    "Refused",
                    "is a Git LFS pointer and not the weights",
                ),
                ("absent", "NotFound", "no file \"absent.safetensors\""),
            ] {
                let (told, message) = until_failed(&folder, name).await;
                assert!(
                    told == reason && message.contains(words),
                    "{told} {message}"
                );
                assert!(!weights_of(&folder, &registry.adapter(name, &commit)).exists());
            }

            // What was put right comes without anybody doing more.
            registry.restore(&weights(2, SIZE));
            until_ready(&folder, "missing").await;
            has(&folder, &list[1], 2);

            // Volumes of commits are not disturbed.
            kubelet
                .stage("m", &registry.volume(&model, RO))
                .await
                .unwrap();
            assert_eq!(mounts_below(&node.path("kubelet")).len(), 3);
        },
    );
}

#[test]
fn without_the_registry_a_node_shows_what_it_showed_and_waits_for_what_it_never_had() {
    in_private_mounts(
        module_path!(),
        "without_the_registry_a_node_shows_what_it_showed_and_waits_for_what_it_never_had",
        async {
            let registry = Registry::start();
            let sql = registry.adapter("sql", &commit(&registry, &[("sql", 1)]));
            registry.put_list(MODEL, std::slice::from_ref(&sql));
            let node = Node::new(registry.url());
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            until_ready(&folder, "sql").await;
            kubelet.unpublish(MODEL, "p").await.unwrap();
            kubelet.unstage(MODEL).await.unwrap();

            registry.set_down(true);
            program.kill();
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let begun = Instant::now();
            let folder = pod(&kubelet, MODEL, "q").await;
            println!("staged without the registry after {:?}", begun.elapsed());
            has(&folder, &sql, 1);
            until_ready(&folder, "sql").await;

            let waits = {
                let kubelet = kubelet.clone();
                let volume = Registry::adapters_of("default/never");
                tokio::spawn(async move { kubelet.stage("never", &volume).await })
            };
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(!waits.is_finished(), "it waits for the first list");
            registry.set_down(false);
            let staging = waits.await.unwrap().unwrap();
            assert!(content(&staging).adapters.is_empty());

            // Changes made meanwhile, and later ones, arrive.
            let tone = registry.adapter("tone", &commit(&registry, &[("tone", 2)]));
            registry.put_list(MODEL, &[sql, tone.clone()]);
            wait(async || content(&folder).adapters.len() == 2).await;
            until_ready(&folder, "tone").await;
            has(&folder, &tone, 2);
        },
    );
}

#[test]
fn kills_at_any_time_of_a_fetch_are_followed_by_convergence() {
    in_private_mounts(
        module_path!(),
        "kills_at_any_time_of_a_fetch_are_followed_by_convergence",
        async {
            let registry = Registry::start();
            let node = Node::new(registry.url());
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            let mut list = Vec::new();
            for round in 0..12_u8 {
                let name = format!("a{round}");
                let commit = commit(&registry, &[(&name, round + 1)]);
                let next = registry.adapter(&name, &commit);
                list.push(next.clone());
                // Held: killed in the middle of the fetch. Otherwise a little later every round.
                let held = round % 3 == 0;
                registry.hold(&weights(round + 1, SIZE), held);
                registry.put_list(MODEL, &list);
                if held {
                    wait(async || registry.is_asked_for(&weights(round + 1, SIZE))).await;
                } else {
                    tokio::time::sleep(Duration::from_millis(u64::from(round) * 30)).await;
                }
                program.kill();
                registry.hold(&weights(round + 1, SIZE), false);
                for adapter in content(&folder).adapters {
                    if adapter.state == AdapterState::Ready {
                        assert!(folder.join(adapter.folder).join(WEIGHTS_FILE).is_file());
                    }
                }
                program = node.start().await;
                wait(async || content(&folder).adapters.len() == list.len()).await;
                until_ready(&folder, &name).await;
                has(&folder, &next, round + 1);
            }
            let kubelet = Kubelet::connect(&node).await;
            for (entry, seed) in list.iter().zip(1..) {
                has(&folder, entry, seed);
            }
            kubelet.publish(MODEL, "q", true).await.unwrap();
            for pod in ["p", "q"] {
                kubelet.unpublish(MODEL, pod).await.unwrap();
            }
            kubelet.unstage(MODEL).await.unwrap();
            assert_eq!(mounts_below(&node.path("kubelet")), []);
        },
    );
}

#[test]
fn an_adapter_that_does_not_fit_is_told_and_comes_when_there_is_room() {
    in_private_mounts(
        module_path!(),
        "an_adapter_that_does_not_fit_is_told_and_comes_when_there_is_room",
        async {
            let registry = Registry::start();
            let small = registry.adapter("small", &commit(&registry, &[("small", 1)]));
            registry
                .write("large.json", "{}")
                .write_lfs("large.safetensors", &weights(2, 6 << 20));
            let large = registry.adapter("large", &registry.commit());
            registry.put_list(MODEL, &[large.clone(), small.clone()]);
            let node = Node::new(registry.url());
            mount_tmpfs(&node.path("state"), "4m");
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            let (reason, message) = until_failed(&folder, "large").await;
            assert_eq!(reason, "DiskFull", "{message}");
            assert!(message.contains("needs 6.0 MiB"), "{message}");
            until_ready(&folder, "small").await;
            has(&folder, &small, 1);
            mount_tmpfs(&node.path("state"), "32m,remount");
            until_ready(&folder, "large").await;
            let found = std::fs::read(weights_of(&folder, &large)).unwrap();
            assert!(found == weights(2, 6 << 20));
        },
    );
}

#[test]
fn a_disk_without_any_space_keeps_no_volume_of_adapters_from_going() {
    in_private_mounts(
        module_path!(),
        "a_disk_without_any_space_keeps_no_volume_of_adapters_from_going",
        async {
            let registry = Registry::start();
            let sql = registry.adapter("sql", &commit(&registry, &[("sql", 1)]));
            registry.put_list(MODEL, std::slice::from_ref(&sql));
            let node = Node::new(registry.url());
            let state = node.path("state");
            if !mount_ext4(&node, &state, 16) {
                return;
            }
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            until_ready(&folder, "sql").await;
            let filled = fill(&state, 0);
            registry.put_list(MODEL, &[]);
            tokio::time::sleep(Duration::from_millis(500)).await;
            has(&folder, &sql, 1);
            content(&folder);
            kubelet.unpublish(MODEL, "p").await.unwrap();
            kubelet.unstage(MODEL).await.unwrap();
            assert_eq!(mounts_below(&node.path("kubelet")), []);

            std::fs::remove_file(filled).unwrap();
            let folder = pod(&kubelet, MODEL, "p").await;
            assert!(content(&folder).adapters.is_empty());
        },
    );
}

#[test]
fn a_flipped_bit_of_an_adapter_is_found_and_fetched_anew() {
    in_private_mounts(
        module_path!(),
        "a_flipped_bit_of_an_adapter_is_found_and_fetched_anew",
        async {
            use std::os::unix::fs::FileExt;
            let registry = Registry::start();
            let sql = registry.adapter("sql", &commit(&registry, &[("sql", 1)]));
            registry.put_list(MODEL, std::slice::from_ref(&sql));
            let mut node = Node::new(registry.url());
            node.flags = vec!["--scrub-every=100ms".into()];
            let _program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            until_ready(&folder, "sql").await;
            let state = node.path("state/adapters/default.chat/shown");
            let file = weights_of(&state, &sql);
            let before = std::fs::metadata(&file).unwrap().ino();
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(b"?", 5).unwrap();
            wait(async || {
                let now = std::fs::metadata(weights_of(&folder, &sql));
                now.is_ok_and(|now| now.ino() != before)
            })
            .await;
            until_ready(&folder, "sql").await;
            has(&folder, &sql, 1);
            assert_eq!(registry.downloads().len(), 2);
        },
    );
}

#[test]
fn what_lists_name_outlives_every_collection_and_goes_with_the_last_volume() {
    in_private_mounts(
        module_path!(),
        "what_lists_name_outlives_every_collection_and_goes_with_the_last_volume",
        async {
            let registry = Registry::start();
            let sql = registry.adapter("sql", &commit(&registry, &[("sql", 1)]));
            registry.put_list(MODEL, std::slice::from_ref(&sql));
            let mut node = Node::new(registry.url());
            let mut program = node.start().await;
            let kubelet = Kubelet::connect(&node).await;
            let folder = pod(&kubelet, MODEL, "p").await;
            until_ready(&folder, "sql").await;

            // It collects when it starts.
            program.kill();
            node.flags = vec!["--keep-unused=0s".into()];
            let mut program = node.start().await;
            wait(async || node.log().matches("state read").count() == 2).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let kubelet = Kubelet::connect(&node).await;
            has(&folder, &sql, 1);
            wait(async || program.metric("hyprstream_csi_checkouts").await == 1.0).await;
            kubelet.unpublish(MODEL, "p").await.unwrap();
            kubelet.unstage(MODEL).await.unwrap();
            program.kill();
            let _program = node.start().await;
            wait(async || {
                let left = std::fs::read_dir(node.path("state/adapters")).unwrap();
                left.count() == 0 && files_below(&node.path("state/store/objects")).is_empty()
            })
            .await;
        },
    );
}
