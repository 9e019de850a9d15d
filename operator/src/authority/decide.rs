//! What to do next: pure.

use std::time::{Duration, SystemTime};

use hyprstream_tls::{Authority, Facts, Names};

use super::LIFE;

/// What there is.
#[derive(Clone, Default)]
pub(super) struct Seen {
    /// Who signs.
    pub(super) current: Option<Authority>,
    /// Who will sign next.
    pub(super) next: Option<Authority>,
    /// What is wrong with the Secret of both, if it is there.
    pub(super) keys_wrong: Option<String>,
    /// Who is trusted.
    pub(super) bundle: Vec<Trusted>,
    /// What is wrong with the bundle, if it is there: text that is no part of it.
    pub(super) bundle_wrong: Option<String>,
    /// The registry's certificate.
    pub(super) leaf: Option<Leaf>,
    /// What is wrong with its Secret, if it is there.
    pub(super) leaf_wrong: Option<String>,
}

/// An authority that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trusted {
    /// Its certificate, PEM.
    pub(super) certificate: String,
    /// SHA-256 of the certificate, hex.
    pub(super) digest: String,
    pub(super) ends: SystemTime,
    /// Since when it is in the bundle; `None` if nobody knows.
    pub(super) since: Option<SystemTime>,
    /// Until when it stays there, if it signs no more.
    pub(super) until: Option<SystemTime>,
}

/// A certificate that is served with.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) facts: Facts,
    /// Who signed it.
    pub(super) authority: Trusted,
}

/// The one next thing to do.
#[derive(Debug)]
pub(super) enum Step {
    /// Make an authority, and sign with it when it is trusted.
    Begin {
        /// Why there is none, if that is nobody's wish.
        wrong: Option<String>,
    },
    /// Make the authority that signs after this one.
    Prepare,
    /// The next authority signs from now on.
    Promote,
    /// Write the bundle.
    Publish {
        bundle: Vec<Trusted>,
        wrong: Option<String>,
    },
    /// Make the registry's certificate.
    Issue {
        why: &'static str,
        wrong: Option<String>,
    },
    /// Nothing, until then at the latest.
    Rest { until: SystemTime },
}

/// The one next thing to do at `now`.
pub(super) fn decide(seen: &Seen, names: &Names, overlap: Duration, now: SystemTime) -> Step {
    let is_alive = |authority: &&Authority| authority.facts().not_after > now;
    let next = seen.next.as_ref().filter(is_alive);
    let Some(current) = seen.current.as_ref().filter(is_alive) else {
        return match next {
            Some(_) => Step::Promote,
            None => Step::Begin {
                wrong: seen.keys_wrong.clone(),
            },
        };
    };
    let bundle = bundle(seen, current, next, overlap, now);
    if bundle != seen.bundle || seen.bundle_wrong.is_some() {
        return Step::Publish {
            bundle,
            wrong: seen.bundle_wrong.clone(),
        };
    }
    let settled = |authority: &Authority| {
        let trusted = bundle.iter().find(|t| is_of(t, authority));
        let since = trusted.and_then(|trusted| trusted.since).unwrap_or(now);
        since + overlap
    };
    let mut until = now + LIFE;
    match next {
        None if current.facts().renew_at() <= now => return Step::Prepare,
        None => until = until.min(current.facts().renew_at()),
        Some(next) if settled(next) <= now => return Step::Promote,
        Some(next) => until = until.min(settled(next)),
    }
    match due(seen, current, names, now) {
        Ok(at) => until = until.min(at),
        Err(why) if signer(seen, overlap, now).is_some() => {
            return Step::Issue {
                why,
                wrong: seen.leaf_wrong.clone(),
            };
        }
        Err(_) => until = until.min(settled(current)),
    }
    let ends = bundle
        .iter()
        .map(|trusted| trusted.until.unwrap_or(trusted.ends));
    Step::Rest {
        until: ends.fold(until, SystemTime::min),
    }
}

/// Who may sign now, so that everybody believes what is signed.
pub(super) fn signer(seen: &Seen, overlap: Duration, now: SystemTime) -> Option<&Authority> {
    let current = seen
        .current
        .as_ref()
        .filter(|a| a.facts().not_after > now)?;
    let trusted = seen.bundle.iter().find(|t| is_of(t, current))?;
    let settled = trusted.since.unwrap_or(now) + overlap;
    // Nobody who could believe another is there where this is alone.
    (seen.bundle.len() == 1 || settled <= now).then_some(current)
}

/// When the registry's certificate is to be made anew, or why now.
fn due(
    seen: &Seen,
    current: &Authority,
    names: &Names,
    now: SystemTime,
) -> Result<SystemTime, &'static str> {
    let Some(leaf) = &seen.leaf else {
        return Err("it is missing or cannot be used");
    };
    if leaf.facts.hosts != names.hosts || leaf.facts.addresses != names.addresses {
        return Err("it is for other names");
    }
    if !is_of(&leaf.authority, current) {
        return Err("another authority signs");
    }
    let at = leaf.facts.renew_at();
    if at <= now {
        return Err("two thirds of its time are over");
    }
    Ok(at)
}

fn is_of(trusted: &Trusted, authority: &Authority) -> bool {
    trusted.digest == Trusted::of(authority).digest
}

/// Who is to be trusted: who signs or will sign; whoever signed something that may still be shown.
/// Who is in the bundle without any of that, as by somebody's hand, is not.
fn bundle(
    seen: &Seen,
    current: &Authority,
    next: Option<&Authority>,
    overlap: Duration,
    now: SystemTime,
) -> Vec<Trusted> {
    let signs = |trusted: &Trusted| {
        is_of(trusted, current) || next.is_some_and(|next| is_of(trusted, next))
    };
    let shown = seen.leaf.as_ref().map(|leaf| &leaf.authority);
    let is_shown = |trusted: &Trusted| shown.is_some_and(|by| by.digest == trusted.digest);
    let mut bundle: Vec<Trusted> = Vec::new();
    for old in &seen.bundle {
        let mut trusted = old.clone();
        let is_known = trusted.since.is_some();
        trusted.since.get_or_insert(now);
        if signs(&trusted) {
            trusted.until = None;
        } else {
            let until = trusted.until.get_or_insert(now + LIFE);
            // What it signed is shown for a while after something else is.
            if is_shown(old) && *until < now + overlap {
                *until = now + LIFE;
            }
            let is_wanted = is_shown(old) || is_known && *until > now;
            if !is_wanted || old.ends <= now {
                continue;
            }
        }
        if bundle.iter().all(|other| other.digest != trusted.digest) {
            bundle.push(trusted);
        }
    }
    let missing = [
        Some(Trusted::of(current)),
        next.map(Trusted::of),
        shown.cloned(),
    ];
    for mut trusted in missing.into_iter().flatten() {
        if trusted.ends > now && bundle.iter().all(|other| other.digest != trusted.digest) {
            trusted.since = Some(now);
            trusted.until = (!signs(&trusted)).then_some(now + LIFE);
            bundle.push(trusted);
        }
    }
    bundle
}
