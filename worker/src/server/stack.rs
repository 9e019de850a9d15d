//! The adapters that a request is answered with.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};
use hyprstream_contract::{
    header,
    model_ref::{MAX_STACK, check_adapter_name},
};
use hyprstream_engine::Adapter;
use hyprstream_openai::{
    ApiError, ErrorKind,
    adapters::{AdapterRequest, MAX_ADAPTER_SCALE, MAX_ADAPTERS, too_many},
};
use tracing::warn;

use super::{app::App, identity::Identity};
use crate::adapters::{Adapters, TakeError, Taken, Wanted};

// Both ways to name adapters have the same bounds.
const _: () = assert!(MAX_STACK == MAX_ADAPTERS);
const _: () = assert!(hyprstream_contract::model_ref::MAX_SCALE as f64 == MAX_ADAPTER_SCALE);

/// After so long an adapter that could not be brought back may be asked for again.
const LOST_RETRY: Duration = Duration::from_secs(2);

/// Adapters that a request names, each once.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    wanted: Vec<Wanted>,
    /// So many of them, the first, are named by `model`, the others by the field `adapters`.
    in_model: usize,
}

/// Adapters that a request has until the last clone of this is dropped, in the order in which they
/// are stacked.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    taken: Arc<[Taken]>,
}

impl Asked {
    /// What a request of `app` names by its `model` and its field `adapters`, as one stack.
    ///
    /// # Errors
    /// A 404 when `model` means neither this model nor an adapter, a 400 that names the field when
    /// the adapters are too many, one is named twice or its scale is none.
    pub(super) fn of(app: &App, model: &str, field: &[AdapterRequest]) -> Result<Self, ApiError> {
        let adapters = app.adapters()?;
        let serves = |name: &str| adapters.serves(name);
        read(&app.identity, serves, adapters.max_stacked(), model, field)
    }

    /// Nothing if all of them are served.
    ///
    /// # Errors
    /// A 404 that names those that are not.
    pub(super) fn check(&self, app: &App) -> Result<(), ApiError> {
        let adapters = app.adapters()?;
        let names = self.wanted.iter().map(|wanted| &wanted.name);
        let names: Vec<_> = names
            .filter(|name| !adapters.serves(name))
            .cloned()
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let served = adapters.list().data.into_iter();
        let served = served.filter(|adapter| adapter.serving.is_some());
        let known = served.map(|adapter| adapter.name).collect();
        Err(self.error(TakeError::Missing { names, known }))
    }

    /// All of them, ready to compute with.
    ///
    /// # Errors
    /// A 404 that names those that are not served, a 400 when there is never room for all of them
    /// at once, a 503 when one cannot be brought back.
    pub(super) async fn take(&self, app: &App) -> Result<Stack, ApiError> {
        let adapters: &Adapters = app.adapters()?;
        let taken = adapters.take(&self.wanted).await;
        let taken = taken.map_err(|error| self.error(error))?.into();
        Ok(Stack { taken })
    }

    fn error(&self, error: TakeError) -> ApiError {
        let message = error.to_string();
        match error {
            TakeError::Missing { names, .. } => {
                let (of_model, _) = self.wanted.split_at(self.in_model);
                let in_model = of_model.iter().any(|wanted| names.contains(&wanted.name));
                let param = if in_model { "model" } else { "adapters" };
                ApiError {
                    param: Some(param.to_owned()),
                    missing_adapters: names,
                    ..ApiError::model_not_found(message)
                }
            }
            TakeError::TooLarge { .. } => {
                let in_model = self.in_model == self.wanted.len();
                let param = if in_model { "model" } else { "adapters" };
                ApiError::invalid(param, message).with_code("adapters_too_large")
            }
            TakeError::Lost { name, why } => {
                // The cause may hold paths.
                warn!(name, why, "an adapter cannot be brought back");
                let message = format!(
                    "the adapter {name:?} cannot be had now: there is no room for it beside those \
                     in use, or its files are gone or changed"
                );
                ApiError::new(ErrorKind::Unavailable, message)
                    .with_code("adapter_unavailable")
                    .with_retry_after(LOST_RETRY)
            }
        }
    }
}

impl Stack {
    /// What the engine is to compute with.
    pub(super) fn for_engine(&self) -> Vec<(Adapter, f32)> {
        let taken = self.taken.iter();
        taken
            .map(|taken| (taken.adapter.clone(), taken.scale))
            .collect()
    }

    /// `answer`, with a header that tells which adapters had a part in it.
    pub(super) fn tell(&self, mut answer: Response) -> Response {
        let told = self.taken.iter().map(
            |Taken {
                 name,
                 digest,
                 scale,
                 ..
             }| { format!("{name}={digest}@{scale}") },
        );
        let told = told.collect::<Vec<_>>().join(",");
        if let (false, Ok(value)) = (told.is_empty(), HeaderValue::from_str(&told)) {
            answer
                .headers_mut()
                .insert(HeaderName::from_static(header::ADAPTERS), value);
        }
        answer
    }
}

