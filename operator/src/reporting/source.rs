//! What is told of a source, of objects of any kind: pure.

use hyprstream_api::condition::reason;
use hyprstream_contract::registry::Reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::{State, no, repeated, unknown, yes};
use crate::source::Findings;

/// The state of `SourceResolved`. `known` is what was told before of the same source, `all` what
/// the registry has of a commit once it is there, and `look` where its progress stands.
pub fn source_state(
    reference: Option<&Reference>,
    findings: &Findings,
    known: Option<&Condition>,
    all: &str,
    look: &str,
) -> State {
    if let Some(problem) = &findings.problem {
        return no(&problem.reason, &problem.message);
    }
    let what = match reference {
        Some(Reference::Branch(name)) => format!("branch {name} is at commit"),
        Some(Reference::Tag(name)) => format!("tag {name} is commit"),
        Some(Reference::Head) => "the default branch is at commit".to_owned(),
        Some(Reference::Commit(_)) | None => "commit".to_owned(),
    };
    match (&findings.latest, &findings.mirrored) {
        (Some(latest), Some(_)) => yes(
            reason::SUCCEEDED,
            format!("{what} {latest}, and the registry has {all} of it"),
        ),
        (Some(latest), None) => no(
            reason::FETCHING,
            format!("{what} {latest}, which the registry is fetching{look}"),
        ),
        (None, _) => match known.filter(|known| known.reason != reason::PENDING) {
            // After a start of the operator nothing is known for a moment.
            Some(known) => repeated(known),
            None => unknown(reason::PENDING, "the source is being looked up"),
        },
    }
}
