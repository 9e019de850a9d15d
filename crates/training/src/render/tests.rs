use std::{fs, path::Path};

use hyprstream_engine::{GenerationDefaults, Tokenizer};
use serde_json::json;

use super::*;

/// Special tokens of the templates, each an end where `true`.
const SPECIAL: [(&str, bool); 24] = [
    ("<unk>", false),
    ("<s>", false),
    ("</s>", true),
    ("<bos>", false),
    ("<eos>", true),
    ("<|im_start|>", false),
    ("<|im_end|>", true),
    ("<|endoftext|>", true),
    ("<|begin_of_text|>", false),
    ("<|start_header_id|>", false),
    ("<|end_header_id|>", false),
    ("<|eot_id|>", true),
    ("<start_of_turn>", false),
    ("<end_of_turn>", true),
    ("<|system|>", false),
    ("<|user|>", false),
    ("<|assistant|>", false),
    ("<|end|>", true),
    ("[INST]", false),
    ("[/INST]", false),
    ("<｜User｜>", false),
    ("<｜Assistant｜>", false),
    ("<｜begin▁of▁sentence｜>", false),
    ("<｜end▁of▁sentence｜>", true),
];

/// A tokenizer of bytes and special tokens, as the content of its file.
pub(crate) fn tokenizer_json() -> Vec<u8> {
    let printable = |b: u8| (b'!'..=b'~').contains(&b) || (0xa1..=0xac).contains(&b) || b >= 0xae;
    let mut vocab = Map::new();
    let mut next = 0x100_u32;
    for byte in 0..=255_u8 {
        let code = if printable(byte) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        let name = char::from_u32(code).unwrap().to_string();
        vocab.insert(name, byte.into());
    }
    let special = |(index, (token, _)): (usize, &(&str, bool))| {
        json!({"id": 256 + index, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    };
    let added: Vec<Value> = SPECIAL.iter().enumerate().map(special).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    serde_json::to_vec(&json).unwrap()
}

/// The files of a model with this template, a name of a file without its ending.
pub(crate) fn files(template: Option<&str>) -> ModelFiles {
    let template = template.map(|name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
        let source = fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        of_source(&source, name)
    });
    let ends = SPECIAL.iter().enumerate().filter(|(_, (_, ends))| *ends);
    ModelFiles {
        tokenizer: Tokenizer::from_json(&tokenizer_json()).unwrap(),
        template,
        defaults: GenerationDefaults {
            eos: ends.map(|(index, _)| 256 + index as u32).collect(),
            ..GenerationDefaults::default()
        },
    }
}

fn of_source(source: &str, name: &str) -> ChatTemplate {
    let (bos, eos) = match name {
        name if name.starts_with("gemma") => ("<bos>", "<eos>"),
        name if name.starts_with("llama") => ("<|begin_of_text|>", "<|eot_id|>"),
        name if name.starts_with("mistral") => ("<s>", "</s>"),
        _ => ("<s>", "<|endoftext|>"),
    };
    let tokens = [("bos_token", bos), ("eos_token", eos)];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    ChatTemplate::new(source, tokens.to_vec()).unwrap()
}

fn renderer(files: &ModelFiles, loss: Loss, max_length: usize) -> Renderer<'_> {
    let date = Some("2026-11-29");
    Renderer::new(files, 300, loss, max_length, &Map::new(), date).unwrap()
}

/// What counts of each sample, by itself; a bar between what does not touch.
fn learnt(files: &ModelFiles, rendered: &Rendered) -> Vec<String> {
    let text = |sample: &Sample| {
        let mut bytes = Vec::new();
        let mut before = true;
        for (token, trained) in sample.tokens.iter().zip(&sample.trained) {
            if *trained {
                if !before && !bytes.is_empty() {
                    bytes.push(b'|');
                }
                bytes.extend_from_slice(files.tokenizer.token_bytes(*token));
            }
            before = *trained;
        }
        String::from_utf8(bytes).unwrap()
    };
    rendered.units.iter().flatten().map(text).collect()
}

fn talk() -> Vec<Value> {
    ["Two?", "Two.", "Three?", " Three é"]
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let role = if index % 2 == 0 { "user" } else { "assistant" };
            json!({"role": role, "content": text})
        })
        .collect()
}

fn chat(messages: Vec<Value>) -> Record {
    Record::Chat {
        messages,
        tools: Vec::new(),
        from: 0,
    }
}

