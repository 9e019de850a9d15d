//! Connections that end because a request was not read whole.
//!
//! A refusal may come before the body was read: an unknown path, a content type that is not
//! JSON, a body that is too long. HTTP/1 cannot go on behind a body that nobody read, so hyper
//! closes the connection then; a client that was not told would send its next request into it
//! and see it fail.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, Version, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// Says `connection: close` in the answer to a request whose body was not read to its end.
pub(super) async fn tell(request: Request, next: Next) -> Response {
    if request.version() > Version::HTTP_11 {
        return next.run(request).await;
    }
    let whole = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let watched = request.map(|body| {
        Body::new(Watched {
            body,
            whole: Arc::clone(&whole),
        })
    });
    let mut response = next.run(watched).await;
    if !whole.load(Ordering::Relaxed) {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// A body that notes when it was read whole.
struct Watched {
    body: Body,
    whole: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.whole.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
