//! SentencePiece's BPE, as Gemma has it: the format keeps the scores of its tokens and not its
//! merges, which follow from them.

use std::{cmp::Reverse, collections::HashMap};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{NORMAL, Parts};
use crate::weights::gguf::Gguf;

/// The parts of the tokenizer.
pub(super) fn parts(
    gguf: &Gguf,
    tokens: &[&str],
    types: &[i64],
    vocabulary: &Map<String, Value>,
) -> Result<Parts> {
    let scores = gguf.floats("tokenizer.ggml.scores")?;
    ensure!(
        scores.len() == tokens.len(),
        "tokens and their scores do not match"
    );
    let token = |kind: &str| -> Result<(usize, &str)> {
        let id = usize::try_from(gguf.integer(&format!("tokenizer.ggml.{kind}_token_id"))?)?;
        let token = tokens.get(id).context("a special token does not exist")?;
        Ok((id, token))
    };
    let ((bos_id, bos), (_, unknown)) = (token("bos")?, token("unknown")?);
    let begin = |sequence: &str, kind: usize| {
        [
            json!({"SpecialToken": {"id": bos, "type_id": kind}}),
            json!({"Sequence": {"id": sequence, "type_id": kind}}),
        ]
    };
    let pair = [begin("A", 0), begin("B", 1)].concat();
    Ok(Parts {
        normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        pre_tokenizer: json!({
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": false,
        }),
        post_processor: json!({
            "type": "TemplateProcessing",
            "single": begin("A", 0),
            "pair": pair,
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
        }),
        decoder: json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges(tokens, types, &scores),
        }),
    })
}

/// Every way to put a normal token together from two, the best first: what transformers'
/// `generate_merges` makes of the scores.
fn merges<'a>(tokens: &[&'a str], types: &[i64], scores: &[f64]) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let mut all = Vec::new();
    let normal = tokens.iter().zip(types).zip(scores);
    for ((token, _), score) in normal.filter(|((_, kind), _)| **kind == NORMAL) {
        let mut ways: Vec<_> = token
            .char_indices()
            .skip(1)
            .filter_map(|(place, _)| {
                let (left, right) = token.split_at(place);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        ways.sort_unstable();
        let length = |text: &str| text.chars().count();
        all.extend(
            ways.into_iter()
                .map(|(_, _, left, right)| (*score, length(left), length(right), [left, right])),
        );
    }
    // Stable: what is equal stays in the order of the vocabulary.
    all.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| Reverse((a.1, a.2)).cmp(&Reverse((b.1, b.2))))
    });
    all.into_iter().map(|(_, _, _, merge)| merge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_are_sorted_by_score_and_then_by_length() {
        let tokens = ["a", "b", "ab", "abb", "bb", "x"];
        let types = [1, 1, 1, 1, 1, 3];
        let scores = [-9.0, -8.0, 0.0, -1.0, -1.0, 0.0];
        assert_eq!(
            merges(&tokens, &types, &scores),
            [["a", "b"], ["ab", "b"], ["a", "bb"], ["b", "b"]]
        );
    }
}
