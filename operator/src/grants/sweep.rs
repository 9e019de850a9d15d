//! Comparing what the registry keeps with what there is. Pure, but for the sets of [`super::Grants`].

use std::collections::{BTreeMap, BTreeSet};

use hyprstream_contract::grants::{BY_HAND, KeptGrants};

use super::Wanted;

/// What a sweep has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Handles of grants without a volume.
    pub superfluous: Vec<String>,
    /// Volumes whose Secret or grant is to be looked at.
    pub due: Vec<Wanted>,
}

/// What is known of a volume that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it is to have.
    pub wanted: Wanted,
    /// Revision of the grant that it is to have now; `None` while its Secret is not known, or is to
    /// be looked at again.
    pub revision: Option<String>,
}

/// What is to be done where the registry keeps those grants, the cluster has volumes of those
/// `handles`, of which those are `known` that name a Secret.
pub fn plan(kept: &KeptGrants, handles: &BTreeSet<String>, known: Vec<Known>) -> Plan {
    let keys = kept.grants.keys();
    let superfluous = keys.filter(|h| !handles.contains(*h) && !h.starts_with(BY_HAND));
    let is_right = |known: &Known| {
        known.revision.is_some() && kept.grants.get(&known.wanted.handle) == Some(&known.revision)
    };
    Plan {
        superfluous: superfluous.cloned().collect(),
        due: known
            .into_iter()
            .filter(|known| !is_right(known))
            .map(|known| (known.wanted.handle.clone(), known.wanted))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use hyprstream_contract::grants::Opens;

    use super::*;

    fn known(handle: &str, revision: Option<&str>) -> Known {
        Known {
            wanted: Wanted {
                handle: handle.into(),
                namespace: "ns".into(),
                secret: "s".into(),
                claim: "c".into(),
                opens: Opens::Repository("git/a/m".into()),
            },
            revision: revision.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_missing_other_or_not_known_is_due_and_what_has_no_volume_goes() {
        let kept = KeptGrants {
            grants: [
                ("right", Some("r")),
                ("other", Some("old")),
                ("spoilt", None),
                ("unknown", Some("r")),
                ("gone", Some("r")),
                ("spoilt-and-gone", None),
                ("own-volume", Some("r")),
            ]
            .map(|(handle, revision)| (handle.to_owned(), revision.map(str::to_owned)))
            .into(),
        };
        let handles = [
            "right",
            "other",
            "spoilt",
            "unknown",
            "missing",
            "of-before",
        ];
        let handles = handles.map(str::to_owned).into();
        let all = ["right", "other", "spoilt", "missing"].map(|handle| known(handle, Some("r")));
        let all = all.into_iter().chain([known("unknown", None)]).collect();
        let plan = plan(&kept, &handles, all);
        assert_eq!(plan.superfluous, ["gone", "spoilt-and-gone"]);
        let due: Vec<_> = plan.due.iter().map(|wanted| &*wanted.handle).collect();
        assert_eq!(due, ["missing", "other", "spoilt", "unknown"]);
    }
}
