//! Uploads.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    time::Instant,
};

use ureq::{
    Body,
    http::{Method, Response},
};

use super::{
    Client, LfsError, Pointer, Transfer,
    batch::{Action, Actions, BatchObject, CONTENT_TYPE, ObjectResponse, Operation},
    client::{Answer, action_headers},
    download::unique,
    http::{Call, Failure, Payload},
    retry::Retry,
    work::Work,
};
use crate::{Observer, pace::Meter, store::ObjectStore};

impl Client {
    /// Brings `objects` from `store` to the server, which is told the full name of the ref they
    /// belong to. Those that it has are not sent. One that is neither there nor in `store` is a
    /// `NotInStore`.
    ///
    /// Where the server speaks tus, as our registry does, an object that broke off goes on where
    /// it did, in this call as in a later one of another process. Elsewhere it is sent anew.
    pub fn upload(
        &self,
        objects: &[Pointer],
        store: &ObjectStore,
        reference: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Transfer, LfsError> {
        let objects = unique(objects);
        let work = Work::new(&objects, observer);
        let all: Vec<&Pointer> = objects.iter().collect();
        for chunk in all.chunks(self.options.batch_objects.max(1)) {
            let answers = self.batch(Operation::Upload, chunk, reference, observer)?;
            work.each(chunk, self.options.parallel, &|object| {
                self.upload_one(object, answers.get(&object.oid), store, reference, &work)
            })?;
        }
        Ok(work.transfer())
    }

    fn upload_one(
        &self,
        object: &Pointer,
        answer: Option<&Answer>,
        store: &ObjectStore,
        reference: Option<&str>,
        work: &Work<'_>,
    ) -> Result<(), LfsError> {
        let mut retry = Retry::new(&self.options, work);
        let meter = RefCell::new(Meter::new(self.options.pace));
        meter.borrow_mut().flows();
        let mut fresh = None;
        let mut refreshed = false;
        let reached = Cell::new(0);
        loop {
            let Some(answer) = fresh.as_ref().or(answer) else {
                return Err(self.object_error(&object.oid, &ObjectResponse::default()));
            };
            if answer.response.error.is_some() {
                return Err(self.object_error(&object.oid, &answer.response));
            }
            let Some(Actions {
                upload: Some(upload),
                verify,
                ..
            }) = &answer.response.actions
            else {
                work.present(object);
                return Ok(());
            };
            if store.size(&object.oid).map_err(LfsError::Store)? != Some(object.size) {
                return Err(LfsError::NotInStore {
                    oid: object.oid.clone(),
                });
            }
            let sent = if answer.is_fresh(upload) || refreshed {
                let before = reached.get();
                let sent = if answer.resumes {
                    self.put_rest(object, upload, store, &meter, (work, &reached))
                } else {
                    self.put(object, upload, store, &meter, work)
                };
                if reached.get() > before {
                    // The attempt before got on.
                    retry.reset();
                }
                sent.and_then(|()| verify.as_ref().map_or(Ok(()), |v| self.verify(object, v)))
            } else {
                Err(Failure::Status {
                    status: 401,
                    retry_after: None,
                    message: String::new(),
                })
            };
            match sent {
                Ok(()) => {
                    work.add(reached.get());
                    work.moved(object.size - reached.get());
                    work.finished();
                    return Ok(());
                }
                Err(_) if work.is_cancelled() => return Err(LfsError::Cancelled),
                Err(_) if meter.borrow().verdict().is_some() => {
                    let slow = meter.borrow().verdict();
                    let failure = slow.map_or(
                        Failure::Broken {
                            detail: String::new(),
                            may_pass: false,
                        },
                        Failure::TooSlow,
                    );
                    return Err(failure.into_error(&upload.href));
                }
                Err(Failure::Status {
                    status: 401 | 403, ..
                }) if !refreshed => {
                    refreshed = true;
                    fresh = self
                        .batch(Operation::Upload, &[object], reference, work)?
                        .remove(&object.oid);
                }
                Err(Failure::Payload(source)) => {
                    return Err(LfsError::Read {
                        oid: object.oid.clone(),
                        source,
                    });
                }
                Err(failure) => retry.after(failure, &upload.href)?,
            }
        }
    }

    fn put(
        &self,
        object: &Pointer,
        action: &Action,
        store: &ObjectStore,
        meter: &RefCell<Meter>,
        work: &Work<'_>,
    ) -> Result<(), Failure> {
        let mut headers = action_headers(action);
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        {
            headers.push((
                "Content-Type".to_owned(),
                "application/octet-stream".to_owned(),
            ));
        }
        let chunked = action.header.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked")
        });
        let path = store.path(&object.oid);
        let open = || -> io::Result<Box<dyn Read + '_>> {
            Ok(Box::new(Stoppable {
                file: File::open(&path)?,
                work,
                meter,
                last: None,
            }))
        };
        let body = Payload::File {
            open: &open,
            size: object.size,
            chunked,
        };
        let call = Call {
            method: Method::PUT,
            url: &action.href,
            headers,
            body,
        };
        read_to_end(self.http.call(&call)?, work)
    }

    /// Sends what the server does not have yet, from an offset that it names and that is left in
    /// `reached`.
    fn put_rest(
        &self,
        object: &Pointer,
        action: &Action,
        store: &ObjectStore,
        meter: &RefCell<Meter>,
        (work, reached): (&Work<'_>, &Cell<u64>),
    ) -> Result<(), Failure> {
        let mut headers = action_headers(action);
        headers.push(("Tus-Resumable".to_owned(), "1.0.0".to_owned()));
        let answer = self.http.call(&Call {
            method: Method::HEAD,
            url: &action.href,
            headers: headers.clone(),
            body: Payload::None,
        })?;
        let offset = answer.headers().get("upload-offset");
        let offset = offset
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .filter(|offset| *offset <= object.size)
            .ok_or_else(|| Failure::Broken {
                detail: "it does not say where the upload goes on".to_owned(),
                may_pass: false,
            })?;
        reached.set(offset);
        if offset == object.size {
            return Ok(());
        }
        headers.push(("Upload-Offset".to_owned(), offset.to_string()));
        let content_type = "application/offset+octet-stream";
        headers.push(("Content-Type".to_owned(), content_type.to_owned()));
        let path = store.path(&object.oid);
        let open = || -> io::Result<Box<dyn Read + '_>> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(Box::new(Stoppable {
                file,
                work,
                meter,
                last: None,
            }))
        };
        let call = Call {
            method: Method::PATCH,
            url: &action.href,
            headers,
            body: Payload::File {
                open: &open,
                size: object.size - offset,
                chunked: false,
            },
        };
        match self.http.call(&call) {
            Ok(answer) => read_to_end(answer, work),
            // Another upload of the same object came between: ask again where it stands.
            Err(Failure::Status {
                status: 409,
                message,
                ..
            }) => Err(Failure::Broken {
                detail: format!("another upload came between: {message}"),
                may_pass: true,
            }),
            Err(failure) => Err(failure),
        }
    }

    fn verify(&self, object: &Pointer, action: &Action) -> Result<(), Failure> {
        let body = BatchObject {
            oid: object.oid.to_string(),
            size: object.size,
        };
        let body = serde_json::to_vec(&body).map_err(|e| Failure::Broken {
            detail: e.to_string(),
            may_pass: false,
        })?;
        let mut headers = action_headers(action);
        for name in ["Accept", "Content-Type"] {
            if !headers
                .iter()
                .any(|(given, _)| given.eq_ignore_ascii_case(name))
            {
                headers.push((name.to_owned(), CONTENT_TYPE.to_owned()));
            }
        }
        let call = Call {
            method: Method::POST,
            url: &action.href,
            headers,
            body: Payload::Bytes(&body),
        };
        self.http.call(&call).map(|_| ())
    }
}

/// Reads an answer of which nothing but its end matters: while a server's disk is slow, ours sends
/// a space now and then, and breaks off if the object could not be kept after all.
fn read_to_end(answer: Response<Body>, work: &Work<'_>) -> Result<(), Failure> {
    let broken = |detail: String| Failure::Broken {
        detail,
        may_pass: true,
    };
    let mut reader = answer.into_body().into_reader();
    let mut buffer = vec![0; 4 << 10];
    loop {
        if work.is_cancelled() {
            return Err(broken("cancelled".to_owned()));
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error.to_string())),
        }
    }
}

/// A file that fails to be read once the work is cancelled, or the server is too slow to take it.
struct Stoppable<'a> {
    file: File,
    work: &'a Work<'a>,
    meter: &'a RefCell<Meter>,
    /// When the last bytes were read, and how many: what follows is the time of sending them.
    last: Option<(Instant, u64)>,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.work.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        if let Some((when, bytes)) = self.last.take() {
            self.meter
                .borrow_mut()
                .waited(when.elapsed(), bytes)
                .map_err(io::Error::other)?;
        }
        let read = self.file.read(buffer)?;
        self.last = Some((Instant::now(), read as u64));
        Ok(read)
    }
}
