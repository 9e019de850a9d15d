use hyprstream_api::condition::reason;
use hyprstream_contract::worker_adapters::LoadState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;

use super::*;
use crate::{
    adapter::{
        apply::{Answer, Trouble},
        build::{Files, entry},
        workers::{Served, Word},
    },
    source::{Mirrored, Problem, SourceKey},
};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// An Adapter at some moment.
struct Moment {
    adapter: Adapter,
    before: AdapterStatus,
    plan: Result<Plan, Invalid>,
    findings: Findings,
    wanted: Option<AdapterEntry>,
    facts: Option<Facts>,
    replicas: i32,
}

fn plan() -> Plan {
    let files = Files::of("x.safetensors");
    Plan {
        served_name: "sql".into(),
        scale: 1.0,
        base_commit: hyprstream_contract::adapters::BaseCommitPolicy::Warn,
        path: "x.safetensors".into(),
        source: SourceKey {
            namespace: "ns".into(),
            url: "hyprstream://ns/m".into(),
            reference: hyprstream_contract::registry::Reference::Head,
            include: files.include(),
            secret: None,
            interval: std::time::Duration::from_mins(10),
        },
        files,
    }
}

fn at(commit: &str) -> AdapterEntry {
    entry(&plan(), &mirrored(commit))
}

fn mirrored(commit: &str) -> Mirrored {
    Mirrored {
        commit: commit.parse().unwrap(),
        repository: "git/ns/m".into(),
        size_bytes: 1,
    }
}

fn word(commit: &str, state: LoadState, serves: Option<&str>) -> Answer {
    Answer {
        pod: "m-1".into(),
        word: Ok(Some(Word {
            folder: at(commit).folder(),
            scale: 1.0,
            state,
            serving: serves.map(|digest| Served {
                digest: digest.into(),
                rank: 8,
                sha256: "s".into(),
                size: 3,
            }),
            warning: None,
        })),
    }
}

fn loaded(commit: &str) -> Answer {
    word(commit, LoadState::Loaded, Some(commit))
}

fn failed(commit: &str, reason: &str, serves: Option<&str>) -> Answer {
    let state = LoadState::Failed {
        reason: reason.into(),
        message: "why".into(),
    };
    word(commit, state, serves)
}

impl Moment {
    /// Its files lie on the registry at a commit, its list says so, and workers answer.
    fn with(commit: &str, workers: Vec<Answer>) -> Self {
        let facts = Facts {
            listed: Some(at(commit)),
            workers: Some(workers),
            ..Facts::default()
        };
        Self {
            facts: Some(facts),
            wanted: Some(at(commit)),
            findings: Findings {
                latest: Some(commit.parse().unwrap()),
                mirrored: Some(mirrored(commit)),
                ..Findings::default()
            },
            ..Self::first()
        }
    }

    /// Nothing is known yet.
    fn first() -> Self {
        Self {
            adapter: serde_json::from_value(json!({
                "apiVersion": "hyprstream.io/v1alpha1", "kind": "Adapter",
                "metadata": {"name": "sql", "namespace": "ns", "uid": "u", "generation": 1},
                "spec": {"modelRef": {"name": "m"}, "source": {"path": "x.safetensors"}},
            }))
            .unwrap(),
            before: AdapterStatus::default(),
            plan: Ok(plan()),
            findings: Findings::default(),
            wanted: None,
            facts: None,
            replicas: 1,
        }
    }

    fn after(mut self, before: &AdapterStatus) -> Self {
        self.before = before.clone();
        self
    }

    fn facts(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        change(self.facts.get_or_insert_default());
        self
    }

    fn status(&self) -> AdapterStatus {
        status(&Observed {
            adapter: &self.adapter,
            before: &self.before,
            plan: self.plan.as_ref(),
            findings: &self.findings,
            wanted: self.wanted.as_ref(),
            facts: self.facts.as_ref(),
            replicas: self.replicas,
            handled: None,
            now: Timestamp::UNIX_EPOCH,
        })
    }
}

/// Each condition as `status/reason`.
#[track_caller]
fn check(moment: &Moment, expected: [(&str, &str); 5]) -> AdapterStatus {
    let status = moment.status();
    for (kind, expected) in expected {
        let Condition {
            status,
            reason,
            message,
            ..
        } = status.condition(kind).unwrap();
        assert_eq!(format!("{status}/{reason}"), expected, "{kind}: {message}");
    }
    // The same again says the same: nothing is written.
    let mut again = Moment {
        adapter: moment.adapter.clone(),
        before: status.clone(),
        plan: moment.plan.clone(),
        findings: moment.findings.clone(),
        wanted: moment.wanted.clone(),
        facts: moment.facts.clone(),
        replicas: moment.replicas,
    };
    assert_eq!(again.status(), status);
    again.adapter.metadata.generation = Some(1);
    assert!(events(&status, &again.status()).is_empty());
    status
}

