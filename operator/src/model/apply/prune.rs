//! Which volumes may go: pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use crate::model::build::Revision;

/// Claims to delete. `claims` are ordered, newest first; what is `needed` stays in any case, and
/// so many others that `keep` commits have a claim.
pub fn superfluous(claims: &[Revision], needed: &BTreeSet<String>, keep: usize) -> Vec<String> {
    let mut left = keep.saturating_sub(claims.iter().filter(|c| needed.contains(&c.claim)).count());
    claims
        .iter()
        .filter(|c| !needed.contains(&c.claim))
        .filter(|_| {
            let goes = left == 0;
            left = left.saturating_sub(1);
            goes
        })
        .map(|c| c.claim.clone())
        .collect()
}

/// The claims that a pod mounts.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    pod.spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter_map(|v| v.persistent_volume_claim.as_ref())
        .map(|c| c.claim_name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(count: u32) -> Vec<Revision> {
        (0..count)
            .rev()
            .map(|i| Revision {
                commit: format!("{i:040x}").parse().unwrap(),
                claim: format!("c{i}"),
            })
            .collect()
    }

    #[test]
    fn the_newest_stay_and_what_is_needed_counts() {
        let needed = BTreeSet::from(["c4".to_owned(), "c0".to_owned()]);
        assert_eq!(superfluous(&claims(5), &needed, 3), ["c2", "c1"]);
        assert_eq!(superfluous(&claims(5), &needed, 1), ["c3", "c2", "c1"]);
        assert!(superfluous(&claims(2), &BTreeSet::new(), 3).is_empty());
    }
}
