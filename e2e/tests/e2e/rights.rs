//! Pushes by the cluster's own tokens, within the rights that RBAC gives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyprstream_e2e::{Cluster, Repository, TinyModel, wait_until};

use crate::fresh_seed;

/// A right that was taken away has ended within this time.
const REVOKED_WITHIN: Duration = Duration::from_mins(1);

/// What git says of a push by the holder of a token.
struct Pusher<'a> {
    repository: &'a Repository,
    host: String,
    token: String,
}

impl Pusher<'_> {
    /// Whether the push succeeded, and what git said. The token stands on no command line.
    fn push(&self, repository: &str, refspec: &str) -> Result<(bool, String)> {
        let url = format!("{}/git/{repository}.git", self.host);
        let output = self
            .repository
            .command(&["push", "--no-verify", "--porcelain", &url, refspec])
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "http.extraHeader")
            .env(
                "GIT_CONFIG_VALUE_0",
                format!("Authorization: Bearer {}", self.token),
            )
            .output()
            .context("run git")?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(!text.contains(&self.token), "git's output has the token");
        Ok((output.status.success(), text))
    }
}

#[test]
fn s15_a_service_account_pushes_its_own_branch_for_as_long_as_it_is_bound() -> Result<()> {
    let cluster = Cluster::from_env()?;
    let (ours, theirs) = (cluster.namespace("rights")?, cluster.namespace("rights")?);
    let namespace = ours.name.as_str();
    let repository = Repository::new(&cluster, namespace, "tiny")?;
    TinyModel::new(fresh_seed()).write(&repository)?;
    repository.publish("first")?;
    cluster.kubectl(&["-n", namespace, "create", "serviceaccount", "job-1"])?;
    cluster.apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: job-1, namespace: {namespace}}}
rules:
  - {{apiGroups: [hyprstream.io], resources: [repositories], resourceNames: [tiny], verbs: [get]}}
  - {{apiGroups: [hyprstream.io], resources: [repositories/train], resourceNames: [tiny], verbs: [push]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: job-1, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: job-1}}
subjects: [{{kind: ServiceAccount, name: job-1, namespace: {namespace}}}]
"
    ))?;
    let create = |audience: &str| {
        cluster.kubectl(&[
            "-n",
            namespace,
            "create",
            "token",
            "job-1",
            "--audience",
            audience,
        ])
    };
    let job = Pusher {
        repository: &repository,
        host: cluster.registry.clone(),
        token: create("hyprstream")?,
    };
    repository.write("trained.txt", b"1")?;
    repository.commit("trained")?;
    let own = format!("{namespace}/tiny");
    let branch = "HEAD:refs/heads/train/job-1";
    wait_until(REVOKED_WITHIN, || {
        // RBAC of the API server follows its objects after a moment.
        Ok(job.push(&own, branch)?.0.then_some(()))
    })?;
    for (refspec, why) in [
        ("HEAD:refs/heads/main", "may not push main"),
        ("HEAD:refs/heads/train/job-2", "may not push train/job-2"),
        ("+HEAD~1:refs/heads/train/job-1", "non-fast-forward"),
        (":refs/heads/train/job-1", "may not be deleted"),
    ] {
        let (done, text) = job.push(&own, refspec)?;
        ensure!(!done && text.contains(why), "{refspec}: {text}");
    }
    for other in [
        format!("{namespace}/other"),
        format!("{}/tiny", theirs.name),
    ] {
        let (done, text) = job.push(&other, branch)?;
        ensure!(!done && text.contains("403"), "{other}: {text}");
    }
    let for_another_service = Pusher {
        repository: &repository,
        host: cluster.registry.clone(),
        token: create("another-service")?,
    };
    let (done, text) = for_another_service.push(&own, branch)?;
    ensure!(!done, "a token for another service: {text}");
    repository.write("trained.txt", b"2")?;
    repository.commit("trained more")?;
    cluster.kubectl(&["-n", namespace, "delete", "rolebinding", "job-1"])?;
    // A push of what is there already changes nothing and asks for the right all the same.
    wait_until(REVOKED_WITHIN, || {
        let (done, text) = job.push(&own, "HEAD:refs/heads/train/job-1")?;
        Ok((!done && text.contains("403")).then_some(()))
    })?;
    Ok(())
}