#[test]
fn at_first_sight_nothing_is_known() {
    check(
        &Moment::first(),
        [
            (SOURCE_RESOLVED, "Unknown/Pending"),
            (ACCEPTED, "Unknown/Pending"),
            (LOADED, "Unknown/Pending"),
            (READY, "Unknown/Pending"),
            (STALLED, "False/NotStalled"),
        ],
    );
}

#[test]
fn it_is_ready_once_all_workers_answer_with_it() {
    let none = AdapterStatus::default();
    let listed = Moment::with(A, vec![]).facts(|facts| facts.workers = None);
    let told = check(
        &listed,
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "Unknown/Pending"),
            (READY, "Unknown/Pending"),
            (STALLED, "False/NotStalled"),
        ],
    );
    let absent = Answer {
        pod: "m-2".into(),
        word: Ok(None),
    };
    let half = check(
        &Moment::with(A, vec![loaded(A), absent]).after(&told),
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "False/Loading"),
            (READY, "False/Loading"),
            (STALLED, "False/NotStalled"),
        ],
    );
    assert_eq!(
        half.replicas,
        Some(AdapterReplicas {
            desired: 2,
            loaded: 1,
            failed: 0
        })
    );
    assert!(events(&told, &half).is_empty());
    let all = check(
        &Moment::with(A, vec![loaded(A), loaded(A)]).after(&half),
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "True/AllLoaded"),
            (READY, "True/AllLoaded"),
            (STALLED, "False/NotStalled"),
        ],
    );
    assert_eq!(all.commit.as_deref(), Some(A));
    assert_eq!(
        (
            all.digest.as_deref(),
            all.sha256.as_deref(),
            all.rank,
            all.size
        ),
        (Some(A), Some("s"), Some(8), Some(3))
    );
    assert_eq!(events(&none, &all)[0].reason, "Loaded");
}

#[test]
fn while_another_commit_is_loaded_the_old_one_keeps_it_ready() {
    let before = Moment::with(A, vec![loaded(A)]).status();
    let swapping = Moment::with(B, vec![loaded(A)]).after(&before);
    let during = check(
        &swapping,
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "False/Loading"),
            (READY, "True/Swapping"),
            (STALLED, "False/NotStalled"),
        ],
    );
    assert_eq!(during.commit.as_deref(), Some(A));
    let refused = failed(B, "ShapeMismatch", Some(A));
    let trouble = Trouble {
        reason: "ShapeMismatch".into(),
        message: "why".into(),
    };
    let refused = Moment::with(B, vec![refused])
        .facts(|facts| facts.refusal = Some(trouble))
        .after(&during);
    let after = check(
        &refused,
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "False/ShapeMismatch"),
            (LOADED, "False/ShapeMismatch"),
            (READY, "True/Serving"),
            (STALLED, "True/ShapeMismatch"),
        ],
    );
    assert_eq!(after.commit.as_deref(), Some(A));
    assert_eq!(after.replicas.unwrap().failed, 1);
    let told: Vec<String> = events(&during, &after)
        .into_iter()
        .map(|e| e.reason)
        .collect();
    assert_eq!(told, ["ShapeMismatch"], "once");
    let mended = Moment::with(A, vec![loaded(A)]).after(&after).status();
    assert!(mended.is_true(LOADED) && mended.is_true(ACCEPTED) && !mended.is_true(STALLED));
}

#[test]
fn what_a_node_lacks_for_now_refuses_nothing() {
    check(
        &Moment::with(A, vec![failed(A, "RegistryUnreachable", None)]),
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "False/RegistryUnreachable"),
            (READY, "False/RegistryUnreachable"),
            (STALLED, "False/NotStalled"),
        ],
    );
    let silent = Answer {
        pod: "m-2".into(),
        word: Err("it does not answer".into()),
    };
    let status = check(
        &Moment::with(A, vec![loaded(A), silent]),
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "False/WorkerUnreachable"),
            (READY, "False/WorkerUnreachable"),
            (STALLED, "False/NotStalled"),
        ],
    );
    assert!(status.condition(LOADED).unwrap().message.contains("m-2"));
}

