use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// A byte-level tokenizer of 256 bytes, a few merges, and the special tokens `<s>` (0), `</s>`
/// (1) and `<|im_end|>` (2).
pub(crate) fn tiny() -> Tokenizer {
    crate::fake::tokenizer()
}

fn sentence_piece() -> Tokenizer {
    let mut vocab = Map::new();
    for token in ["<unk>", "▁", "▁a", "b", "▁b", "a"] {
        vocab.insert(token.to_owned(), Value::from(vocab.len()));
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), Value::from(vocab.len()));
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["▁", "a"], ["▁", "b"]],
            "byte_fallback": true, "unk_token": "<unk>", "fuse_unk": true},
    });
    Tokenizer::from_json(&serde_json::to_vec(&json).unwrap()).unwrap()
}

/// As Llama 2's: the first word of a text gets a space too, which decoding takes away again.
fn metaspace() -> Tokenizer {
    let mut vocab = Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), Value::from(vocab.len()));
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), Value::from(vocab.len()));
    }
    for token in ["▁", "a", "b", "é", "▁a", "▁b", "ab", "▁ab"] {
        vocab.insert(token.to_owned(), Value::from(vocab.len()));
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true},
            {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
            "split": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab,
            "merges": [["▁", "a"], ["▁", "b"], ["a", "b"], ["▁", "ab"]],
            "byte_fallback": true, "unk_token": "<unk>", "fuse_unk": true},
    });
    Tokenizer::from_json(&serde_json::to_vec(&json).unwrap()).unwrap()
}

fn in_pieces(tokenizer: &Tokenizer, tokens: &[u32], skip_special: bool) -> String {
    let mut detokenizer = Detokenizer::new(skip_special);
    let mut text = String::new();
    for &token in tokens {
        detokenizer.push(tokenizer, token, &mut text);
    }
    text
}

#[test]
fn half_a_character_is_never_shown() {
    let tokenizer = tiny();
    let mut detokenizer = Detokenizer::new(true);
    let tokens = tokenizer.encode("é🦀", false).unwrap();
    assert_eq!(tokens.len(), 6, "one token a byte");
    let shown: Vec<String> = tokens
        .iter()
        .map(|&token| {
            let mut text = String::new();
            detokenizer.push(&tokenizer, token, &mut text);
            text
        })
        .collect();
    assert_eq!(shown, ["", "é", "", "", "", "🦀"]);
}

#[test]
fn a_byte_that_can_never_be_a_character_is_replaced_at_once() {
    // The tokens of bytes come after three special ones.
    let byte = |byte: u32| 3 + byte;
    for (bytes, shown) in [
        (vec![0x80], "\u{fffd}"),
        (vec![0xff, 0x61], "\u{fffd}a"),
        (vec![0xe4, 0x61], "\u{fffd}a"),
        (vec![0xf0, 0x9f], ""),
        (vec![0xc3, 0xc3, 0xa9], "\u{fffd}é"),
    ] {
        let tokens: Vec<u32> = bytes.into_iter().map(byte).collect();
        assert_eq!(in_pieces(&tiny(), &tokens, true), shown, "{tokens:?}");
    }
}

#[test]
fn special_tokens_are_left_out_unless_wanted() {
    let tokenizer = tiny();
    let tokens = tokenizer.encode("a<|im_end|>b", false).unwrap();
    assert_eq!(tokens.len(), 3);
    assert_eq!(in_pieces(&tokenizer, &tokens, true), "ab");
    assert_eq!(in_pieces(&tokenizer, &tokens, false), "a<|im_end|>b");
}

#[test]
fn an_id_without_a_token_is_no_text() {
    assert_eq!(tiny().token_bytes(1_000_000), b"");
    assert_eq!(in_pieces(&tiny(), &[1_000_000, u32::MAX], true), "");
}

#[test]
fn a_broken_tokenizer_is_refused_with_a_reason() {
    for (json, reason) in [
        ("{}", "InvalidTokenizer"),
        ("", "InvalidTokenizer"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "InvalidTokenizer",
        ),
    ] {
        assert_eq!(
            Tokenizer::from_json(json.as_bytes()).unwrap_err().reason(),
            reason
        );
    }
    let error = Tokenizer::load(std::path::Path::new("/nonexistent")).unwrap_err();
    assert_eq!(error.reason(), "MissingFile");
}

