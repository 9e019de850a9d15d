//! Each condition of an Adapter.

use hyprstream_api::condition::{ACCEPTED, LOADED, READY, SOURCE_RESOLVED, reason};

use super::{Observed, standing::Tally};
use crate::reporting::{
    conditions::{State, no, repeated, sentence, unknown, yes},
    source::source_state,
};

/// Reasons not to accept an Adapter that no worker gave.
const OWN: [&str; 6] = [
    reason::PENDING,
    reason::MODEL_NOT_FOUND,
    reason::NAME_TAKEN,
    reason::TOO_MANY_ADAPTERS,
    reason::INVALID_SPEC,
    reason::MALFORMED,
];

pub(super) fn source(observed: &Observed<'_>) -> State {
    let plan = match observed.plan {
        Ok(plan) => plan,
        Err(invalid) if invalid.may_pass() => {
            return unknown(invalid.reason(), invalid.to_string());
        }
        Err(invalid) => return unknown(invalid.reason(), "the spec is not valid"),
    };
    let known = observed.before.condition(SOURCE_RESOLVED);
    let known = known.filter(|_| observed.is_same_spec());
    let reference = Some(&plan.source.reference);
    source_state(
        reference,
        observed.findings,
        known,
        "the adapter's files",
        "",
    )
}

pub(super) fn accepted(observed: &Observed<'_>) -> State {
    if let Err(invalid) = observed.plan {
        return no(invalid.reason(), invalid.to_string());
    }
    let name = observed.adapter.served_name();
    let model = &observed.adapter.spec.model_ref.name;
    let facts = observed.facts;
    if let Some(rival) = facts.and_then(|facts| facts.rival.as_ref()) {
        return no(
            reason::NAME_TAKEN,
            format!(
                "the Adapter {rival}, which is older, is served as {name} by the Model {model}: \
                 set another spec.servedName, or delete the other"
            ),
        );
    }
    let Some(facts) = facts else {
        return match observed.before.condition(ACCEPTED) {
            Some(known) if observed.is_same_spec() && known.reason != reason::PENDING => {
                repeated(known)
            }
            _ => unknown(reason::PENDING, "its files are not on the registry yet"),
        };
    };
    if facts.is_beyond && observed.wanted.is_some() {
        return no(
            reason::TOO_MANY_ADAPTERS,
            format!("the Model {model} has as many Adapters as there may be: delete others"),
        );
    }
    if let Some(trouble) = &facts.refusal
        && observed.is_listed()
    {
        return no(&trouble.reason, &trouble.message);
    }
    if let Some(trouble) = &facts.list_problem
        && !observed.is_listed()
    {
        return unknown(&trouble.reason, &trouble.message);
    }
    if facts.listed.is_none() {
        return unknown(reason::PENDING, "its files are not on the registry yet");
    }
    // As after a start of the operator: what workers refused is refused until they say otherwise.
    if let Some(known) = observed.before.condition(ACCEPTED)
        && facts.workers.is_none()
        && observed.is_same_spec()
        && known.status == "False"
        && !OWN.contains(&known.reason.as_str())
    {
        return repeated(known);
    }
    yes(
        reason::LISTED,
        format!("the workers of the Model {model} are told of it"),
    )
}

pub(super) fn loaded(
    observed: &Observed<'_>,
    tally: Option<&Tally<'_>>,
    accepted: &State,
) -> State {
    let is_refused = accepted.status == "False";
    if is_refused {
        return no(&accepted.reason, &accepted.message);
    }
    let Some((tally, target)) = tally.zip(observed.target()) else {
        return match observed.before.condition(LOADED) {
            Some(known) if observed.is_same_spec() && !observed.is_asked() => repeated(known),
            _ => unknown(reason::PENDING, "no worker was told of it yet"),
        };
    };
    let commit = &target.commit;
    if observed.is_idle() {
        return yes(
            reason::IDLE,
            "the Model's replicas is 0: no worker runs, and none is wanted",
        );
    }
    if tally.is_complete() {
        let warning = tally.warning.map(|warning| format!(": {warning}"));
        return yes(
            reason::ALL_LOADED,
            format!(
                "all ready workers answer with commit {commit}{}",
                warning.unwrap_or_default()
            ),
        );
    }
    if tally.standings.is_empty() {
        return no(reason::NO_WORKERS, "no worker of the Model is ready");
    }
    if let Some((reason, message)) = tally.hindrance() {
        return no(reason, message);
    }
    if let Some((pod, why)) = tally.silent() {
        return no(
            reason::WORKER_UNREACHABLE,
            format!("the worker {pod} does not say which adapters it has: {why}"),
        );
    }
    no(
        reason::LOADING,
        format!("workers fetch and read commit {commit}; see status.replicas"),
    )
}

pub(super) fn ready(
    observed: &Observed<'_>,
    tally: Option<&Tally<'_>>,
    [source, accepted, loaded]: [&State; 3],
) -> State {
    if observed.plan.is_err() || accepted.reason == reason::NAME_TAKEN {
        return no(&accepted.reason, &accepted.message);
    }
    if tally.is_some_and(Tally::is_complete) || loaded.reason == reason::IDLE {
        return yes(&loaded.reason, &loaded.message);
    }
    // As after a start of the operator.
    if let Some(known) = observed.before.condition(READY)
        && tally.is_none()
        && !observed.is_asked()
        && (known.status == "True" || observed.facts.is_none() && observed.is_same_spec())
    {
        return repeated(known);
    }
    if tally.is_some_and(|tally| tally.all_serve) {
        let (reason, why) = if accepted.status == "False" {
            (
                reason::SERVING,
                format!("; the latest is refused: {}", accepted.message),
            )
        } else {
            (
                reason::SWAPPING,
                " until all workers have the latest".to_owned(),
            )
        };
        return yes(
            reason,
            format!("what was loaded before answers requests{why}"),
        );
    }
    let all = [accepted, source, loaded];
    if let Some(state) = all.into_iter().find(|state| state.status == "False") {
        return no(&state.reason, &state.message);
    }
    let open = all.into_iter().find(|state| state.status == "Unknown");
    let state = open.unwrap_or(loaded);
    unknown(&state.reason, &state.message)
}

pub(super) fn stalled(observed: &Observed<'_>, accepted: &State) -> State {
    match observed.plan {
        Err(invalid) if invalid.may_pass() => return no(reason::NOT_STALLED, ""),
        Err(invalid) => return yes(invalid.reason(), invalid.to_string()),
        Ok(_) => {}
    }
    if accepted.reason == reason::NAME_TAKEN {
        return yes(&accepted.reason, &accepted.message);
    }
    if let Some(problem) = observed.findings.problem.as_ref().filter(|p| !p.retriable) {
        return yes(&problem.reason, &problem.message);
    }
    if accepted.status == "False" {
        return yes(
            &accepted.reason,
            format!(
                "{} It is looked at again when its ref moves, or its spec or the Model changes.",
                sentence(&accepted.message)
            ),
        );
    }
    no(reason::NOT_STALLED, "")
}
