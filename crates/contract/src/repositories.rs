//! The registry's API for those who own repositories, beside `git push`.
//!
//! | Call | Body | Answer |
//! |---|---|---|
//! | `POST /api/v1/forks` | [`ForkRequest`] | 201 [`Fork`] |
//! | `POST /api/v1/merges` | [`MergeRequest`] | 200 [`Merge`], or 409 [`MergeRefusal`] |
//! | `POST /api/v1/keeps` | [`KeepRequest`] | 200 [`Keep`] |
//! | `POST /api/v1/commits` | [`CommitRequest`] | 201 [`Committed`], or 409 [`MergeRefusal`] |
//! | `GET /api/v1/branches/NAMESPACE/NAME?prefix=P&after=B&limit=N` | | 200 [`BranchPage`] |
//! | `GET /api/v1/branches/NAMESPACE/NAME?branch=B` | | 200 [`BranchPage`] with one, or none |
//! | `DELETE /api/v1/branches/NAMESPACE/NAME?branch=B` | | 204, or 404 |
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
/// Path of [`CommitRequest`].
pub const COMMITS_PATH: &str = "/api/v1/commits";
/// What stands before namespace and name in the path of a [`BranchPage`].
pub const BRANCHES_PATH: &str = "/api/v1/branches";
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
    /// `NAMESPACE/NAME`, which must not exist, unless `commit` is set.
    pub to: String,
    /// With it, the call is repeatable: a `to` that exists is given what it lacks of this commit of
    /// `from`, with its LFS objects, and keeps all that it has; no branch of it changes. Only the
    /// admin token may do that to one that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitId>,
}

/// A repository that was made out of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fork {
    /// Where it lies on the registry: `git/<namespace>/<name>`.
    pub repository: String,
    /// LFS objects that it has; of one that was there already, those of the commit.
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

/// Asks for a commit of files on a branch, without git. LFS objects among them were uploaded before,
/// by the LFS protocol. It needs what a push of the branch needs, and `create` where the repository
/// does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommitRequest {
    /// `NAMESPACE/NAME`; made where it does not exist.
    pub repository: String,
    /// The branch, without `refs/heads/`; one that does not exist begins without a parent.
    pub branch: String,
    /// What the branch must name now: a commit, or with `null` nothing. Without the field the commit
    /// is made on top of whatever it names.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "nullable"
    )]
    pub expected: Option<Option<CommitId>>,
    /// At least one; those of other paths stay.
    pub changes: Vec<FileChange>,
    /// Name and mail address of the author; without it, who the token belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<CommitAuthor>,
    /// The message, taken as it is.
    pub message: String,
}

/// A change of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileChange {
    /// Path below the root.
    pub path: String,
    /// What it is from now on.
    pub content: FileContent,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileContent {
    /// This text, at most 1 MiB.
    Text(String),
    /// An LFS object that the repository has.
    #[serde(rename_all = "camelCase")]
    Lfs {
        /// SHA-256, 64 hexadecimal digits.
        oid: String,
        /// Bytes.
        size: u64,
    },
    /// No more there.
    Removed,
}

/// Who made a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommitAuthor {
    /// Name.
    pub name: String,
    /// Mail address.
    pub email: String,
}

/// A commit that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    /// What the branch names now.
    pub commit: CommitId,
}

/// Branches of a repository, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BranchPage {
    /// Those after `after` whose names begin with `prefix`, at most `limit` (100, at most 1000).
    pub branches: Vec<Branch>,
    /// Whether there are more.
    pub has_more: bool,
}

/// A branch and the commit that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Branch {
    /// Without `refs/heads/`.
    pub name: String,
    /// The commit.
    pub commit: CommitId,
    /// Its whole message.
    pub message: String,
    /// When it was committed, in seconds since 1970.
    pub committed_at: i64,
}

#[allow(clippy::option_option, reason = "no field and null are two things")]
fn nullable<'de, D>(deserializer: D) -> Result<Option<Option<CommitId>>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
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
                commit: None,
            },
            &json!({"from": "team-a/m", "to": "team-b/m"}),
        );
        let request = |expected| CommitRequest {
            repository: "team-a/files".into(),
            branch: "files/1".into(),
            expected,
            changes: vec![
                FileChange {
                    path: "a".into(),
                    content: FileContent::Text("t".into()),
                },
                FileChange {
                    path: "b".into(),
                    content: FileContent::Lfs {
                        oid: "0".into(),
                        size: 1,
                    },
                },
                FileChange {
                    path: "c".into(),
                    content: FileContent::Removed,
                },
            ],
            author: None,
            message: "m".into(),
        };
        let text = |expected: Option<serde_json::Value>| {
            let mut text = json!({"repository": "team-a/files", "branch": "files/1", "message": "m",
                "changes": [{"path": "a", "content": {"text": "t"}},
                            {"path": "b", "content": {"lfs": {"oid": "0", "size": 1}}},
                            {"path": "c", "content": "removed"}]});
            if let Some(expected) = expected {
                text["expected"] = expected;
            }
            text
        };
        check(&request(None), &text(None));
        check(&request(Some(None)), &text(Some(json!(null))));
        check(
            &request(Some(Some(commit.clone()))),
            &text(Some(json!(commit))),
        );
        check(
            &BranchPage {
                branches: vec![Branch {
                    name: "files/1".into(),
                    commit: commit.clone(),
                    message: "m".into(),
                    committed_at: 1,
                }],
                has_more: false,
            },
            &json!({"branches": [{"name": "files/1", "commit": commit, "message": "m",
                                  "committedAt": 1}], "hasMore": false}),
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
