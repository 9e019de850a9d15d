//! `GET /v1/models` and `GET /v1/models/{id}`.

use hyprstream_contract::ModelRef;
use hyprstream_openai::{Model, ModelList, Provenance};

use crate::{
    GatewayError,
    table::{ModelEntry, Reference, Table},
};

/// Every Model of the table, also those that are not ready, since requests for them wait. Where
/// their weights come from is not for every client to know: an address may be internal.
pub(crate) fn list(table: &Table) -> ModelList {
    ModelList::new(table.models().map(|entry| model(table, entry)).collect())
}

/// The Model of an id.
///
/// # Errors
/// The id is none, or names no Model or several.
pub(crate) fn get(table: &Table, id: &str) -> Result<Model, GatewayError> {
    let reference: ModelRef = id.parse().map_err(|error| GatewayError::InvalidRequest {
        message: format!("{error}"),
        param: Some("model"),
    })?;
    Ok(model(table, table.resolve(&reference)?))
}

fn model(table: &Table, entry: &ModelEntry) -> Model {
    let facts = &entry.facts;
    Model {
        id: table.id(&facts.key),
        object: "model".to_owned(),
        created: u64::try_from(facts.created).unwrap_or(0),
        owned_by: facts.key.namespace.to_string(),
        root: None,
        parent: None,
        max_model_len: None,
        hyprstream: facts.commit.as_ref().map(|commit| Provenance {
            repository: String::new(),
            reference: match &facts.reference {
                Reference::Branch(name) | Reference::Tag(name) => Some(name.clone()),
                Reference::Head | Reference::Commit(_) => None,
            },
            commit: commit.to_string(),
            ..Provenance::default()
        }),
    }
}
