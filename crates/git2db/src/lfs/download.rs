//! Downloads.

use std::{collections::HashSet, io::Read, time::Instant};

use ureq::{
    Body,
    http::{Method, Response, header},
};

use super::{
    Client, LfsError, Pointer, Transfer,
    batch::{Action, ObjectResponse, Operation},
    client::{Answer, action_headers},
    http::{Call, Failure, Payload},
    retry::Retry,
    work::Work,
};
use crate::{
    Observer,
    pace::Meter,
    store::{Claim, ObjectStore, Part, StoreError},
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 128 << 10;

impl Client {
    /// Brings `objects` into `store`, verified by size and SHA-256.
    ///
    /// An object that is being brought by others is waited for. After an error the objects that
    /// came stay, and what came of others is continued by the next call. With
    /// [`shared_store`](super::Options::shared_store), success means that the server offers every
    /// one of them.
    pub fn download(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        let objects = unique(objects);
        let work = Work::new(&objects, observer);
        let mut missing = Vec::new();
        for object in &objects {
            match store.size(&object.oid).map_err(LfsError::Store)? {
                Some(size) if size == object.size => {
                    store.mark_used(&object.oid);
                    work.present(object);
                }
                _ => missing.push(object),
            }
        }
        let needed: u64 = missing
            .iter()
            .map(|o| o.size - store.part_len(o).min(o.size))
            .sum();
        store.ensure_space(needed).map_err(LfsError::Store)?;
        let asked = if self.options.shared_store {
            objects.iter().collect()
        } else {
            missing.clone()
        };
        let missing: HashSet<_> = missing.into_iter().map(|object| &object.oid).collect();
        for chunk in asked.chunks(self.options.batch_objects.max(1)) {
            let answers = self.batch(Operation::Download, chunk, None, observer)?;
            if self.options.shared_store {
                for object in chunk {
                    self.offer(object, answers.get(&object.oid))?;
                }
            }
            let missing: Vec<_> = chunk
                .iter()
                .copied()
                .filter(|object| missing.contains(&object.oid))
                .collect();
            work.each(&missing, self.options.parallel, &|object| {
                self.download_one(object, answers.get(&object.oid), store, &work)
            })?;
        }
        Ok(work.transfer())
    }

    fn download_one(
        &self,
        object: &Pointer,
        answer: Option<&Answer>,
        store: &ObjectStore,
        work: &Work<'_>,
    ) -> Result<(), LfsError> {
        let mut seen_mismatch = false;
        loop {
            let mut part = match store.claim(object, work).map_err(store_error)? {
                Claim::Present => {
                    work.present(object);
                    return Ok(());
                }
                Claim::Mine(part) => part,
            };
            work.add(part.len());
            let result = self.fill(object, answer, &mut part, work);
            let came = part.len();
            let result = result.and_then(|()| part.finish().map_err(LfsError::Store));
            match result {
                Ok(()) => {
                    work.finished();
                    return Ok(());
                }
                Err(LfsError::Store(StoreError::Mismatch { oid, detail })) => {
                    work.take_back(came);
                    if seen_mismatch {
                        return Err(LfsError::Mismatch { oid, detail });
                    }
                    // Once more from the beginning: a part may have gone bad on the disk.
                    tracing::warn!(%oid, detail, "an LFS object came with wrong bytes");
                    seen_mismatch = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The action by which the server offers the object.
    fn offer<'a>(
        &self,
        object: &Pointer,
        answer: Option<&'a Answer>,
    ) -> Result<(&'a Answer, &'a Action), LfsError> {
        match answer.map(|answer| (answer, answer.download())) {
            Some((answer, Some(action))) => Ok((answer, action)),
            Some((answer, None)) => Err(self.object_error(&object.oid, &answer.response)),
            None => Err(self.object_error(&object.oid, &ObjectResponse::default())),
        }
    }

    /// Fetches what is missing of the part.
    fn fill(
        &self,
        object: &Pointer,
        answer: Option<&Answer>,
        part: &mut Part,
        work: &Work<'_>,
    ) -> Result<(), LfsError> {
        let mut retry = Retry::new(&self.options, work);
        // One for all attempts: a server that breaks off after each byte is slow, too.
        let mut meter = Meter::new(self.options.pace);
        meter.flows();
        let mut fresh = None;
        let mut refreshed = false;
        while part.missing_bytes() > 0 {
            if work.is_cancelled() {
                return Err(LfsError::Cancelled);
            }
            let (answer, action) = self.offer(object, fresh.as_ref().or(answer))?;
            let outcome = if answer.is_fresh(action) || refreshed {
                let mut headers = action_headers(action);
                if part.len() > 0 {
                    let range = format!("bytes={}-{}", part.len(), object.size - 1);
                    headers.push(("Range".to_owned(), range));
                }
                let call = Call {
                    method: Method::GET,
                    url: &action.href,
                    headers,
                    body: Payload::None,
                };
                self.http.call(&call)
            } else {
                Err(Failure::Status {
                    status: 401,
                    retry_after: None,
                    message: String::new(),
                })
            };
            let before = part.len();
            let received = outcome
                .map_err(Some)
                .and_then(|r| receive(r, part, &mut meter, work));
            let failure = match received {
                Ok(()) => continue,
                Err(Some(failure)) => failure,
                Err(None) => return Err(LfsError::Cancelled),
            };
            if part.len() > before {
                retry.reset();
                refreshed = false;
            }
            match failure {
                Failure::Status {
                    status: 401 | 403, ..
                } if !refreshed => {
                    // The action has expired: ask for another.
                    refreshed = true;
                    fresh = self
                        .batch(Operation::Download, &[object], None, work)?
                        .remove(&object.oid);
                }
                Failure::Status {
                    status: status @ (404 | 410),
                    ..
                } => {
                    let detail = format!("HTTP {status}");
                    return Err(LfsError::MissingObject {
                        oid: object.oid.clone(),
                        detail,
                    });
                }
                Failure::Status { status: 416, .. } if before > 0 => {
                    work.take_back(before);
                    part.restart().map_err(LfsError::Store)?;
                }
                Failure::Store(error) => return Err(store_error(error)),
                failure => {
                    let begin = Instant::now();
                    retry.after(failure, &action.href)?;
                    meter
                        .waited(begin.elapsed(), 0)
                        .map_err(|slow| Failure::TooSlow(slow).into_error(&action.href))?;
                }
            }
        }
        Ok(())
    }
}

/// Takes an answer's bytes into the part. `Err(None)`: cancelled.
fn receive(
    response: Response<Body>,
    part: &mut Part,
    meter: &mut Meter,
    work: &Work<'_>,
) -> Result<(), Option<Failure>> {
    let broken = |detail: &str| {
        Some(Failure::Broken {
            detail: detail.to_owned(),
            may_pass: true,
        })
    };
    let store = |error| Some(Failure::Store(error));
    let restart = |part: &mut Part| {
        work.take_back(part.len());
        part.restart().map_err(store)
    };
    let expected = part.missing_bytes();
    match response.status().as_u16() {
        206 if continues(&response, part) => {}
        206 => {
            restart(part)?;
            return Err(broken("it sent another range than was asked for"));
        }
        // All of it, from the beginning.
        _ if part.len() > 0 => restart(part)?,
        _ => {}
    }
    let mut body = response
        .into_body()
        .into_with_config()
        .limit(u64::MAX)
        .reader();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        if work.is_cancelled() {
            return Err(None);
        }
        let begin = Instant::now();
        match body.read(&mut buffer) {
            Ok(0) if part.missing_bytes() == 0 => return Ok(()),
            Ok(0) => {
                return Err(broken(&format!("it sent fewer than {expected} bytes")));
            }
            Ok(read) => {
                // Writing it is our own time.
                let waited = begin.elapsed();
                part.append(&buffer[..read]).map_err(store)?;
                work.moved(read as u64);
                if part.missing_bytes() > 0 {
                    meter
                        .waited(waited, read as u64)
                        .map_err(|slow| Some(Failure::TooSlow(slow)))?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(&error.to_string())),
        }
    }
}

/// Whether a 206 begins where the part ends.
fn continues(response: &Response<Body>, part: &Part) -> bool {
    let size = part.len() + part.missing_bytes();
    response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("bytes "))
        .and_then(|value| value.split_once('/'))
        .and_then(|(range, total)| Some((range.split_once('-')?.0, total)))
        .is_some_and(|(first, total)| {
            first.parse() == Ok(part.len()) && (total == "*" || total.parse() == Ok(size))
        })
}

/// Each object once.
pub(super) fn unique(objects: &[Pointer]) -> Vec<Pointer> {
    let mut seen = std::collections::HashSet::new();
    objects
        .iter()
        .filter(|object| seen.insert(*object))
        .cloned()
        .collect()
}

fn store_error(error: StoreError) -> LfsError {
    match error {
        StoreError::Cancelled { .. } => LfsError::Cancelled,
        other => LfsError::Store(other),
    }
}
