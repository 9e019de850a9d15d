//! Answers that do not wait for the disk.
//!
//! Once all bytes are here and right, what is left is to sync them, which takes as long as the
//! disk likes. A client that hears nothing meanwhile gives up (git-lfs after 30 seconds) and sends
//! everything again. So after [`PATIENCE`] the answer begins, and a space goes out ever again until
//! the object is in its place. HTTP has no way to say then that it failed after all, but that the
//! answer breaks off; the call `verify`, which follows, says it too. Interim answers (1xx) would
//! be no better: our server library does not send them, and not every client counts them as life.

use std::{io, time::Duration};

use axum::{body::Body, http::StatusCode, response::Response};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::refusal::Refusal;

/// Well below the patience of any client.
const PATIENCE: Duration = Duration::from_secs(5);

/// An upload that is under way.
pub(super) struct Underway {
    /// Sent once all bytes are here and right.
    pub(super) verified: oneshot::Receiver<()>,
    /// What came of it in the end.
    pub(super) done: oneshot::Receiver<Result<(), Refusal>>,
}

/// `good`, which has no body, once the upload has succeeded. While the disk is slow its status is
/// 200 whatever it was, and it comes with a body of spaces, which breaks off after a failure.
pub(super) async fn answer(upload: Underway, good: Response) -> Result<Response, Refusal> {
    let Underway { verified, mut done } = upload;
    if verified.await.is_err() {
        // It has ended already.
        return outcome(done.await).map(|()| good);
    }
    if let Ok(ended) = tokio::time::timeout(PATIENCE, &mut done).await {
        return outcome(ended).map(|()| good);
    }
    let spaces = futures::stream::unfold(Some(done), |done| async move {
        let mut done = done?;
        match tokio::time::timeout(PATIENCE, &mut done).await {
            Err(_) => Some((Ok(Bytes::from_static(b" ")), Some(done))),
            Ok(ended) => match outcome(ended) {
                Ok(()) => None,
                Err(refusal) => Some((Err(io::Error::other(refusal.message)), None)),
            },
        }
    });
    // The first one now: some clients wait for a byte of the body.
    let first = futures::stream::iter([Ok(Bytes::from_static(b" "))]);
    let (mut parts, _) = good.into_parts();
    parts.status = StatusCode::OK;
    let body = Body::from_stream(futures::StreamExt::chain(first, spaces));
    Ok(Response::from_parts(parts, body))
}

fn outcome(ended: Result<Result<(), Refusal>, oneshot::error::RecvError>) -> Result<(), Refusal> {
    ended.unwrap_or_else(|error| Err(Refusal::internal("an upload", &error)))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use futures::StreamExt as _;

    use super::*;

    type Ends = (oneshot::Sender<()>, oneshot::Sender<Result<(), Refusal>>);

    fn upload() -> (Ends, Underway) {
        let (verify, verified) = oneshot::channel();
        let (end, done) = oneshot::channel();
        ((verify, end), Underway { verified, done })
    }

    fn good() -> Response {
        StatusCode::NO_CONTENT.into_response()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_soon_is_the_status() {
        let ((verify, end), underway) = upload();
        verify.send(()).unwrap();
        end.send(Ok(())).unwrap();
        let response = answer(underway, good()).await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        let ((verify, end), underway) = upload();
        drop(verify);
        end.send(Err(Refusal::bad_request("wrong bytes"))).unwrap();
        let refusal = answer(underway, good()).await.unwrap_err();
        assert_eq!(refusal.message, "wrong bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_disk_takes_hours_a_client_hears_of_it_every_few_seconds() {
        for fails in [false, true] {
            let ((verify, end), underway) = upload();
            verify.send(()).unwrap();
            let response = answer(underway, good()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let mut body = response.into_body().into_data_stream();
            let began = tokio::time::Instant::now();
            while began.elapsed() < Duration::from_hours(2) {
                let before = tokio::time::Instant::now();
                assert_eq!(body.next().await.unwrap().unwrap(), " ");
                assert!(before.elapsed() <= PATIENCE);
            }
            let result = if fails {
                Err(Refusal::disk_full("no space"))
            } else {
                Ok(())
            };
            end.send(result).unwrap();
            match body.next().await {
                None => assert!(!fails),
                Some(broken) => assert!(fails && broken.is_err()),
            }
        }
    }
}
