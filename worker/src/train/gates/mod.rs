//! What a finished adapter shows before it is published.
//!
//! All figures are the serving engine's, with the adapter's files as they were written: what is
//! judged is what will answer. The trainer computes one of them too, of which the first verdict is
//! the difference: [`parity`].

mod answers;
mod losses;
mod parity;
mod records;
mod schema;
mod served;
mod spec;
#[cfg(test)]
mod tests;
mod verdict;

use std::path::Path;

use hyprstream_contract::training::{Baseline, Gate, Metric, Verdict};
use hyprstream_models::adapter::AdapterFiles;
use hyprstream_training::{Control, Job, Learner, Prepared};

use self::{
    served::{Served, With},
    verdict::{Compared, Figure, not_measured, verdict},
};
use super::TrainArgs;

pub(crate) use spec::gates_of;

/// What is judged, and with what.
pub(crate) struct Judging<'a> {
    /// The job.
    pub(crate) job: &'a Job,
    /// Its model and data.
    pub(crate) prepared: &'a Prepared,
    /// What the adapter must show, beside serving parity.
    pub(crate) gates: &'a [Gate],
    /// The adapter's name, by which the last known good is found in the model's folder.
    pub(crate) name: &'a str,
    /// The folder of the last known good if it lies elsewhere, or why it cannot be had.
    pub(crate) good: Result<Option<&'a Path>, &'a str>,
    /// What trained it. It is dropped before the engine is opened, so that the weights are never in
    /// memory twice.
    pub(crate) learner: Box<dyn Learner>,
    /// The adapter's numbers, as the learner takes them.
    pub(crate) values: &'a [f32],
    /// The folder with PEFT's pair, as it was written.
    pub(crate) adapter: &'a Path,
    /// Threads and kernels that compute.
    pub(crate) args: &'a TrainArgs,
    /// Ends it from another thread.
    pub(crate) control: &'a Control,
    /// Is told how far it is, for people.
    pub(crate) tell: &'a dyn Fn(&str),
}

/// Nothing was found: the control ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("judging was ended before all was measured")]
pub(crate) struct Cancelled;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
enum Halt {
    /// The control ended it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Why it cannot be measured, and what to do.
    #[error("{0}")]
    Failed(String),
}

/// What was found: serving parity first, then the gates in their order. What cannot be measured is
/// not passed, and says why.
///
/// # Errors
/// [`Cancelled`].
pub(crate) fn judge(judging: Judging<'_>) -> Result<Vec<Verdict>, Cancelled> {
    let Judging {
        job,
        prepared,
        gates,
        name,
        good,
        learner,
        values,
        adapter,
        args,
        control,
        tell,
    } = judging;
    let scored = parity::trained(prepared, learner, values, control, tell);
    let scored = settled(scored)?;
    if control.is_ended() {
        return Err(Cancelled);
    }
    tell("opening the model as it is served");
    let served = Served::open(job, args, adapter, control);
    let served = match served {
        Ok(served) => served,
        Err(why) => {
            let parity = not_measured(Metric::ServingParity, &why);
            let others = gates.iter().map(|gate| not_measured(gate.metric, &why));
            return Ok(std::iter::once(parity).chain(others).collect());
        }
    };
    let parity = scored
        .map_err(Halt::Failed)
        .and_then(|scored| parity::verdict(&served, &scored, tell));
    let mut verdicts = vec![match settled(parity)? {
        Ok(verdict) => verdict,
        Err(why) => not_measured(Metric::ServingParity, &why),
    }];
    let bench = Bench {
        job,
        prepared,
        name,
        good,
        served: &served,
        control,
        tell,
    };
    for gate in gates {
        verdicts.push(match settled(bench.measured(gate))? {
            Ok((figure, compared)) => verdict(gate, &figure, compared.as_ref()),
            Err(why) => not_measured(gate.metric, &why),
        });
    }
    Ok(verdicts)
}

/// What measures the figures of gates.
struct Bench<'a> {
    job: &'a Job,
    prepared: &'a Prepared,
    name: &'a str,
    good: Result<Option<&'a Path>, &'a str>,
    served: &'a Served<'a>,
    control: &'a Control,
    tell: &'a dyn Fn(&str),
}

impl Bench<'_> {
    /// The figure of a gate, and that of its baseline.
    fn measured(&self, gate: &Gate) -> Result<(Figure, Option<Compared>), Halt> {
        if gate.metric == Metric::ServingParity {
            let why = "it is always measured, and is no gate: remove it from the gates";
            return Err(Halt::Failed(why.to_owned()));
        }
        let measure = |with: &With, whose: &str| match gate.metric {
            Metric::EvalLoss | Metric::Perplexity => losses::figure(self, gate, with, whose),
            _ => answers::figure(self, gate, with, whose),
        };
        let figure = measure(&self.served.adapted(), "the adapter")?;
        let compared = match gate.baseline {
            Baseline::Value => None,
            Baseline::Base => Some(Compared {
                figure: measure(&With::base(), "the base")?.value,
                whose: "the base's",
                note: None,
            }),
            Baseline::LastKnownGood => Some(match self.last_known_good()? {
                Some(with) => Compared {
                    figure: measure(&with, "the last known good adapter")?.value,
                    whose: "the last known good's",
                    note: None,
                },
                None => Compared {
                    figure: measure(&With::base(), "the base")?.value,
                    whose: "the base's",
                    note: Some(format!(
                        "the model has no adapter {} yet, so that its base is the baseline",
                        self.name
                    )),
                },
            }),
        };
        Ok((figure, compared))
    }

    fn last_known_good(&self) -> Result<Option<With>, Halt> {
        let failed = |error: &dyn std::error::Error| Halt::Failed(super::anyhow_chain(error));
        if let Some(folder) = self.good.map_err(|why| Halt::Failed(why.to_owned()))? {
            let files = AdapterFiles::find(folder).map_err(|error| failed(&error))?;
            return Ok(Some(self.served.attach(&files).map_err(Halt::Failed)?));
        }
        let listed = AdapterFiles::list(&self.job.model).map_err(|error| failed(&error))?;
        let Some(found) = listed.into_iter().find(|listed| listed.name == self.name) else {
            return Ok(None);
        };
        let files = found.files.map_err(|error| failed(&error))?;
        let with = self.served.attach(&files).map_err(Halt::Failed)?;
        Ok(Some(with))
    }
}

/// What cannot be measured in words, apart from what was cancelled.
fn settled<T>(found: Result<T, Halt>) -> Result<Result<T, String>, Cancelled> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(Halt::Failed(why)) => Ok(Err(why)),
        Err(Halt::Cancelled(cancelled)) => Err(cancelled),
    }
}
