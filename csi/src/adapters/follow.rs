//! Waiting at the registry for the next list.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use hyprstream_contract::adapters::{ChangesRequest, ModelName};
use tokio::task::AbortHandle;

use super::{Adapters, Followed, Said, Unsaid};
use crate::fetch::Key;

/// First pause after a call that failed; it doubles.
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// An answer that says nothing new after less than this is no wait.
const NO_WAIT: Duration = Duration::from_secs(1);

/// Where nobody is let in, it is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// A Model that is asked for, and by which key.
type Asked = (Arc<Followed>, Key);

/// The task of a Model, which ends when this is dropped.
struct Task {
    followed: Arc<Followed>,
    task: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Adapters {
    /// Follows Models for ever: those that volumes and leases name at the time.
    pub async fn follow(self: Arc<Self>) {
        let mut tasks: HashMap<ModelName, Task> = HashMap::new();
        let (mut futile, mut down) = (0, false);
        loop {
            let followed = self.followed.state.lock().followed.clone();
            tasks.retain(|model, task| {
                let now = followed.get(model);
                now.is_some_and(|now| Arc::ptr_eq(now, &task.followed))
            });
            for (model, followed) in &followed {
                tasks.entry(model.clone()).or_insert_with(|| {
                    let settle = Arc::clone(&self).settle(Arc::clone(followed));
                    Task {
                        followed: Arc::clone(followed),
                        task: tokio::spawn(settle).abort_handle(),
                    }
                });
            }
            self.count();
            if followed.is_empty() {
                self.followed.woken.notified().await;
                continue;
            }
            let asked = asked(&followed);
            if asked.is_empty() {
                // Nobody is let in. A volume may bring another word, or a grant be put right.
                tokio::select! {
                    () = tokio::time::sleep(TRY_AGAIN) => {
                        for followed in followed.values() {
                            followed.access.try_again();
                        }
                    }
                    () = self.followed.woken.notified() => {}
                }
                continue;
            }
            let request = request(&asked);
            let begun = Instant::now();
            let answer = tokio::select! {
                answer = self.lists.changes(request) => answer,
                // Others are followed now.
                () = self.followed.woken.notified() => continue,
            };
            match answer {
                Ok(said) => {
                    if down {
                        tracing::info!("the registry says lists of adapters again");
                        self.tell_news();
                        down = false;
                    }
                    judge(&asked, &said);
                    let asked = asked.into_iter();
                    let asked = asked
                        .map(|(model, (followed, _))| (model, followed))
                        .collect();
                    if take(&asked, said) || begun.elapsed() >= NO_WAIT {
                        futile = 0;
                        continue;
                    }
                }
                Err(why) => {
                    if !down {
                        tracing::warn!(why, "the registry does not say lists of adapters");
                    }
                    down = true;
                    for followed in followed.values().filter(|f| f.known().is_empty()) {
                        followed.unsaid(&why);
                    }
                }
            }
            let pause = MIN_PAUSE * 2_u32.pow(futile);
            futile = (futile + 1).min(10);
            tokio::select! {
                () = tokio::time::sleep(pause.min(MAX_PAUSE)) => {}
                () = self.followed.woken.notified() => {}
            }
        }
    }
}

/// Those that are asked for, with the key by which they are.
fn asked(followed: &BTreeMap<ModelName, Arc<Followed>>) -> BTreeMap<ModelName, Asked> {
    let with_key = |(model, followed): (&ModelName, &Arc<Followed>)| {
        let key = followed.access.key()?;
        Some((model.clone(), (Arc::clone(followed), key)))
    };
    followed.iter().filter_map(with_key).collect()
}

fn request(asked: &BTreeMap<ModelName, Asked>) -> ChangesRequest {
    let mut request = ChangesRequest::default();
    for (model, (followed, key)) in asked {
        request.known.insert(model.clone(), followed.known());
        if let Key::Word(word) = key {
            let word = word.expose().to_owned();
            request.words.insert(model.clone(), word);
        }
    }
    request
}

/// Notes which keys opened what was asked for.
fn judge(asked: &BTreeMap<ModelName, Asked>, said: &Said) {
    for (model, (followed, key)) in asked {
        if matches!(said.get(model), Some(Err(Unsaid::Refused))) {
            if !followed.access.is_refused() {
                tracing::warn!(%model, "the registry refuses the key to the list of adapters");
            }
            followed.access.refused(key);
        } else {
            followed.access.accepted(key);
        }
    }
}

/// Passes on what was said. Returns whether any of it is of use.
fn take(followed: &BTreeMap<ModelName, Arc<Followed>>, mut said: Said) -> bool {
    let mut something = false;
    for (model, followed) in followed {
        match said.remove(model) {
            Some(Ok(list)) => {
                followed.adopt(list);
                something = true;
            }
            // Which is told once, where it is noted.
            Some(Err(Unsaid::Refused)) => followed.unsaid(&Unsaid::Refused.to_string()),
            Some(Err(why)) => {
                let why = why.to_string();
                tracing::error!(%model, why, "list of adapters");
                followed.unsaid(&why);
            }
            // Whoever knows nothing is told something, if it can be read.
            None if followed.known().is_empty() => {
                followed
                    .unsaid("the registry cannot read its list; the operator's next one mends it");
            }
            None => {}
        }
    }
    something
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyprstream_contract::adapters::AdapterList;

    #[test]
    fn a_model_of_which_nothing_is_said_is_one_whose_list_cannot_be_read() {
        let model: ModelName = "a/m".parse().unwrap();
        let followed = Arc::new(Followed::new(&model));
        let all = BTreeMap::from([(model.clone(), Arc::clone(&followed))]);
        assert!(!take(&all, Said::new()));
        let why = followed.progress.borrow().why();
        assert!(why.contains("cannot read its list"), "{why}");
        // Somebody else's list is none of ours.
        assert!(!take(
            &all,
            Said::from([("a/n".parse().unwrap(), Ok(AdapterList::default()))])
        ));
        assert!(take(
            &all,
            Said::from([(model.clone(), Ok(AdapterList::default()))])
        ));
        assert_eq!(followed.known(), AdapterList::default().revision());
        assert!(!take(&all, Said::new()));
        assert!(followed.progress.borrow().unsaid.is_none());
        assert!(!take(
            &all,
            Said::from([(model, Err(Unsaid::Wrong("bad".into())))])
        ));
        assert_eq!(followed.known(), AdapterList::default().revision());
    }
}
