//! How much shorter a normaliser can make a text.

use tokenizers::NormalizerWrapper;

/// How many times as long as its normal form a text can be, in bytes; none when there is no limit.
///
/// Of Unicode's forms these are the extremes of all characters: U+1FBE U+0308 U+0301 (7 bytes)
/// becomes U+0390 (2 bytes) in NFC, and digits of four bytes become those of one in NFKC.
pub(super) fn shrink(normalizer: &NormalizerWrapper) -> Option<usize> {
    use NormalizerWrapper as N;

    match normalizer {
        N::Sequence(all) => all.as_ref().iter().try_fold(1_usize, |product, one| {
            shrink(one).map(|factor| product.saturating_mul(factor))
        }),
        N::NFC(_) | N::NFKC(_) | N::NFD(_) | N::NFKD(_) => Some(4),
        N::Lowercase(_) => Some(3),
        N::Prepend(_) | N::ByteLevel(_) => Some(1),
        N::Replace(_) => replaced(normalizer),
        N::BertNormalizer(_)
        | N::StripNormalizer(_)
        | N::StripAccents(_)
        | N::Nmt(_)
        | N::Precompiled(_) => None,
    }
}

/// The fields of a replacement are private, but not in its JSON.
fn replaced(normalizer: &NormalizerWrapper) -> Option<usize> {
    let json = serde_json::to_value(normalizer).ok()?;
    let pattern = json["pattern"]["String"].as_str()?;
    match json["content"].as_str()?.len() {
        0 => None,
        len => Some(pattern.len().div_ceil(len).max(1)),
    }
}
