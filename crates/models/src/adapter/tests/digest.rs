//! What an adapter's digest depends on.

use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;

fn files() -> Files {
    Files::peft(&TIED, &["q_proj", "up_proj"])
}

#[test]
fn it_is_of_this_form() {
    let text = files().read(&TIED).digest().to_string();
    assert_eq!(text.len(), 64);
    assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[test]
fn all_that_changes_the_answers_changes_it() {
    let moved = files().renamed(|name| {
        let (one, other) = ("layers.0.", "layers.1.");
        if name.contains(one) {
            name.replace(one, other)
        } else {
            name.replace(other, one)
        }
    });
    let mut exchanged = files();
    let [first, second] = [
        "layers.0.mlp.up_proj.lora_A.weight",
        "layers.1.mlp.up_proj.lora_A.weight",
    ]
    .map(|name| exchanged.tensor(name));
    exchanged = exchanged
        .changed("layers.0.mlp.up_proj.lora_A.weight", |t| *t = second)
        .changed("layers.1.mlp.up_proj.lora_A.weight", |t| *t = first);
    let mut longer = files().with("target_modules", json!(["q_proj", "up_proj", "lm_head"]));
    longer.add(&TIED, "lm_head", 2);
    let variants = [
        files(),
        files().with("lora_alpha", 5),
        files().with("use_rslora", true),
        files().with("alpha_pattern", json!({"q_proj": 5})),
        files().changed("layers.1.mlp.up_proj.lora_B.weight", |t| {
            t.values[95] += 0.5;
        }),
        files()
            .renamed(|name| name.replace("up_proj", "gate_proj"))
            .with("target_modules", json!(["q_proj", "gate_proj"])),
        moved,
        exchanged,
        longer,
    ];
    let digests: BTreeSet<_> = variants
        .iter()
        .map(|files| files.read(&TIED).digest())
        .collect();
    assert_eq!(digests.len(), variants.len());
}

#[test]
fn options_without_effect_and_other_ways_to_the_same_scale_do_not_change_it() {
    let plain = files().read(&TIED).digest();
    for other in [
        files()
            .with("lora_dropout", 0.3)
            .with("peft_version", "0.21.2"),
        files()
            .with("inference_mode", true)
            .with("auto_mapping", json!({"a": 1})),
        files().with("target_modules", r".*\.(q_proj|up_proj)"),
        files().with("target_modules", "all-linear").with(
            "exclude_modules",
            r".*(k_proj|v_proj|o_proj|gate_proj|down_proj)",
        ),
        files()
            .with("lora_alpha", 100)
            .with("alpha_pattern", json!({".*_proj": 4})),
        files().with("rank_pattern", json!({"q_proj": 2})),
        files().with("base_model_name_or_path", "somewhere/else"),
        files()
            .with("eva_config", json!({"rho": 2.0}))
            .with("init_lora_weights", "eva"),
    ] {
        assert_eq!(other.read(&TIED).digest(), plain, "{}", other.config);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn neither_order_nor_spelling_nor_type_matters(
        keys in vec(any::<u32>(), 8),
        root in 0..4_usize,
        named in any::<bool>(),
        types in vec(0..3_usize, 8),
    ) {
        let plain = files().read(&TIED).digest();
        let mut other = files().renamed(|name| {
            let before = ["", "base_model.model.", "base_model.model.model.language_", ""][root];
            let name = name.replace("base_model.model.", before);
            if named {
                name.replace("lora_A", "lora_A.sql").replace("lora_B", "lora_B.sql")
            } else {
                name
            }
        });
        let mut order: Vec<_> = (0..8).collect();
        order.sort_by_key(|index| keys[*index]);
        other.tensors = order.iter().map(|index| other.tensors[*index].clone()).collect();
        for ((_, tensor), kind) in other.tensors.iter_mut().zip(types) {
            tensor.dtype = [StoredType::F32, StoredType::F16, StoredType::BF16][kind];
        }
        prop_assert_eq!(other.read(&TIED).digest(), plain);
    }

    #[test]
    fn every_bit_of_every_number_matters(tensor in 0..8_usize, at in any::<usize>(), bit in 0..32_u32) {
        let plain = files().read(&TIED).digest();
        let mut other = files();
        let values = &mut other.tensors[tensor].1.values;
        let at = at % values.len();
        values[at] = f32::from_bits(values[at].to_bits() ^ (1_u32 << bit));
        prop_assume!(values[at].is_finite());
        prop_assert_ne!(other.read(&TIED).digest(), plain);
    }
}
