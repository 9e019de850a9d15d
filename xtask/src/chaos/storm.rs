//! Kills at random under streams, and whose requests that cost.
//!
//! A request may be lost with the gateway or the worker that held it, and with nothing else. So a
//! failure is laid at the door of a kill of one of these that fell into the request's life; if there
//! is none, it should not have happened. Nor may those that are laid at the kills of a part be more
//! than one of its instances held at a time: what the others held was not killed.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{ask, chart, cluster::Cluster, proc, ui::say};

/// How hard it blows.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StormArgs {
    /// The Model that is asked, as clients name it: NAME or NAMESPACE/NAME.
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// For how many seconds something is killed.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds from one kill to the next.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    every: u64,
    /// Clients that ask, each one question after the other.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=64))]
    clients: u64,
    /// What may be killed.
    #[arg(long, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Repeats the choices of an earlier storm.
    #[arg(long)]
    seed: Option<u64>,
}

/// A part of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Part {
    Operator,
    Registry,
    Csi,
    Gateway,
    Worker,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Operator,
        Self::Registry,
        Self::Csi,
        Self::Gateway,
        Self::Worker,
    ];

    fn program(self) -> String {
        format!("hyprstream-{self}")
    }

    /// Whether requests go through it.
    fn holds_requests(self) -> bool {
        matches!(self, Self::Gateway | Self::Worker)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "operator",
            Self::Registry => "registry",
            Self::Csi => "csi",
            Self::Gateway => "gateway",
            Self::Worker => "worker",
        })
    }
}

/// Most questions of one client.
const MAX_QUESTIONS: usize = 20_000;
/// How long the system may take to answer again.
const RECOVERY: Duration = Duration::from_mins(2);
/// After this time whoever sends requests knows that an instance is ready.
const SETTLED: Duration = Duration::from_secs(2);
/// How long the ingress may go on sending requests to a gateway that is dead, over connections that
/// it holds open: until it has read their end. It says so in its answer.
const UNNOTICED: Duration = Duration::from_secs(1);
/// What the ingress says then.
const CUT_OFF: &str = "reset reason: connection termination";

/// A process that was killed.
#[derive(Clone, Copy, Debug)]
struct Kill {
    part: Part,
    at: Instant,
    /// How many its part had, each with its share of the requests.
    instances: u64,
}

/// A request that got no whole answer.
#[derive(Clone, Debug)]
struct Failure {
    started: Instant,
    ended: Instant,
    cause: String,
}

