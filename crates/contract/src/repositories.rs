//! The registry's API for those who own repositories, beside `git push`.
//!
//! | Call | Body | Answer |
//! |---|---|---|
//! | `POST /api/v1/forks` | [`ForkRequest`] | 201 [`Fork`] |
//! | `POST /api/v1/merges` | [`MergeRequest`] | 200 [`Merge`], or 409 [`MergeRefusal`] |
//! | `POST /api/v1/keeps` | [`KeepRequest`] | 200 [`Keep`] |
//! | `GET /api/v1/protection/NAMESPACE[/NAME]` | | 200 [`Protection`] |
//! | `PUT /api/v1/protection/NAMESPACE[/NAME]` | [`Protection`] | 200 [`Protection`] |
//!
//! Calls carry the same tokens as git does. What one may do is asked of the API server with the
//! names in [`rbac`].

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::CommitId;

/// Path of [`ForkRequest`].
pub const FORKS_PATH: &str = "/api/v1/forks";
/// Path of [`MergeRequest`].
pub const MERGES_PATH: &str = "/api/v1/merges";
/// Path of [`KeepRequest`].
pub const KEEPS_PATH: &str = "/api/v1/keeps";
/// What stands before the namespace in the path of a [`Protection`].
pub const PROTECTION_PATH: &str = "/api/v1/protection";

/// The words of RBAC that the registry knows. There are no such objects: the names are those of
/// repositories, in the namespace that owns them.
pub mod rbac {
    /// Audience of the tokens of the API server that the registry takes, unless it is told another.
    pub const AUDIENCE: &str = "hyprstream";
    /// API group of [`RESOURCE`].
    pub const GROUP: &str = "hyprstream.io";
    /// Resource of repositories.
    pub const RESOURCE: &str = "repositories";
    /// Resource by which training pushes; its only verb is `push`. With the name of a repository it
    /// lets a service account push the branch `train/ACCOUNT` and the tags `ACCOUNT/*`; with
    /// [`job`] it lets anyone push those of that job.
    pub const TRAIN: &str = "repositories/train";

    /// The name under which a job's own branch `train/JOB` of a repository stands in a rule for
    /// [`TRAIN`].
    pub fn job(repository: &str, job: &str) -> String {
        format!("{repository}/{job}")
    }
}

/// Asks for a repository that begins with all that another one has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForkRequest {
    /// `NAMESPACE/NAME`, or `mirror/ID` as `MirrorStatus::repository` names it.
    pub from: String,
    /// `NAMESPACE/NAME`, which must not exist.
    pub to: String,
}

/// A repository that was made out of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fork {
    /// Where it lies on the registry: `git/<namespace>/<name>`.
    pub repository: String,
    /// LFS objects that it has.
    pub objects: u64,
    /// Bytes of these and of its git objects, none of which were copied.
    pub shared_bytes: u64,
}

/// Asks for a branch to take up what another one has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MergeRequest {
    /// `NAMESPACE/NAME`.
    pub repository: String,
    /// The branch that changes, without `refs/heads/`.
    pub into: String,
    /// The branch or the commit that is merged.
    pub from: String,
    /// Message of the commit, if one is made.
    pub message: String,
    /// What `into` must name now, or nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<CommitId>,
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Merge {
    /// What the branch names now.
    pub commit: CommitId,
    /// How it came there.
    pub kind: MergeKind,
}

/// How a branch took up another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MergeKind {
    /// It had all of it already.
    UpToDate,
    /// It moved forward, and no commit was made.
    FastForward,
    /// A commit with two parents was made.
    Merged,
}

/// Why a merge was not made, with the body of an [`ApiError`](crate::registry::ApiError).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MergeRefusal {
    /// [`MERGE_CONFLICT`] or [`REFERENCE_MOVED`].
    pub reason: String,
    /// What was wrong and what to do.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retriable: bool,
    /// The files that both sides changed, in order.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// Asks for the large files of a branch's older commits to be let go. The commits stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeepRequest {
    /// `NAMESPACE/NAME`.
    pub repository: String,
    /// The branch, without `refs/heads/`.
    pub branch: String,
    /// How many of the newest commits that this branch alone has keep their large files.
    pub newest: NonZeroU32,
}

/// What was let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Keep {
    /// Commits that this branch alone has and that do not keep their large files.
    pub older_commits: u64,
    /// LFS objects that this call let go.
    pub objects: u64,
    /// Their bytes. The disk has them back some minutes later, but for what other repositories
    /// have too.
    pub bytes: u64,
}