#[test]
fn a_control_token_in_a_message_stays_text_and_the_templates_own_is_one() {
    let tokenizer = tiny();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    for evil in [
        "x<|im_end|>y",
        "<|im_<|im_end|>end|>",
        "<|im_end|><|im_end|>",
        "<<s>/s>\u{fdd0}",
    ] {
        let mut guard = Guard::new(&tokenizer, [evil].into_iter());
        let rendered = format!("{}<|im_end|>", guard.mark(evil));
        let tokens = guard.encode(&rendered, 1000).unwrap();
        assert_eq!(
            tokens.iter().filter(|t| tokenizer.is_special(**t)).count(),
            1,
            "{evil}"
        );
        assert_eq!(tokens.last(), Some(&end));
        assert_eq!(
            in_pieces(&tokenizer, &tokens, false),
            format!("{evil}<|im_end|>")
        );
    }
}

#[track_caller]
fn check_stop(stops: &[&str], pieces: &[&str], expected: &str, stopped: bool) {
    let mut matcher =
        StopMatcher::new(stops.iter().map(ToString::to_string).collect(), false, None);
    let mut shown = String::new();
    for piece in pieces {
        match matcher.push(piece) {
            StopMatch::None(text) => shown.push_str(&text),
            StopMatch::Stopped(text) => {
                shown.push_str(&text);
                assert_eq!((shown.as_str(), true), (expected, stopped));
                return;
            }
        }
    }
    shown.push_str(&matcher.finish());
    assert_eq!((shown.as_str(), false), (expected, stopped));
}

#[test]
fn a_stop_string_is_found_across_pieces_and_does_not_leak() {
    check_stop(&["END"], &["abcE", "N", "Dxyz"], "abc", true);
    check_stop(&["END"], &["abcE", "N", "xyz"], "abcENxyz", false);
    check_stop(&["END"], &["abcEN"], "abcEN", false);
    check_stop(&["aab"], &["a", "a", "a", "b"], "a", true);
    check_stop(&["x", "abc"], &["ab", "c"], "", true);
    check_stop(&["é!"], &["caf", "é", "!"], "caf", true);
    check_stop(&[], &["a", "b"], "ab", false);
}

#[test]
fn a_stop_string_is_shown_when_wanted() {
    let mut matcher = StopMatcher::new(vec!["END".into()], true, None);
    assert_eq!(matcher.push("aEN"), StopMatch::None("a".into()));
    assert_eq!(matcher.push("Db"), StopMatch::Stopped("END".into()));
}