fn read(
    identity: &Identity,
    serves: impl Fn(&str) -> bool,
    most: usize,
    model: &str,
    field: &[AdapterRequest],
) -> Result<Asked, ApiError> {
    let mut wanted: Vec<Wanted> = if model != identity.name && serves(model) {
        let name = model.to_owned();
        vec![Wanted { name, scale: None }]
    } else {
        let adapters = identity.adapters_of(model).map_err(|mut error| {
            // It may be an adapter that another worker has.
            if error.kind == ErrorKind::NotFound && check_adapter_name(model).is_ok() {
                error.missing_adapters = vec![model.to_owned()];
            }
            error
        })?;
        let wanted = adapters.into_iter().map(|adapter| Wanted {
            name: adapter.name,
            scale: adapter.scale,
        });
        wanted.collect()
    };
    let in_model = wanted.len();
    wanted.extend(field.iter().map(|adapter| Wanted {
        name: adapter.name.clone(),
        scale: adapter.scale,
    }));
    if wanted.len() > most {
        let param = if in_model > most { "model" } else { "adapters" };
        return Err(too_many(param, most));
    }
    for (at, Wanted { name, .. }) in wanted.iter().enumerate() {
        if wanted[..at].iter().any(|before| before.name == *name) {
            let param = if at < in_model { "model" } else { "adapters" };
            return Err(ApiError::invalid(param, format!("{name:?} is named twice")));
        }
    }
    Ok(Asked { wanted, in_model })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(model: &str, field: &[(&str, Option<f32>)]) -> Result<Asked, ApiError> {
        asked_of(MAX_STACK, model, field)
    }

    fn asked_of(
        most: usize,
        model: &str,
        field: &[(&str, Option<f32>)],
    ) -> Result<Asked, ApiError> {
        let identity = Identity {
            name: "m".to_owned(),
            namespace: Some("ns".to_owned()),
            provenance: None,
        };
        let field = field.iter().map(|(name, scale)| AdapterRequest {
            name: (*name).to_owned(),
            scale: *scale,
        });
        let serves = |name: &str| ["sql", "Tone_1.b", "m"].contains(&name);
        read(&identity, serves, most, model, &field.collect::<Vec<_>>())
    }

    #[track_caller]
    fn check(model: &str, field: &[(&str, Option<f32>)], expected: &[(&str, Option<f32>)]) {
        let asked = asked(model, field).unwrap();
        let found: Vec<_> = asked
            .wanted
            .iter()
            .map(|w| (w.name.as_str(), w.scale))
            .collect();
        assert_eq!(found, expected, "{model}");
        assert_eq!(asked.in_model, expected.len() - field.len());
    }

    #[track_caller]
    fn refused(model: &str, field: &[(&str, Option<f32>)], status: u16, param: &str) -> ApiError {
        let error = asked(model, field).expect_err(model);
        let found = (error.kind.status(), error.param.as_deref());
        assert_eq!(found, (status, Some(param)), "{model}: {error}");
        error
    }

    #[test]
    fn both_ways_to_name_adapters_are_one_stack_that_of_the_model_first() {
        check("m", &[], &[]);
        check("ns/m+sql@0.5+x", &[], &[("sql", Some(0.5)), ("x", None)]);
        check("m", &[("x", Some(0.0))], &[("x", Some(0.0))]);
        check(
            "m+sql@0",
            &[("x", None)],
            &[("sql", Some(0.0)), ("x", None)],
        );
    }

    #[test]
    fn a_served_name_is_a_model_of_its_own_also_where_it_is_no_model_name() {
        check("sql", &[], &[("sql", None)]);
        check(
            "Tone_1.b",
            &[("sql", Some(2.0))],
            &[("Tone_1.b", None), ("sql", Some(2.0))],
        );
        // The model's own name is the model's.
        check("m", &[], &[]);
        for (other, may_be_one) in [
            ("unknown", true),
            ("Unknown_1", true),
            ("ns/sql", false),
            ("sql@2", false),
            ("sql+Tone_1.b", false),
        ] {
            let missing = refused(other, &[], 404, "model").missing_adapters;
            assert_eq!(missing == [other], may_be_one, "{other}: {missing:?}");
        }
    }

    #[test]
    fn what_is_no_stack_is_a_400_that_names_the_field() {
        refused("m+sql+sql", &[], 400, "model");
        refused("m+sql", &[("sql", None)], 400, "adapters");
        refused("sql", &[("sql", Some(0.0))], 400, "adapters");
        refused("m", &[("x", None), ("x", Some(1.0))], 400, "adapters");
        for scale in ["nan", "inf", "-inf", "10.1", "-11", "1e39", "", "x", "@1"] {
            refused(&format!("m+sql@{scale}"), &[], 400, "model");
        }
        refused("m+", &[], 400, "model");
        refused("m+a b", &[], 400, "model");
        // Whose adapters they are comes first.
        refused("other+sql@nan", &[], 404, "model");
        let many = refused("m+1+2+3+4+5+6+7+8+9", &[], 400, "model");
        assert_eq!(many.code.as_deref(), Some("too_many_adapters"));
        let many = refused("m+1+2+3+4+5+6+7+8", &[("9", None)], 400, "adapters");
        assert_eq!(many.code.as_deref(), Some("too_many_adapters"));
        asked("m+1+2+3+4+5+6+7", &[("8", None)]).unwrap();
    }

    #[test]
    fn a_worker_may_take_fewer() {
        asked_of(2, "m+sql", &[("x", None)]).unwrap();
        asked_of(1, "sql", &[]).unwrap();
        for (most, model, field, param) in [
            (2, "m+sql", &[("x", None), ("y", None)][..], "adapters"),
            (1, "m+sql+x", &[], "model"),
            (1, "sql", &[("x", None)], "adapters"),
        ] {
            let error = asked_of(most, model, field).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{model}");
            assert_eq!(error.code.as_deref(), Some("too_many_adapters"));
            let expected = format!("more than {most} adapters");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