#[track_caller]
fn check(template: &str, loss: Loss, expected: &[&str]) {
    let files = files(Some(template));
    let rendered = renderer(&files, loss, 1000).units(chat(talk()));
    let rendered = rendered.unwrap_or_else(|error| panic!("{template}: {error:?}"));
    assert_eq!(learnt(&files, &rendered), expected, "{template}");
    assert_eq!(rendered.endless, 0, "{template}");
}

#[test]
fn of_real_templates_the_assistants_turns_and_their_ends_are_learnt() {
    for (template, expected) in [
        ("smollm2", vec!["Two.<|im_end|>| Three é<|im_end|>"]),
        ("qwen2_5", vec!["Two.<|im_end|>| Three é<|im_end|>"]),
        ("llama3", vec!["Two.<|eot_id|>|Three é<|eot_id|>"]),
        ("llama3_2", vec!["Two.<|eot_id|>|Three é<|eot_id|>"]),
        ("gemma", vec!["Two.<end_of_turn>|Three é<end_of_turn>"]),
        ("gemma3", vec!["Two.<end_of_turn>|Three é<end_of_turn>"]),
        ("mistral_nemo", vec!["Two.</s>| Three é</s>"]),
        ("phi3", vec!["Two.<|end|>| Three é<|end|>\n<|endoftext|>"]),
        // Earlier turns lose their thoughts, so that each turn is a sample of its own.
        (
            "qwen3",
            vec![
                "<think>\n\n</think>\n\nTwo.<|im_end|>",
                "<think>\n\n</think>\n\n Three é<|im_end|>",
            ],
        ),
    ] {
        check(template, Loss::Assistant, &expected);
    }
}

#[test]
fn marks_of_the_template_are_the_same_spans() {
    for (template, expected) in [
        // Its marks hold the line's end that serving prompts with.
        ("qwen2_5_training", "\nTwo.<|im_end|>|\n Three é<|im_end|>"),
        ("llama3_training", "Two.<|eot_id|>|Three é<|eot_id|>"),
        ("gemma_training", "Two.<end_of_turn>|Three é<end_of_turn>"),
        ("gemma3_training", "Two.<end_of_turn>|Three é<end_of_turn>"),
        (
            "phi3_training",
            "Two.<|end|>| Three é<|end|>\n<|endoftext|>",
        ),
        (
            "qwen3_training",
            "<think>\n\n</think>\n\nTwo.<|im_end|>|<think>\n\n</think>\n\n Three é<|im_end|>",
        ),
    ] {
        check(template, Loss::Assistant, &[expected]);
    }
}

#[test]
fn an_end_outside_of_the_marks_is_learnt_too() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}\
        {% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\
        <|im_end|>\n{% endfor %}";
    let files = ModelFiles {
        template: Some(of_source(source, "")),
        ..files(None)
    };
    let rendered = renderer(&files, Loss::Assistant, 1000)
        .units(chat(talk()))
        .unwrap();
    assert_eq!(
        learnt(&files, &rendered),
        ["Two.<|im_end|>| Three é<|im_end|>"]
    );
}

#[test]
fn the_last_turn_alone_or_all_tokens_are_learnt_where_asked_for() {
    check("llama3", Loss::Completion, &["Three é<|eot_id|>"]);
    check(
        "qwen2_5_training",
        Loss::Completion,
        &["\n Three é<|im_end|>"],
    );
    let files = files(Some("llama3"));
    let rendered = renderer(&files, Loss::All, 1000)
        .units(chat(talk()))
        .unwrap();
    let sample = &rendered.units[0][0];
    assert_eq!(sample.targets(), sample.tokens.len() - 1, "but the first");
}

#[test]
fn a_turn_of_weight_0_is_not_learnt() {
    let mut messages = talk();
    messages[1]["weight"] = json!(0);
    for template in ["llama3", "llama3_training"] {
        let files = files(Some(template));
        let rendered = renderer(&files, Loss::Assistant, 1000);
        let rendered = rendered.units(chat(messages.clone())).unwrap();
        assert_eq!(
            learnt(&files, &rendered),
            ["Three é<|eot_id|>"],
            "{template}"
        );
    }
}

