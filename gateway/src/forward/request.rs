//! The request's body, and the one thing in it that the gateway looks at.

use std::{borrow::Cow, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyprstream_contract::ModelRef;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::{State, state::Claims};
use crate::GatewayError;

/// How long and how much of a body that is too large is still read, so that the client gets to
/// read the answer instead of a reset connection.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// Refuses what can be refused before the body is read. A client that waits for "100 Continue"
/// then does not send it.
pub(super) fn check_head(headers: &HeaderMap, limit_bytes: usize) -> Result<(), GatewayError> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.to_str());
    let is_json = match content_type {
        None => true,
        Some(Ok(text)) => {
            let essence = text.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("application/json")
        }
        Some(Err(_)) => false,
    };
    if !is_json || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(GatewayError::UnsupportedMediaType);
    }
    let waits = headers.contains_key(header::EXPECT);
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let length = length.and_then(|text| text.parse::<u64>().ok());
    if waits && length.is_some_and(|length| length > limit_bytes as u64) {
        return Err(GatewayError::BodyTooLarge { limit_bytes });
    }
    Ok(())
}

/// Reads a body within the limits of size, time and memory; `claims` grow by what it takes.
pub(super) async fn read(
    mut body: Body,
    state: &State,
    claims: &mut Claims,
) -> Result<Bytes, GatewayError> {
    let limit_bytes = state.config.max_body_bytes;
    let limit_time = state.config.body_timeout;
    let deadline = Instant::now() + limit_time;
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    loop {
        let frame = timeout_at(deadline, body.frame())
            .await
            .map_err(|_| GatewayError::BodyTimeout(limit_time))?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(GatewayError::BodyBroken)?.into_data() else {
            continue;
        };
        if data.is_empty() {
            continue;
        }
        if first.len() + joined.len() + data.len() > limit_bytes {
            discard(body).await;
            return Err(GatewayError::BodyTooLarge { limit_bytes });
        }
        claims.grow(state, data.len())?;
        // Most bodies are one frame, which needs no copy.
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&std::mem::take(&mut first));
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() {
        first
    } else {
        joined.freeze()
    })
}

async fn discard(mut body: Body) {
    let all = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > LINGER_BYTES {
                break;
            }
        }
    };
    // Whether it ended or not, the answer is the same.
    let _ = timeout(LINGER, all).await;
}

#[derive(Deserialize)]
struct OnlyModel<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
}

/// The reference in a body's `model`.
pub(super) fn model(body: &[u8]) -> Result<ModelRef, GatewayError> {
    let invalid = |message: String, param| GatewayError::InvalidRequest { message, param };
    // Serde would take an array of one string for the struct as well.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(invalid("the body must be a JSON object".to_owned(), None));
    }
    let OnlyModel { model } = serde_json::from_slice(body).map_err(|error| {
        let param = error.is_data().then_some("model");
        let what = if error.is_data() {
            "the field model"
        } else {
            "the JSON of the body"
        };
        invalid(format!("{what} is invalid: {error}"), param)
    })?;
    model
        .parse()
        .map_err(|error| invalid(format!("{error}"), Some("model")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        for body in [
            r#"{"model":"m"}"#,
            r#" {"messages":[{"model":"x"}],"n":1,"model":"\u006d"} "#,
            "\n{\"model\":\"m\",\"extra\":null}",
        ] {
            assert_eq!(model(body.as_bytes()).unwrap().name, "m", "{body}");
        }
    }

    #[test]
    fn what_names_no_model_is_refused_with_the_field() {
        for (body, field) in [
            ("", false),
            ("null", false),
            (r#"["m"]"#, false),
            (r#"{"model":"m""#, false),
            (r#"{"model":"m"}x"#, false),
            ("{\"model\":\"\u{1}\"}", false),
            (r"{}", true),
            (r#"{"model":null}"#, true),
            (r#"{"model":1}"#, true),
            (r#"{"model":["m"]}"#, true),
            (r#"{"model":"m","model":"n"}"#, true),
            (r#"{"model":""}"#, true),
            (r#"{"model":"UPPER"}"#, true),
        ] {
            let GatewayError::InvalidRequest { param, .. } = model(body.as_bytes()).unwrap_err()
            else {
                panic!("{body}")
            };
            assert_eq!(param.is_some(), field, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = model(&body);
        }
    }
}
