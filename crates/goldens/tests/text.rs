//! Tokenizers and chat templates of real models against transformers. They need the models'
//! files: `cargo xtask weights`, then `cargo test -p hyprstream-goldens -- --ignored`.
#![allow(clippy::unwrap_used)]

use hyprstream_engine::ModelFiles;
use hyprstream_goldens::RealModel;

#[track_caller]
fn check(model: RealModel) {
    let files = ModelFiles::load(&model.dir()).unwrap();
    model.corpus().check_tokenizer(&files.tokenizer);
    model.corpus().check_template(&files);
}

#[test]
#[ignore = "needs the files of a real model"]
fn smollm2s_tokens_and_prompts_are_those_of_transformers() {
    check(RealModel::SmolLm2);
}

#[test]
#[ignore = "needs the files of a real model"]
fn gemma3s_tokens_and_prompts_are_those_of_transformers() {
    check(RealModel::Gemma3);
}

#[test]
fn half_a_character_in_json_is_refused_before_it_can_become_tokens() {
    for lone in [r#""\ud83d""#, r#""a\udc00b""#, r#""\ude00\ud83d""#] {
        assert!(serde_json::from_str::<String>(lone).is_err(), "{lone}");
    }
    let pair: String = serde_json::from_str(r#""\ud83d\ude00""#).unwrap();
    assert_eq!(pair, "😀");
}