#[test]
fn what_users_write_does_not_become_control_tokens() {
    let files = files(Some("smollm2"));
    let mut messages = talk();
    messages[0]["content"] = json!("a<|im_end|>b");
    messages[3]["content"] = json!("c<|im_end|>d");
    let rendered = renderer(&files, Loss::Assistant, 1000)
        .units(chat(messages))
        .unwrap();
    let end = files.tokenizer.token_id("<|im_end|>").unwrap();
    let tokens = &rendered.units[0][0].tokens;
    // Of the system's turn and of the four others.
    assert_eq!(tokens.iter().filter(|token| **token == end).count(), 5);
    assert_eq!(
        learnt(&files, &rendered),
        ["Two.<|im_end|>|c<|im_end|>d<|im_end|>"]
    );
}

#[test]
fn what_cannot_be_learnt_is_refused_with_a_reason() {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    for (template, messages, expected) in [
        (
            "llama3",
            vec![message("user", "a")],
            "no turn of the assistant",
        ),
        ("llama3", vec![], "no turn of the assistant"),
        (
            "llama3",
            vec![json!({"content": "a"})],
            "message 1: it has no role",
        ),
        (
            "llama3",
            vec![message("robot", "a")],
            "the role robot is not known",
        ),
        (
            "llama3",
            vec![message("user", "a"), message("assistant", " ")],
            "says nothing",
        ),
        (
            "gemma",
            vec![
                message("system", "s"),
                message("user", "a"),
                message("assistant", "b"),
            ],
            "System role not supported",
        ),
        // It begins thoughts in the prompt, and shows none in what was said.
        (
            "deepseek_r1_distill",
            vec![message("user", "a"), message("assistant", "b")],
            "cannot be told from the prompt",
        ),
        (
            "llama3",
            vec![
                message("user", "a"),
                message("tool", "1"),
                message("assistant", "b"),
            ],
            "it uses tools",
        ),
    ] {
        let files = files(Some(template));
        let error = renderer(&files, Loss::Assistant, 1000).units(chat(messages));
        let Err(Unrendered::Bad(why)) = error else {
            panic!("{expected}: {error:?}");
        };
        assert!(why.contains(expected), "{expected}: {why}");
    }
    let files = files(None);
    let never = renderer(&files, Loss::Assistant, 1000).units(chat(talk()));
    assert!(matches!(never, Err(Unrendered::Never(_))));
}

#[test]
fn a_call_of_a_tool_is_learnt() {
    let call = json!({"type": "function", "id": "1",
        "function": {"name": "look", "arguments": "{\"at\": \"it\"}"}});
    let messages = vec![
        json!({"role": "user", "content": "Look."}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "content": "seen", "tool_call_id": "1"}),
        json!({"role": "assistant", "content": "I saw."}),
    ];
    let tool = json!({"type": "function", "function": {"name": "look", "description": "Looks.",
        "parameters": {"type": "object", "properties": {}}}});
    let record = Record::Chat {
        messages,
        tools: vec![tool],
        from: 0,
    };
    let files = files(Some("qwen2_5"));
    let rendered = renderer(&files, Loss::Assistant, 5000)
        .units(record)
        .unwrap();
    let learnt = learnt(&files, &rendered);
    assert_eq!(
        learnt,
        ["\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"it\"}}\n</tool_call><|im_end|>\
          |I saw.<|im_end|>"
            .trim_start()]
    );
}

#[test]
fn texts_end_and_only_the_completion_counts() {
    let files = files(None);
    let renderer = renderer(&files, Loss::Assistant, 1000);
    let record = Record::Completion {
        prompt: "Say".into(),
        completion: " é".into(),
    };
    let rendered = renderer.units(record).unwrap();
    assert_eq!(learnt(&files, &rendered), [" é</s>"]);
    let rendered = renderer.units(Record::Text("abc</s>".into())).unwrap();
    assert_eq!(learnt(&files, &rendered), ["bc</s>"], "one end is enough");
    let record = Record::Instruction {
        instruction: "Add".into(),
        input: "1 1".into(),
        output: "2".into(),
    };
    let rendered = renderer.units(record).unwrap();
    assert_eq!(learnt(&files, &rendered), ["2</s>"]);
}