/// Kills one process after the other while clients ask, prints what failed and why, and fails if
/// a request was lost that nothing that was killed held, or more than the killed can have held.
pub(crate) fn run(cluster: &Cluster, args: &StormArgs) -> Result<()> {
    let port = cluster
        .spec()
        .context("the cluster is not running")?
        .ingress_port;
    let question = |show: &mut dyn FnMut(&str)| ask::ask(port, &args.model, "Go on.", show);
    question(&mut |_| ()).context("the storm needs a model that answers")?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    say(format_args!("storm with --seed {seed}"));
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    let kills = std::thread::scope(|scope| {
        for _ in 0..args.clients {
            scope.spawn(|| {
                for _ in 0..MAX_QUESTIONS {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let started = Instant::now();
                    match question(&mut |_| ()) {
                        Ok(_) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            let failure = Failure {
                                started,
                                ended: Instant::now(),
                                cause: cause(&format!("{error:#}")),
                            };
                            if let Ok(mut failures) = failures.lock() {
                                failures.push(failure);
                            }
                            // As a client does: a refusal is no reason to ask a thousand times.
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                }
            });
        }
        let kills = kill_for_a_while(cluster, args, seed);
        stop.store(true, Ordering::Relaxed);
        kills
    })?;
    let failures = failures.into_inner().unwrap_or_default();
    let report = Report::of(&kills, &failures, args.clients);
    say(format_args!(
        "{} s, {} kills ({}), {} whole answers, {} failed",
        args.seconds,
        kills.len(),
        report.kills(),
        answers.into_inner(),
        failures.len()
    ));
    for ((part, cause), count) in &report.lost {
        say(format_args!(
            "  {count:>4} held by a killed {part}: {cause}"
        ));
    }
    for (cause, count) in &report.unexplained {
        say(format_args!(
            "  {count:>4} held by nothing that was killed: {cause}"
        ));
    }
    let since = Instant::now();
    while let Err(error) = question(&mut |_| ()) {
        if since.elapsed() > RECOVERY {
            return Err(error.context("after the storm the model does not answer any more"));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let unexplained: usize = report.unexplained.values().sum();
    if unexplained > 0 {
        bail!("{unexplained} requests were lost that nothing that was killed held");
    }
    if let Some((part, lost, most)) = report.beyond() {
        bail!(
            "{lost} requests were lost at the kills of a {part}, and the killed held {most} at most"
        );
    }
    Ok(())
}

/// Kills until the time is over.
fn kill_for_a_while(cluster: &Cluster, args: &StormArgs, seed: u64) -> Result<Vec<Kill>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kills = Vec::new();
    let (started, length) = (Instant::now(), Duration::from_secs(args.seconds));
    let every = Duration::from_secs(args.every);
    for turn in 1.. {
        let next = every.saturating_mul(turn);
        if next >= length {
            break;
        }
        std::thread::sleep(next.saturating_sub(started.elapsed()));
        let mut parts = args.parts.clone();
        random.shuffle(&mut parts);
        for part in parts {
            // With its only or last instance a part takes everybody's requests along, which says
            // nothing: the others are to carry on.
            let mut instances = 1;
            if part.holds_requests() {
                let Some(settled) = all_settled(cluster, part, &args.model)? else {
                    continue;
                };
                instances = settled;
            }
            if cluster.kill_one(&part.program(), |count| random.usize(..count))? {
                kills.push(Kill {
                    part,
                    at: Instant::now(),
                    instances,
                });
                break;
            }
        }
    }
    // What the last kill cost is to be seen too.
    std::thread::sleep(length.saturating_sub(started.elapsed()) + every);
    Ok(kills)
}

/// How many instances a part has, if all are ready, and have been for so long that those who send
/// them requests know: the ingress hears of one that came back a moment after the Deployment says so,
/// and would have none left if the other were killed in that moment.
fn all_settled(cluster: &Cluster, part: Part, model: &str) -> Result<Option<u64>> {
    if all_ready(cluster, part, model)?.is_none() {
        return Ok(None);
    }
    std::thread::sleep(SETTLED);
    all_ready(cluster, part, model)
}

/// How many instances a part has, if they are two or more and all of them ready.
fn all_ready(cluster: &Cluster, part: Part, model: &str) -> Result<Option<u64>> {
    let (namespace, name) = match (part, model.split_once('/')) {
        (Part::Worker, Some((namespace, name))) => (namespace, name),
        (Part::Worker, None) => ("default", model),
        _ => (chart::NAMESPACE, "hyprstream-gateway"),
    };
    let text = proc::output(cluster.kubectl().args([
        "--namespace",
        namespace,
        "get",
        "deployment",
        name,
        "--output=json",
    ]))?;
    let deployment: Value = serde_json::from_str(&text).context("kubectl gave no JSON")?;
    let count = |place: &str| deployment.pointer(place).and_then(Value::as_u64);
    let (wanted, ready) = (count("/spec/replicas"), count("/status/readyReplicas"));
    Ok(wanted.filter(|wanted| *wanted >= 2 && Some(*wanted) == ready))
}

/// What failed, without what differs from one request to the next.
fn cause(error: &str) -> String {
    let end = error.find([':', '"', '{']).unwrap_or(error.len());
    let text = error[..end].trim_end_matches(" after ").trim();
    // The ingress says in plain words what it had trouble with, and the gateway in JSON.
    let said = match error.split_once("\"message\":\"") {
        Some((_, message)) => message.split('"').next(),
        None if error[end..].contains(['{', '"']) => None,
        None => Some(error[end..].trim_start_matches([':', ' '])),
    };
    let said = said.filter(|said| !said.is_empty());
    let text = said.map_or_else(|| text.to_owned(), |said| format!("{text}: {said}"));
    text.chars().take(240).collect()
}

/// Failures by what they are laid at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    killed: BTreeMap<Part, usize>,
    lost: BTreeMap<(Part, String), usize>,
    unexplained: BTreeMap<String, usize>,
    /// How many requests the killed instances of a part held together, at most.
    held: BTreeMap<Part, usize>,
}

impl Report {
    fn of(kills: &[Kill], failures: &[Failure], clients: u64) -> Self {
        let mut report = Self::default();
        for kill in kills {
            *report.killed.entry(kill.part).or_default() += 1;
        }
        for part in Part::ALL.into_iter().filter(|part| part.holds_requests()) {
            let killed = kills.iter().filter(|kill| kill.part == part);
            report.held.insert(part, most_held(killed, clients));
        }
        for Failure {
            started,
            ended,
            cause,
        } in failures
        {
            let during = |kill: &&Kill| {
                // The clock is read after the kill.
                let at = kill.at;
                let unnoticed = if kill.part == Part::Gateway && cause.contains(CUT_OFF) {
                    UNNOTICED
                } else {
                    Duration::ZERO
                };
                kill.part.holds_requests()
                    && *started <= at + unnoticed
                    && at <= *ended + Duration::from_secs(1)
            };
            // Of several the last: whoever lived through the ones before was not held by them.
            match kills.iter().rev().find(during) {
                Some(kill) => {
                    *report.lost.entry((kill.part, cause.clone())).or_default() += 1;
                }
                None => *report.unexplained.entry(cause.clone()).or_default() += 1,
            }
        }
        report
    }

    /// The first part at whose kills more was lost than they held, with both numbers.
    fn beyond(&self) -> Option<(Part, usize, usize)> {
        self.held.iter().find_map(|(part, most)| {
            let lost = self.lost.iter().filter(|((of, _), _)| of == part);
            let lost = lost.map(|(_, count)| count).sum();
            (lost > *most).then_some((*part, lost, *most))
        })
    }

    fn kills(&self) -> String {
        let each = self
            .killed
            .iter()
            .map(|(part, count)| format!("{part} {count}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// How many of the requests of `clients`, one each at a time, the killed held together at most.
///
/// Each request is with one of the instances of the moment. Where chance chooses, that is a binomial
/// distribution for each kill; what is above its mean by three standard deviations of the sum comes
/// about once in a thousand storms, and balancing by load stays far below.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small counts"
)]
fn most_held<'a>(kills: impl Iterator<Item = &'a Kill>, clients: u64) -> usize {
    let (mut mean, mut variance) = (0.0, 0.0);
    for kill in kills {
        let share = 1.0 / kill.instances.max(1) as f64;
        mean += clients as f64 * share;
        variance += clients as f64 * share * (1.0 - share);
    }
    (mean + 3.0 * f64::sqrt(variance)).floor() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_explains_no_more_than_the_killed_held() {
        let start = Instant::now();
        let kills: Vec<_> = (0..3)
            .map(|turn| Kill {
                part: Part::Worker,
                at: start + Duration::from_secs(10 * turn),
                instances: 2,
            })
            .collect();
        let lost = |each: u64| {
            let at = |kill: &Kill| Failure {
                started: kill.at,
                ended: kill.at,
                cause: "cut".to_owned(),
            };
            let failures: Vec<_> = kills
                .iter()
                .flat_map(|kill| std::iter::repeat_n(at(kill), usize::try_from(each).unwrap()))
                .collect();
            Report::of(&kills, &failures, 6).beyond()
        };
        assert_eq!(lost(3), None, "an even share");
        assert_eq!(lost(4), None, "by chance");
        assert_eq!(lost(6), Some((Part::Worker, 18, 15)), "everything, always");
        assert_eq!(Report::of(&kills, &[], 6).beyond(), None);
    }

    #[test]
    fn a_failure_is_laid_at_the_last_kill_of_its_life() {
        let start = Instant::now();
        let second = |s: u64| start + Duration::from_secs(s);
        let kills = [(Part::Gateway, 10), (Part::Worker, 14)].map(|(part, at)| Kill {
            part,
            at: second(at),
            instances: 2,
        });
        let failure = Failure {
            started: second(9),
            ended: second(14),
            cause: "cut".to_owned(),
        };
        let report = Report::of(&kills, &[failure], 4);
        assert_eq!(report.lost[&(Part::Worker, "cut".to_owned())], 1);
    }

    #[test]
    fn only_what_a_killed_holder_held_is_explained() {
        let start = Instant::now();
        let second = |s: u64| start + Duration::from_secs(s);
        let kills = [
            (Part::Registry, 10),
            (Part::Gateway, 20),
            (Part::Worker, 30),
        ];
        let kills = kills.map(|(part, at)| Kill {
            part,
            at: second(at),
            instances: 2,
        });
        let failure = |from, to| Failure {
            started: second(from),
            ended: second(to),
            cause: "cut".to_owned(),
        };
        let report = Report::of(
            &kills,
            &[
                // While the registry died, which holds no request.
                failure(9, 12),
                failure(19, 20),
                failure(15, 25),
                // Begun when the gateway was dead already.
                failure(21, 24),
                failure(29, 31),
                failure(26, 27),
            ],
            4,
        );
        let sent_to_the_dead = |from, to| Failure {
            cause: format!("503: {CUT_OFF}"),
            ..failure(from, to)
        };
        let late = [sent_to_the_dead(21, 21), sent_to_the_dead(31, 31)];
        let late = Report::of(&kills, &late, 4);
        assert_eq!(
            late.lost.keys().next().map(|(part, _)| *part),
            Some(Part::Gateway)
        );
        assert_eq!(late.unexplained.values().sum::<usize>(), 1);
        let cut = || "cut".to_owned();
        assert_eq!(report.lost[&(Part::Gateway, cut())], 2);
        assert_eq!(report.lost[&(Part::Worker, cut())], 1);
        assert_eq!(report.unexplained[&cut()], 3);
        assert_eq!(report.kills(), "registry 1, gateway 1, worker 1");
    }

    #[test]
    fn causes_are_the_same_whatever_the_request_was() {
        for (error, expected) in [
            (
                "the endpoint answered 503: {\"error\":1}",
                "the endpoint answered 503",
            ),
            (
                "the endpoint answered 503: {\"error\":{\"message\":\"no worker\",\"code\":1}}",
                "the endpoint answered 503: no worker",
            ),
            (
                "the endpoint answered 503: upstream connect error",
                "the endpoint answered 503: upstream connect error",
            ),
            (
                "the answer broke off after \"Paris is\"",
                "the answer broke off",
            ),
            (
                "the answer ended with an error: {}",
                "the answer ended with an error",
            ),
            (
                "Connection reset by peer (os error 104)",
                "Connection reset by peer (os error 104)",
            ),
        ] {
            assert_eq!(cause(error), expected);
        }
    }
}
