//! Which refs of a push its sender may change.

use std::collections::{HashMap, HashSet};

use hyprstream_contract::repositories::ProtectionRule;

use super::commands::{Change, Command, Commands};
use crate::{
    access::Access,
    auth::{Principal, Verb},
    protection::{self, Rules},
    refusal::Refusal,
    state::{State, blocking},
};

/// What becomes of a push.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Refs that git does not get to see, with the reason.
    pub(super) refused: Vec<(String, String)>,
    /// A branch may only move forward, which git finds out when the objects are here.
    pub(super) forward_only: bool,
}

/// Jobs of which the API server is asked in one push: their names are the sender's own.
const MOST_JOBS: usize = 16;

enum Judgement {
    Allowed,
    Forward,
    Refused(String),
}

/// Judges each ref of a push.
pub(super) async fn judge(
    state: &State,
    access: &Access,
    commands: &Commands,
) -> Result<Verdict, Refusal> {
    let rules = rules(state, access).await?;
    let (mut verdict, mut jobs) = (Verdict::default(), HashMap::new());
    for command in &commands.list {
        match judge_one(state, access, &rules, &mut jobs, command).await? {
            Judgement::Allowed => {}
            Judgement::Forward => verdict.forward_only = true,
            Judgement::Refused(reason) => verdict.refused.push((command.name.clone(), reason)),
        }
    }
    if commands.has("atomic") && !verdict.refused.is_empty() {
        let refused: HashSet<_> = verdict.refused.iter().map(|(name, _)| name).collect();
        let others: Vec<_> = commands
            .list
            .iter()
            .filter(|command| !refused.contains(&command.name))
            .map(|command| {
                let reason = "atomic push: another ref was refused".to_owned();
                (command.name.clone(), reason)
            })
            .collect();
        verdict.refused.extend(others);
    }
    Ok(verdict)
}

/// Why `name`, the full name of a branch, may not be moved forward; `None` if it may.
pub(crate) async fn forbids_forward(
    state: &State,
    access: &Access,
    name: &str,
) -> Result<Option<String>, Refusal> {
    let rules = rules(state, access).await?;
    let command = Command {
        old: "1".repeat(40),
        new: "2".repeat(40),
        name: name.to_owned(),
    };
    let mut jobs = HashMap::new();
    Ok(
        match judge_one(state, access, &rules, &mut jobs, &command).await? {
            Judgement::Refused(reason) => Some(reason),
            Judgement::Allowed | Judgement::Forward => None,
        },
    )
}

/// Why `name`, the full name of a branch or tag, may not be deleted; `None` if it may.
pub(crate) async fn forbids_deleting(
    state: &State,
    access: &Access,
    name: &str,
) -> Result<Option<String>, Refusal> {
    let rules = rules(state, access).await?;
    let command = Command {
        old: "1".repeat(40),
        new: "0".repeat(40),
        name: name.to_owned(),
    };
    let judged = judge_one(state, access, &rules, &mut HashMap::new(), &command).await?;
    Ok(match judged {
        Judgement::Refused(reason) => Some(reason),
        Judgement::Allowed | Judgement::Forward => None,
    })
}

/// Why the large files of older commits of `name`, the full name of a branch, may not be let go;
/// `None` if they may: by who may rewrite the branch, and by the job whose own it is.
pub(crate) async fn forbids_letting_go(
    state: &State,
    access: &Access,
    name: &str,
) -> Result<Option<String>, Refusal> {
    let rules = rules(state, access).await?;
    let job = name
        .strip_prefix("refs/heads/train/")
        .and_then(|below| below.split('/').next())
        .filter(|job| !job.is_empty() && rules.rule(name).is_none() && !rules.is_default(name));
    if let Some(job) = job {
        let (who, repository) = (&access.principal, &access.repository);
        if state.auth.allows_job(who, repository, job).await? {
            return Ok(None);
        }
    }
    let command = Command {
        old: "1".repeat(40),
        new: "2".repeat(40),
        name: name.to_owned(),
    };
    let judged = judge_one(state, access, &rules, &mut HashMap::new(), &command).await?;
    Ok(match judged {
        Judgement::Allowed => None,
        Judgement::Forward => Some(
            "letting large files go needs what rewriting the branch needs: ask for the right \
             `force`, or `admin` if it is protected"
                .to_owned(),
        ),
        Judgement::Refused(reason) => Some(reason),
    })
}

async fn rules(state: &State, access: &Access) -> Result<Rules, Refusal> {
    let (layout, repository) = (state.layout.clone(), access.repository.clone());
    blocking(move || Rules::read(&layout, &repository))
        .await?
        .map_err(|error| Refusal::internal("reading what is protected", &error))
}