#[test]
fn tokens_are_taken_as_they_are_and_labels_by_position() {
    let files = files(None);
    let renderer = renderer(&files, Loss::Assistant, 1000);
    let record = |ids: &[i64], labels: Option<&[i64]>| Record::Tokens {
        ids: ids.to_vec(),
        labels: labels.map(<[_]>::to_vec),
        attention: None,
    };
    let rendered = renderer
        .units(record(&[5, 6, 5], Some(&[5, -100, 5])))
        .unwrap();
    assert_eq!(rendered.units[0][0].trained, [false, false, true]);
    for (ids, labels, expected) in [
        ([5, 6, 300], None, "no token 300"),
        ([5, 6, -1], None, "no token -1"),
        ([5, 6, 7], Some([5, 6, 8].as_slice()), "label 8"),
        ([5, 6, 7], Some(&[5, 6]), "2 labels for 3"),
        ([5, 6, 7], Some(&[5, -100, -100]), "nothing in it counts"),
    ] {
        let Err(Unrendered::Bad(why)) = renderer.units(record(&ids, labels)) else {
            panic!("{expected}");
        };
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn what_is_too_long_is_cut_and_counted_and_left_out_without_its_answer() {
    let files = files(Some("llama3"));
    let whole = renderer(&files, Loss::Assistant, 1000)
        .units(chat(talk()))
        .unwrap();
    let len = whole.units[0][0].tokens.len();
    let cut = renderer(&files, Loss::Assistant, len - 1)
        .units(chat(talk()))
        .unwrap();
    assert_eq!((cut.truncated, cut.cut_away, cut.units.len()), (1, 0, 1));
    assert_eq!(learnt(&files, &cut), ["Two.<|eot_id|>|Three é"]);
    let gone = renderer(&files, Loss::Assistant, 10)
        .units(chat(talk()))
        .unwrap();
    assert_eq!((gone.truncated, gone.cut_away, gone.units.len()), (1, 1, 0));
}

#[test]
fn pairs_share_their_prompt() {
    let files = files(Some("llama3"));
    let renderer = renderer(&files, Loss::Assistant, 1000);
    let mut rejected = talk();
    rejected[3]["content"] = json!("Four");
    let answers = Answers::Chats {
        chosen: talk(),
        rejected,
        tools: Vec::new(),
        from: 3,
    };
    let rendered = renderer.units(Record::Pair(answers)).unwrap();
    assert_eq!(rendered.units.len(), 1);
    assert_eq!(
        learnt(&files, &rendered),
        ["Three é<|eot_id|>", "Four<|eot_id|>"]
    );
}

#[test]
fn a_template_that_writes_the_date_needs_one() {
    let files = files(Some("llama3_2"));
    let none = Renderer::new(&files, 300, Loss::All, 1000, &Map::new(), None);
    assert_eq!(none.err(), Some(RendererError::NoDate));
    let rendered = renderer(&files, Loss::All, 1000)
        .units(chat(talk()))
        .unwrap();
    let text = &learnt(&files, &rendered)[0];
    assert!(text.contains("Today Date: 29 Nov 2026"), "{text}");
    let variables = Map::from_iter([("unheard_of".to_owned(), json!(1))]);
    let unknown = Renderer::new(&files, 300, Loss::All, 1000, &variables, Some("2026-11-29"));
    assert!(matches!(unknown, Err(RendererError::UnknownVariable(_))));
}

#[test]
#[ignore = "writes a file for tests/goldens/make.py"]
fn writes_its_tokenizer() {
    fs::write(std::env::var("TOKENIZER").unwrap(), tokenizer_json()).unwrap();
}

#[derive(serde::Deserialize)]
struct Recorded {
    masks: Vec<Mask>,
}

#[derive(serde::Deserialize)]
struct Mask {
    template: String,
    tokens: Vec<u32>,
    said: Vec<u8>,
}

#[test]
fn masks_are_those_of_transformers_but_for_the_line_behind_the_end() {
    let recorded = include_str!("../../tests/goldens/recorded.json");
    let recorded: Recorded = serde_json::from_str(recorded).unwrap();
    assert!(recorded.masks.len() >= 6);
    for Mask {
        template,
        tokens,
        said,
    } in recorded.masks
    {
        let files = files(Some(&template));
        let rendered = renderer(&files, Loss::Assistant, 1000)
            .units(chat(talk()))
            .unwrap();
        let sample = &rendered.units[0][0];
        assert_eq!(sample.tokens, tokens, "{template}");
        for (at, (ours, theirs)) in sample.trained.iter().zip(&said).enumerate() {
            let text = files.tokenizer.token_bytes(tokens[at]);
            let behind_an_end = text == b"\n" && files.defaults.eos.contains(&tokens[at - 1]);
            // Of Phi-3's, what ends the text is marked as a turn of its own there.
            let same = *ours == (*theirs == 1) || behind_an_end;
            assert!(same, "{template}, {at}: {ours} and {theirs}");
        }
    }
}
