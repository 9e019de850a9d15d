//! The request's body, and what the gateway looks at in it: the model and the names of adapters.

use std::{borrow::Cow, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout, timeout_at};

use super::{State, state::Claims};
use crate::{GatewayError, table::Asked};

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

/// Reads a body within the limits of size, time and memory; `claims` grow by what it takes. It makes
/// way for others when it stalls while they need what it has.
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
        let frame = tokio::select! {
            biased;
            () = claims.gives_way.cancelled() => return Err(GatewayError::BodyGaveWay),
            frame = timeout_at(deadline, body.frame()) => frame,
        };
        let frame = frame.map_err(|_| GatewayError::BodyTimeout(limit_time))?;
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

/// Longest list of adapters that is looked at, in bytes. A worker takes eight of them.
const MAX_ADAPTERS_TEXT: usize = 8 << 10;

/// What a body asks for.
#[derive(Debug)]
pub(super) struct Wish {
    /// Its `model`.
    pub(super) asked: Asked,
    /// The names in its `adapters`. If that is not as it should be there are none: the worker will
    /// say so.
    pub(super) adapters: Vec<String>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow, default)]
    adapters: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Adapter {
    name: String,
}

/// What a body asks for.
pub(super) fn wish(body: &[u8]) -> Result<Wish, GatewayError> {
    let invalid = |message: String, param| GatewayError::InvalidRequest { message, param };
    // Serde would take an array of one string for the struct as well.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(invalid("the body must be a JSON object".to_owned(), None));
    }
    let Head { model, adapters } = serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        let (param, what) = match error.is_data() {
            false => (None, "the JSON of the body"),
            // Anything is taken for it, but not twice.
            true if text.contains("field `adapters`") => (Some("adapters"), "the field adapters"),
            true => (Some("model"), "the field model"),
        };
        invalid(format!("{what} is invalid: {text}"), param)
    })?;
    let asked = model
        .parse()
        .map_err(|error| invalid(format!("{error}"), Some("model")))?;
    let adapters = adapters
        .map(RawValue::get)
        .filter(|text| text.len() <= MAX_ADAPTERS_TEXT)
        .and_then(|text| serde_json::from_str::<Vec<Adapter>>(text).ok())
        .unwrap_or_default();
    let adapters = adapters.into_iter().map(|adapter| adapter.name).collect();
    Ok(Wish { asked, adapters })
}

/// The same body with another `model`. It must be one that [`wish`] has read.
pub(super) fn with_model(body: &Bytes, model: &str) -> Bytes {
    #[derive(Deserialize)]
    struct OnlyModel<'a> {
        #[serde(borrow)]
        model: &'a RawValue,
    }
    let Ok(OnlyModel { model: raw }) = serde_json::from_slice(body) else {
        return body.clone();
    };
    let begin = raw.get().as_ptr().addr() - body.as_ptr().addr();
    let end = begin + raw.get().len();
    let quoted = serde_json::to_vec(model).expect("a string is JSON");
    [&body[..begin], &quoted, &body[end..]].concat().into()
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
            let asked = wish(body.as_bytes()).unwrap().asked;
            assert_eq!(asked, "m".parse().unwrap(), "{body}");
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
            (r#"{"model":"UPPER case"}"#, true),
            (r#"{"model":"a/b/c"}"#, true),
            (r#"{"model":"UPPER@0.5"}"#, true),
            (r#"{"model":"m","adapters":[],"adapters":[]}"#, true),
        ] {
            let GatewayError::InvalidRequest { param, .. } = wish(body.as_bytes()).unwrap_err()
            else {
                panic!("{body}")
            };
            assert_eq!(param.is_some(), field, "{body}");
        }
    }

    #[test]
    fn the_adapters_are_those_that_are_named_where_they_are_named_well() {
        for (adapters, names) in [
            (
                r#"[{"name":"a","scale":0.5},{"scale":[{}],"name":"\u0062"}]"#,
                &["a", "b"][..],
            ),
            ("null", &[]),
            ("[]", &[]),
            (r#""a""#, &[]),
            (r#"[{"name":1}]"#, &[]),
            (r#"["a"]"#, &[]),
        ] {
            let body = format!(r#"{{"adapters":{adapters},"model":"m"}}"#);
            assert_eq!(wish(body.as_bytes()).unwrap().adapters, names, "{body}");
        }
        let many = vec![r#"{"name":"a"}"#; 10_000].join(",");
        let body = format!(r#"{{"model":"m","adapters":[{many}]}}"#);
        assert!(wish(body.as_bytes()).unwrap().adapters.is_empty());
    }

    #[test]
    fn the_model_is_replaced_and_nothing_else() {
        for (body, expected) in [
            (r#"{"model":"a/sql"}"#, r#"{"model":"a/m+sql"}"#),
            (
                r#" {"x":{"model":"a\/sql"}, "model" : "a\/sql" ,"messages":["a/sql"]} "#,
                r#" {"x":{"model":"a\/sql"}, "model" : "a/m+sql" ,"messages":["a/sql"]} "#,
            ),
        ] {
            assert_eq!(with_model(&body.into(), "a/m+sql"), expected);
        }
    }

    proptest! {
        #[test]
        fn a_served_name_is_asked_for_by_itself(
            namespace in proptest::option::of("[a-z][a-z0-9]{0,8}"), name in "[A-Za-z0-9._-]{1,63}",
        ) {
            let text = namespace.as_ref().map_or(name.clone(), |ns| format!("{ns}/{name}"));
            match text.parse().unwrap() {
                Asked::Reference(reference) => prop_assert_eq!(reference.to_string(), text),
                Asked::Served { namespace: found_namespace, name: found } => {
                    prop_assert_eq!((found_namespace, found), (namespace, name));
                }
            }
        }

        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = wish(&body);
        }
    }
}
