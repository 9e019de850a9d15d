//! What nodes hear of PersistentVolumes.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use hyprstream_contract::persistent_volumes::{
    KnownVolume, KnownVolumes, MAX_VOLUMES, VOLUMES_PATH, VolumesRequest,
};
use serde_json::json;

use crate::{
    client::{Answer, call},
    cluster::Cluster,
    server::{NODE, Server, token},
};

fn ask(server: &Server, who: &str, names: &[&str]) -> Answer {
    let names = names.iter().map(|&name| name.to_owned());
    let request = VolumesRequest {
        names: names.collect(),
    };
    let body = serde_json::to_vec(&request).unwrap();
    call("POST", &server.url(VOLUMES_PATH), who, &[], Some(&body))
}

#[track_caller]
fn known(server: &Server, names: &[&str]) -> KnownVolumes {
    let answer = ask(server, NODE, names);
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_slice(&answer.body).unwrap()
}

#[track_caller]
fn refused(server: &Server, who: &str, names: &[&str], status: u16, words: &str) {
    let answer = ask(server, who, names);
    let text = String::from_utf8_lossy(&answer.body);
    assert!(
        answer.status == status && text.contains(words),
        "{answer:?} {text}"
    );
}

fn ours(handle: &str) -> serde_json::Value {
    json!({"driver": "csi.hyprstream.io", "volumeHandle": handle, "volumeAttributes": {}})
}

#[test]
fn a_node_hears_which_volumes_are_there_and_nothing_of_other_drivers() {
    let cluster = Cluster::start();
    let server = Server::in_cluster(&cluster);
    cluster.put_volume("a.1", ours("handle-a"));
    let foreign = json!({"driver": "other.example", "volumeHandle": "secret"});
    cluster.put_volume("foreign", foreign);
    cluster.put_volume("nfs", serde_json::Value::Null);
    let names = ["a.1", "foreign", "never", "nfs"];
    let said = known(&server, &names).volumes;
    assert_eq!(said.keys().collect::<Vec<_>>(), names);
    let there = KnownVolume {
        uid: "uid-a.1".to_owned(),
        handle: "handle-a".to_owned(),
    };
    assert_eq!(said["a.1"], Some(there));
    for name in &names[1..] {
        assert_eq!(said[*name], None, "{name}");
    }
    cluster.remove_volume("a.1");
    assert_eq!(known(&server, &["a.1"]).volumes["a.1"], None);
    assert_eq!(known(&server, &[]), KnownVolumes::default());
}

#[test]
fn what_cannot_be_told_is_never_called_gone() {
    let cluster = Cluster::start();
    let server = Server::in_cluster(&cluster);
    for status in [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED] {
        cluster.answer_volumes(Some(status));
        refused(&server, NODE, &["a"], 501, "may not get PersistentVolumes");
    }
    // Tokens are checked all the same.
    let holder = cluster.account("job");
    refused(&server, &holder.token, &["a"], 403, "does not allow");
    for status in [
        // A 404 of something that is no API server.
        StatusCode::NOT_FOUND,
        // An answer that is no volume.
        StatusCode::OK,
        StatusCode::INTERNAL_SERVER_ERROR,
    ] {
        let cluster = Cluster::start();
        cluster.answer_volumes(Some(status));
        let server = Server::in_cluster(&cluster);
        refused(&server, NODE, &["a"], 503, "does not answer");
    }
    cluster.answer_volumes(None);
    cluster.set_down(true);
    refused(&server, NODE, &["a"], 503, "does not answer");
    refused(&Server::start(), NODE, &["a"], 501, "kubernetesTokens");
}

#[test]
fn only_nodes_ask_for_few_names_that_lead_nowhere_else() {
    let cluster = Cluster::start();
    let server = Server::in_cluster(&cluster);
    let many: BTreeSet<String> = (0..=MAX_VOLUMES).map(|i| format!("v{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(&server, NODE, &many, 400, "at most 16");
    for bad in ["", "..", "a/../../nodes/n", "a?watch=true", "A"] {
        refused(
            &server,
            NODE,
            &[bad],
            400,
            "none that a PersistentVolume can have",
        );
    }
    refused(
        &server,
        &token("team-a", true),
        &["a"],
        403,
        "does not allow",
    );
    refused(&server, "", &["a"], 401, "token");
}