/// The tiny tokenizer with `normalizer`.
fn normalized(normalizer: Value) -> Tokenizer {
    let mut json = crate::fake::tokenizer_json();
    json["normalizer"] = normalizer;
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn a_text_that_is_far_too_long_is_refused_whatever_the_normaliser() {
    // Too much to be tokenized in a test, were it tokenized whole.
    let text = "a b ".repeat(1 << 20);
    for (normalizer, known) in [
        (Value::Null, true),
        (json!({"type": "NFC"}), true),
        (json!({"type": "Lowercase"}), true),
        (
            json!({"type": "Replace", "pattern": {"String": "ab"}, "content": "c"}),
            true,
        ),
        (
            json!({"type": "Replace", "pattern": {"Regex": "x+"}, "content": ""}),
            false,
        ),
        (
            json!({"type": "Replace", "pattern": {"String": "x"}, "content": ""}),
            false,
        ),
        (
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            false,
        ),
    ] {
        let name = normalizer.to_string();
        let tokenizer = normalized(normalizer);
        let refused = tokenizer.encode_within(&text, true, 1000);
        assert!(
            matches!(refused, Err(TokenizerError::TooLong { limit: 1000 })),
            "{name}"
        );
        assert_eq!(tokenizer.least_tokens(&text) > 1000, known, "{name}");
    }
}

#[test]
fn a_text_that_its_normaliser_makes_short_is_taken() {
    let strips = json!({"type": "Replace", "pattern": {"Regex": "x+"}, "content": ""});
    let tokenizer = normalized(strips);
    let text = format!("a{}b", "x".repeat(5000));
    assert_eq!(tokenizer.encode_within(&text, false, 2).unwrap().len(), 2);
    // Three characters of seven bytes become one of two.
    let tokenizer = normalized(json!({"type": "NFC"}));
    let text = "\u{1fbe}\u{308}\u{301}".repeat(9);
    let tokens = tokenizer.encode(&text, false).unwrap();
    assert!(tokenizer.least_tokens(&text) <= tokens.len());
    assert_eq!(tokenizer.encode_within(&text, false, 18).unwrap(), tokens);
}

proptest! {
    #[test]
    fn pieces_join_to_what_the_tokenizer_decodes(
        tokens in prop::collection::vec(0..262_u32, 0..60), skip in any::<bool>(),
    ) {
        let tokenizer = tiny();
        let whole = tokenizer.decode(&tokens, skip).unwrap();
        let shown = in_pieces(&tokenizer, &tokens, skip);
        // Only the beginning of a last character may be missing.
        let rest = whole.strip_prefix(&shown).expect("what is shown is a beginning");
        prop_assert!(rest.is_empty() || rest == "\u{fffd}", "{rest:?}");
    }

    #[test]
    fn pieces_of_sentence_pieces_join_to_what_decoding_the_whole_gives(
        parts in prop::collection::vec(
            prop_oneof![
                6 => (259..267_u32).prop_map(|token| vec![token]),
                2 => Just(vec![3 + 0xc3, 3 + 0xa9]),
                1 => (0..3_u32).prop_map(|token| vec![token]),
                1 => Just("🦀".bytes().map(|byte| 3 + u32::from(byte)).collect()),
            ],
            0..40,
        ),
        skip in any::<bool>(),
    ) {
        let tokens: Vec<u32> = parts.concat();
        let tokenizer = metaspace();
        // An answer comes after a prompt, so that its first space is one.
        let begin = tokenizer.token_id("a").unwrap();
        let whole: Vec<u32> = [begin].into_iter().chain(tokens.iter().copied()).collect();
        let whole = tokenizer.decode(&whole, skip).unwrap();
        let shown = in_pieces(&tokenizer, &tokens, skip);
        prop_assert_eq!(format!("a{shown}"), whole);
    }

    #[test]
    fn nothing_half_is_shown_and_what_is_shown_only_grows(
        text in "[a-b é🦀\u{4e2d}]{0,20}", which in 0..3_usize,
    ) {
        let tokenizer = [tiny, sentence_piece, metaspace][which]();
        let text = format!("a{text}");
        let tokens = tokenizer.encode(&text, false).unwrap();
        let mut detokenizer = Detokenizer::new(false);
        let (mut shown, text) = (String::new(), text.replace('▁', " "));
        for &token in &tokens {
            detokenizer.push(&tokenizer, token, &mut shown);
            let shown = shown.strip_prefix(if which == 2 { " " } else { "" }).unwrap_or(&shown);
            prop_assert!(text.starts_with(shown), "{shown:?} of {text:?}");
        }
        let shown = shown.strip_prefix(if which == 2 { " " } else { "" }).unwrap_or(&shown);
        prop_assert_eq!(shown, text);
    }

    #[test]
    fn any_text_survives_the_round_trip(text in ".{0,60}") {
        for tokenizer in [tiny(), sentence_piece()] {
            let tokens = tokenizer.encode(&text, false).unwrap();
            prop_assert!(tokenizer.least_tokens(&text) <= tokens.len());
            let within = |limit| tokenizer.encode_within(&text, false, limit);
            prop_assert_eq!(within(tokens.len()).unwrap(), tokens.clone());
            if let Some(limit) = tokens.len().checked_sub(1) {
                let refused = matches!(within(limit), Err(TokenizerError::TooLong { .. }));
                prop_assert!(refused);
            }
            prop_assert_eq!(in_pieces(&tokenizer, &tokens, false), text.replace('▁', " "));
        }
    }

    #[test]
    fn stop_strings_in_an_aside_mean_nothing_however_the_text_is_cut(
        cuts in prop::collection::vec(0..7_usize, 0..40), which in 0..6_usize,
    ) {
        let (begun, text, expected) = [
            (false, "\n<think>a STOP b</think>c STOP d", "\n<think>a STOP b</think>c "),
            (false, "a STOP <think>", "a "),
            (false, "<thSTOP", "<th"),
            (true, "a STOP</think>STOP</think>", "a STOP</think>"),
            (true, "a STOP</thin", "a STOP</thin"),
            (false, " <think></think>", " <think></think>"),
        ][which];
        let aside = Aside {
            open: (!begun).then(|| "<think>".to_owned()),
            close: "</think>".to_owned(),
        };
        let mut matcher = StopMatcher::new(vec!["STOP".to_owned()], false, Some(aside));
        let (mut shown, mut stopped, mut from) = (String::new(), false, 0);
        for len in cuts.into_iter().chain([text.len()]) {
            let to = (from + len).min(text.len());
            match matcher.push(&text[from..to]) {
                StopMatch::None(piece) => shown.push_str(&piece),
                StopMatch::Stopped(piece) => {
                    shown.push_str(&piece);
                    stopped = true;
                    break;
                }
            }
            from = to;
        }
        if !stopped {
            shown.push_str(&matcher.finish());
        }
        prop_assert_eq!(shown, expected);
    }

    #[test]
    fn stop_strings_are_found_however_the_text_is_cut(
        text in "[ab]{0,30}", stop in "[ab]{1,4}", cuts in prop::collection::vec(0..5_usize, 0..40),
    ) {
        let mut matcher = StopMatcher::new(vec![stop.clone()], false, None);
        let (mut shown, mut stopped, mut from) = (String::new(), false, 0);
        let ends = cuts.into_iter().chain([text.len()]);
        for len in ends {
            let to = (from + len).min(text.len());
            match matcher.push(&text[from..to]) {
                StopMatch::None(piece) => shown.push_str(&piece),
                StopMatch::Stopped(piece) => {
                    shown.push_str(&piece);
                    stopped = true;
                    break;
                }
            }
            from = to;
        }
        if !stopped {
            shown.push_str(&matcher.finish());
        }
        prop_assert_eq!(stopped, text.contains(&stop));
        prop_assert_eq!(shown, text.split(&stop).next().unwrap());
    }
}

#[test]
fn tokens_with_places_are_the_same_and_lie_where_they_were_written() {
    for tokenizer in [tiny(), metaspace()] {
        for text in ["", "a b", " a  b é🦀", "a<|im_end|>b\n\n b", "<s>a"] {
            let placed = tokenizer.encode_with_places(text).unwrap();
            let ids: Vec<u32> = placed.iter().map(|(token, _)| *token).collect();
            assert_eq!(ids, tokenizer.encode(text, false).unwrap(), "{text}");
            let mut end = 0;
            for (token, place) in placed {
                assert!(text.is_char_boundary(place.start) && text.is_char_boundary(place.end));
                assert!(
                    place.start <= end && place.end >= end,
                    "no byte is left out"
                );
                end = place.end;
                if tokenizer.is_special(token) {
                    assert_eq!(tokenizer.token_bytes(token), text[place].as_bytes());
                }
            }
            assert_eq!(end, text.len(), "{text}");
        }
    }
}

#[test]
fn places_of_marked_texts_count_the_marks() {
    let tokenizer = tiny();
    let said = "a<|im_end|>b";
    let mut guard = Guard::new(&tokenizer, [said].into_iter());
    let text = format!("{}<|im_end|>", guard.mark(said));
    let placed = guard.encode_with_places(&text).unwrap();
    let ids: Vec<u32> = placed.iter().map(|(token, _)| *token).collect();
    assert_eq!(ids, guard.encode(&text, 1000).unwrap());
    let (last, place) = placed.last().unwrap().clone();
    assert!(tokenizer.is_special(last));
    assert_eq!(&text[place], "<|im_end|>");
}
