//! `GET /v1/models` and `GET /v1/models/{id}`.

use bytes::Bytes;
use hyprstream_contract::CommitId;
use hyprstream_openai::{Model, ModelList, Provenance};

use crate::{
    GatewayError,
    table::{AdapterFacts, Asked, ModelEntry, Reference, ResolveError, Table},
};

/// Every Model of the table, also those that are not ready, since requests for them wait, and after
/// each its adapters that were not refused; as JSON. Where their weights come from is not for every
/// client to know: an address may be internal.
pub(crate) fn list(table: &Table) -> Bytes {
    table.listed(|| {
        let mut all = Vec::with_capacity(table.models().len() + table.adapter_count());
        for entry in table.models() {
            all.push(model(table, entry));
            let adapters = table.adapters(&entry.facts.key);
            let served = adapters.filter(|facts| !facts.is_refused());
            all.extend(served.map(|facts| adapter(table, facts)));
        }
        serde_json::to_vec(&ModelList::new(all))
            .expect("a list is JSON")
            .into()
    })
}

/// The Model or adapter of an id.
///
/// # Errors
/// The id is none, or names nothing or several. A stack of adapters and a scale are ways to ask, and
/// no entries of the list.
pub(crate) fn get(table: &Table, id: &str) -> Result<Model, GatewayError> {
    let asked: Asked = id.parse().map_err(|error| GatewayError::InvalidRequest {
        message: format!("{error}"),
        param: Some("model"),
    })?;
    let route = table.route(&asked)?;
    let facts = match &asked {
        Asked::Reference(reference) if !reference.adapters.is_empty() => {
            let facts = match &reference.adapters[..] {
                [one] if one.scale.is_none() => table.adapter(&route.entry.facts.key, &one.name),
                _ => None,
            };
            Some(facts)
        }
        _ => route.adapter.map(Some),
    };
    match facts {
        None => Ok(model(table, route.entry)),
        Some(Some(facts)) if !facts.is_refused() => Ok(adapter(table, facts)),
        Some(_) => Err(ResolveError::Unlisted {
            asked: id.to_owned(),
        }
        .into()),
    }
}

fn model(table: &Table, entry: &ModelEntry) -> Model {
    let facts = &entry.facts;
    let reference = match &facts.reference {
        Reference::Branch(name) | Reference::Tag(name) => Some(name.clone()),
        Reference::Head | Reference::Commit(_) => None,
    };
    Model {
        id: table.id(&facts.key),
        object: "model".to_owned(),
        created: u64::try_from(facts.created).unwrap_or(0),
        owned_by: facts.key.namespace.to_string(),
        root: None,
        parent: None,
        max_model_len: None,
        hyprstream: provenance(facts.commit.as_ref(), reference),
    }
}

fn adapter(table: &Table, facts: &AdapterFacts) -> Model {
    Model {
        id: table.adapter_id(facts),
        object: "model".to_owned(),
        created: u64::try_from(facts.created).unwrap_or(0),
        owned_by: facts.model.namespace.to_string(),
        root: None,
        parent: Some(table.id(&facts.model)),
        max_model_len: None,
        hyprstream: provenance(facts.commit.as_ref(), None).map(|commit| Provenance {
            digest: facts.digest.clone(),
            ..commit
        }),
    }
}

fn provenance(commit: Option<&CommitId>, reference: Option<String>) -> Option<Provenance> {
    commit.map(|commit| Provenance {
        repository: String::new(),
        reference,
        commit: commit.to_string(),
        ..Provenance::default()
    })
}