#[test]
fn another_scale_counts_only_once_workers_have_it() {
    let mut moment = Moment::with(A, vec![loaded(A)]);
    let scaled = AdapterEntry {
        scale: 0.5,
        ..at(A)
    };
    moment.wanted = Some(scaled.clone());
    let moment = moment.facts(|facts| facts.listed = Some(scaled));
    let status = moment.status();
    assert!(!status.is_true(LOADED) && status.is_true(READY));
}

#[test]
fn without_workers_it_is_idle_or_waits_for_them() {
    let mut idle = Moment::with(A, vec![]);
    idle.replicas = 0;
    let status = check(
        &idle,
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "True/Idle"),
            (READY, "True/Idle"),
            (STALLED, "False/NotStalled"),
        ],
    );
    assert_eq!(status.commit.as_deref(), Some(A));
    check(
        &Moment::with(A, vec![]),
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "True/Listed"),
            (LOADED, "False/NoWorkers"),
            (READY, "False/NoWorkers"),
            (STALLED, "False/NotStalled"),
        ],
    );
}

#[test]
fn a_model_that_is_not_there_stalls_nothing_and_a_taken_name_does() {
    let mut missing = Moment::first();
    missing.plan = Err(Invalid::ModelNotFound("m".into()));
    check(
        &missing,
        [
            (SOURCE_RESOLVED, "Unknown/ModelNotFound"),
            (ACCEPTED, "False/ModelNotFound"),
            (LOADED, "False/ModelNotFound"),
            (READY, "False/ModelNotFound"),
            (STALLED, "False/NotStalled"),
        ],
    );
    let taken = Moment::with(A, vec![loaded(A)]).facts(|facts| {
        facts.rival = Some("older".into());
        facts.listed = None;
    });
    let status = check(
        &taken,
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "False/NameTaken"),
            (LOADED, "False/NameTaken"),
            (READY, "False/NameTaken"),
            (STALLED, "True/NameTaken"),
        ],
    );
    assert_eq!(
        (status.replicas, status.digest),
        (None, None),
        "that is the other's"
    );
}

#[test]
fn trouble_with_the_source_or_the_list_is_told_where_it_is() {
    let mut moment = Moment::first();
    moment.findings.problem = Some(Problem {
        reason: "RepositoryNotFound".into(),
        message: "there is none".into(),
        retriable: false,
    });
    let moment = moment.facts(|_| {});
    check(
        &moment,
        [
            (SOURCE_RESOLVED, "False/RepositoryNotFound"),
            (ACCEPTED, "Unknown/Pending"),
            (LOADED, "Unknown/Pending"),
            (READY, "False/RepositoryNotFound"),
            (STALLED, "True/RepositoryNotFound"),
        ],
    );
    let down = Moment::with(A, vec![]).facts(|facts| {
        facts.listed = None;
        facts.list_problem = Some(Trouble {
            reason: reason::REGISTRY_UNREACHABLE.into(),
            message: "down".into(),
        });
    });
    check(
        &down,
        [
            (SOURCE_RESOLVED, "True/Succeeded"),
            (ACCEPTED, "Unknown/RegistryUnreachable"),
            (LOADED, "False/NoWorkers"),
            (READY, "False/NoWorkers"),
            (STALLED, "False/NotStalled"),
        ],
    );
}

#[test]
fn after_a_start_of_the_operator_nothing_is_said_anew() {
    let before = Moment::with(A, vec![loaded(A)]).status();
    let known = [
        (SOURCE_RESOLVED, "True/Succeeded"),
        (ACCEPTED, "True/Listed"),
        (LOADED, "True/AllLoaded"),
        (READY, "True/AllLoaded"),
        (STALLED, "False/NotStalled"),
    ];
    let nothing = Moment::first().after(&before);
    assert_eq!(check(&nothing, known), before);
    let listed = Moment::first()
        .after(&before)
        .facts(|facts| facts.listed = Some(at(A)));
    assert_eq!(check(&listed, known), before);
    let trouble = Trouble {
        reason: "ShapeMismatch".into(),
        message: "why".into(),
    };
    let refused = Moment::with(A, vec![failed(A, "ShapeMismatch", None)])
        .facts(|facts| facts.refusal = Some(trouble))
        .status();
    let again = Moment::first()
        .after(&refused)
        .facts(|facts| facts.listed = Some(at(A)));
    assert_eq!(
        again.status().condition(ACCEPTED),
        refused.condition(ACCEPTED)
    );
}