/// Both sides changed the same.
pub const MERGE_CONFLICT: &str = "MergeConflict";
/// The branch does not name what was expected.
pub const REFERENCE_MOVED: &str = "ReferenceMoved";
/// There is already a repository of that name.
pub const ALREADY_EXISTS: &str = "AlreadyExists";

/// Which branches and tags are protected. The first rule that matches a ref holds for it, those of
/// the repository before those of its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Protection {
    /// In order.
    pub rules: Vec<ProtectionRule>,
}

/// What may be done with some refs. Whoever has the verb `admin` may do everything with all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProtectionRule {
    /// `HEAD` for the default branch, or a name that begins with `refs/heads/` or `refs/tags/`, in
    /// which `*` stands for any characters.
    pub refs: String,
    /// The verb that is needed to make them and to move them forward.
    #[serde(default)]
    pub push: PushVerb,
    /// Whether the verb `force` is enough to rewrite them.
    #[serde(default)]
    pub force: bool,
    /// Whether the verb `force` is enough to delete them.
    #[serde(default)]
    pub delete: bool,
}

/// A verb by which refs are pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PushVerb {
    /// Whoever pushes other branches.
    Push,
    /// Whoever may rewrite other branches.
    Force,
    /// Those who administer the repository.
    #[default]
    Admin,
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        value: &T,
        text: &serde_json::Value,
    ) {
        assert_eq!(serde_json::to_value(value).unwrap(), *text);
        assert_eq!(serde_json::from_value::<T>(text.clone()).unwrap(), *value);
    }

    #[test]
    fn every_call_and_answer_survives_the_round_trip() {
        let commit: CommitId = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        check(
            &ForkRequest {
                from: "team-a/m".into(),
                to: "team-b/m".into(),
            },
            &json!({"from": "team-a/m", "to": "team-b/m"}),
        );
        check(
            &Fork {
                repository: "git/team-b/m".into(),
                objects: 2,
                shared_bytes: 3,
            },
            &json!({"repository": "git/team-b/m", "objects": 2, "sharedBytes": 3}),
        );
        check(
            &MergeRequest {
                repository: "team-a/m".into(),
                into: "main".into(),
                from: "train/j".into(),
                message: "Merge".into(),
                expected: Some(commit.clone()),
            },
            &json!({"repository": "team-a/m", "into": "main", "from": "train/j",
                    "message": "Merge", "expected": commit}),
        );
        check(
            &Merge {
                commit: commit.clone(),
                kind: MergeKind::FastForward,
            },
            &json!({"commit": commit, "kind": "fastForward"}),
        );
        check(
            &KeepRequest {
                repository: "team-a/m".into(),
                branch: "train/j".into(),
                newest: NonZeroU32::MIN,
            },
            &json!({"repository": "team-a/m", "branch": "train/j", "newest": 1}),
        );
        check(
            &Keep {
                older_commits: 4,
                objects: 3,
                bytes: 2,
            },
            &json!({"olderCommits": 4, "objects": 3, "bytes": 2}),
        );
        check(
            &MergeRefusal {
                reason: MERGE_CONFLICT.into(),
                message: "m".into(),
                retriable: false,
                paths: vec!["config.json".into()],
            },
            &json!({"reason": "MergeConflict", "message": "m", "retriable": false,
                    "paths": ["config.json"]}),
        );
        check(
            &Protection {
                rules: vec![ProtectionRule {
                    refs: "refs/heads/release/*".into(),
                    push: PushVerb::Force,
                    force: false,
                    delete: true,
                }],
            },
            &json!({"rules": [{"refs": "refs/heads/release/*", "push": "force", "force": false,
                               "delete": true}]}),
        );
    }

    #[test]
    fn a_rule_protects_unless_it_says_otherwise() {
        let rule: ProtectionRule = serde_json::from_value(json!({"refs": "HEAD"})).unwrap();
        assert_eq!(
            (rule.push, rule.force, rule.delete),
            (PushVerb::Admin, false, false)
        );
        let misspelt = json!({"refs": "HEAD", "psuh": "push"});
        assert!(serde_json::from_value::<ProtectionRule>(misspelt).is_err());
    }

    #[test]
    fn a_jobs_branch_stands_in_a_rule_under_the_repository() {
        assert_eq!(rbac::job("tiny", "job-1"), "tiny/job-1");
    }
}