async fn judge_one(
    state: &State,
    access: &Access,
    rules: &Rules,
    jobs: &mut HashMap<String, bool>,
    command: &Command,
) -> Result<Judgement, Refusal> {
    let name = command.name.as_str();
    let refused = |reason: String| Ok(Judgement::Refused(reason));
    if name.starts_with("refs/hyprstream/") {
        return refused("refs/hyprstream/ is the registry's own".to_owned());
    }
    let (branch, tag) = (
        name.strip_prefix("refs/heads/"),
        name.strip_prefix("refs/tags/"),
    );
    let Some(short) = branch.or(tag) else {
        // Our own tokens push notes and the like, as they always could.
        let own = !matches!(access.principal, Principal::Kubernetes(_));
        if own || access.may(state, Verb::Admin).await? {
            return Ok(Judgement::Allowed);
        }
        return refused("only branches and tags are pushed without the right `admin`".to_owned());
    };
    let rule = rules.rule(name);
    let push = rule.map_or(Verb::Push, |rule| protection::verb(rule.push));
    let if_unprotected = |open: fn(&ProtectionRule) -> bool| match rule {
        Some(rule) if !open(rule) => Verb::Admin,
        _ => Verb::Force,
    };
    let change = command.change();
    if change == Change::Delete {
        let needed = if_unprotected(|rule| rule.delete);
        if access.may(state, needed).await? {
            return Ok(Judgement::Allowed);
        }
        // A job takes back the tags of checkpoints that it no longer keeps. Its branch stays.
        if let (Some(tag), None) = (tag, rule)
            && let Some(job) = job_of_tag(tag)
        {
            match allows_job(state, access, jobs, job).await? {
                Some(true) => return Ok(Judgement::Allowed),
                Some(false) => {}
                None => return refused(too_many_jobs()),
            }
        }
        return refused(format!(
            "{short} may not be deleted without the right `{}`",
            needed.as_str()
        ));
    }
    if change == Change::Move {
        let needed = if_unprotected(|rule| rule.force);
        // Whoever may rewrite must be able to push too, which a rule may ask more for.
        if access.may(state, needed).await? && access.may(state, push).await? {
            return Ok(Judgement::Allowed);
        }
        if tag.is_some() {
            return refused(format!(
                "{short} is there already: moving a tag needs the right `{}`",
                needed.as_str()
            ));
        }
    }
    // One that is made loses nothing, and git refuses to make what is there.
    let allowed = match change {
        Change::Move => Judgement::Forward,
        Change::Create | Change::Delete => Judgement::Allowed,
    };
    if access.may(state, push).await? {
        return Ok(allowed);
    }
    if rule.is_none() && !rules.is_default(name) {
        let job = match branch {
            Some(branch) => branch.strip_prefix("train/").and_then(first_part),
            None => job_of_tag(short),
        };
        if let Some(job) = job {
            match allows_job(state, access, jobs, job).await? {
                Some(true) => return Ok(allowed),
                Some(false) => {}
                None => return refused(too_many_jobs()),
            }
        }
    }
    if access.may(state, Verb::Push).await? {
        return refused(format!(
            "{short} is protected: push to a branch and merge, or ask for `{}`",
            push.as_str()
        ));
    }
    refused(format!(
        "this token may not push {short}: training pushes its own branch train/NAME and tags \
         NAME/*, all others need the right `push`"
    ))
}

/// The job whose tag it is, by its name without `refs/tags/`.
fn job_of_tag(tag: &str) -> Option<&str> {
    first_part(tag).filter(|_| tag.contains('/'))
}

fn first_part(name: &str) -> Option<&str> {
    name.split('/').next().filter(|part| !part.is_empty())
}

/// Whether whoever pushes may push what is the job's; asked once for each job. `None` if there are
/// too many of them.
async fn allows_job(
    state: &State,
    access: &Access,
    jobs: &mut HashMap<String, bool>,
    job: &str,
) -> Result<Option<bool>, Refusal> {
    if let Some(may) = jobs.get(job) {
        return Ok(Some(*may));
    }
    if jobs.len() >= MOST_JOBS {
        return Ok(None);
    }
    let (who, repository) = (&access.principal, &access.repository);
    let may = state.auth.allows_job(who, repository, job).await?;
    jobs.insert(job.to_owned(), may);
    Ok(Some(may))
}

fn too_many_jobs() -> String {
    format!("one push is for at most {MOST_JOBS} jobs")
}
