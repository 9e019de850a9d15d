//! Tokens that `tokenizer_config.json` adds to a tokenizer.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{SPECIAL_TOKENS, token_text};

/// The tokens of `added_tokens_decoder`, in the order of their ids, as transformers adds them to
/// those of `tokenizer.json`: what both name has the flags that stand here.
///
/// # Errors
/// What is wrong with it.
pub(super) fn added(config: &Map<String, Value>) -> Result<Vec<AddedToken>, String> {
    let Some(tokens) = config.get("added_tokens_decoder").filter(|v| !v.is_null()) else {
        return Ok(Vec::new());
    };
    let tokens = tokens
        .as_object()
        .ok_or("added_tokens_decoder is not an object")?;
    let named: Vec<String> = SPECIAL_TOKENS
        .iter()
        .filter_map(|name| token_text(config.get(*name)))
        .collect();
    let mut added = Vec::with_capacity(tokens.len());
    for (id, token) in tokens {
        let wrong = || format!("added_tokens_decoder has no token as {id:?}");
        let number: u32 = id.parse().map_err(|_| wrong())?;
        let content = token["content"].as_str().ok_or_else(wrong)?;
        let flag = |name: &str| token[name].as_bool();
        let special = flag("special").unwrap_or(false);
        let token = AddedToken {
            content: content.to_owned(),
            single_word: flag("single_word").unwrap_or(false),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            normalized: flag("normalized").unwrap_or(!special),
            special: special || named.iter().any(|name| name == content),
        };
        added.push((number, token));
    }
    added.sort_by_key(|(number, _)| *number);
    Ok(added.into_iter().map(|(_, token)| token).collect())
}
