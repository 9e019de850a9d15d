//! Names of tensors, as they are met in files.

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `lora_A.weight`, `[rank, in]`.
    A,
    /// `lora_B.weight`, `[out, rank]`.
    B,
    /// `lora_embedding_A`, `[rank, vocab]`.
    EmbeddingA,
    /// `lora_embedding_B`, `[hidden, rank]`.
    EmbeddingB,
    /// `lora_magnitude_vector`, `[out]`.
    Magnitude,
    /// `lora_a` of MLX, `[in, rank]`.
    MlxA,
    /// `lora_b` of MLX, `[rank, out]`.
    MlxB,
    /// `m` of MLX, `[out]`.
    MlxMagnitude,
    /// A copy of a tensor of the model itself; `true` for the bias.
    Base { bias: bool },
    /// `lora_B.bias`.
    LoraBias,
    /// Of a module that was trained as a whole.
    ModulesToSave,
    /// `lora_a.weight` of torchtune, whose modules have names of their own.
    Torchtune,
    /// None of these.
    Other,
}

impl Part {
    /// How it is called after the name of its module.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A.weight",
            Self::B => "lora_B.weight",
            Self::EmbeddingA => "lora_embedding_A",
            Self::EmbeddingB => "lora_embedding_B",
            Self::Magnitude => "lora_magnitude_vector",
            Self::MlxA => "lora_a",
            Self::MlxB => "lora_b",
            Self::MlxMagnitude => "m",
            Self::Base { bias: false } => "base_layer.weight",
            Self::Base { bias: true } => "base_layer.bias",
            Self::LoraBias => "lora_B.bias",
            Self::ModulesToSave => "modules_to_save.weight",
            Self::Torchtune => "lora_a.weight",
            Self::Other => "",
        }
    }
}

/// A name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    /// The module's name in the model that was trained, such as
    /// `model.layers.0.self_attn.q_proj`.
    pub(super) module: &'a str,
    /// What it is to it.
    pub(super) part: Part,
    /// The adapter's name, where the tensor's holds it (`lora_A.default.weight`).
    pub(super) adapter: Option<&'a str>,
}

impl<'a> Key<'a> {
    /// Takes the name of a tensor apart: what PEFT puts before it, the module, the part.
    pub(super) fn parse(name: &'a str) -> Self {
        let name = name.strip_prefix("base_model.model.").unwrap_or(name);
        let mut begin = 0;
        for segment in name.split('.') {
            let end = begin + segment.len();
            let rest = name[end..].strip_prefix('.').unwrap_or_default();
            if let Some((part, adapter)) = part(segment, rest) {
                return Self {
                    module: name[..begin].trim_end_matches('.'),
                    part,
                    adapter,
                };
            }
            begin = end + 1;
        }
        let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
        let part = match last {
            "weight" => Part::Base { bias: false },
            "bias" => Part::Base { bias: true },
            "m" => Part::MlxMagnitude,
            _ => Part::Other,
        };
        Self {
            module,
            part,
            adapter: None,
        }
    }
}

/// What `segment.rest` is at the end of a name, and the adapter that it names.
fn part<'a>(segment: &str, rest: &'a str) -> Option<(Part, Option<&'a str>)> {
    let parts: Vec<&str> = rest.split('.').filter(|part| !part.is_empty()).collect();
    let matrix = |part| match parts[..] {
        ["weight"] => (part, None),
        [name, "weight"] => (part, Some(name)),
        ["bias"] | [_, "bias"] => (Part::LoraBias, None),
        _ => (Part::Other, None),
    };
    let parameter = |part| match parts[..] {
        [] | ["weight"] => (part, None),
        [name] | [name, "weight"] => (part, Some(name)),
        _ => (Part::Other, None),
    };
    let mlx = |part| match parts[..] {
        [] => (part, None),
        ["weight"] => (Part::Torchtune, None),
        _ => (Part::Other, None),
    };
    Some(match segment {
        "lora_A" => matrix(Part::A),
        "lora_B" => matrix(Part::B),
        "lora_embedding_A" => parameter(Part::EmbeddingA),
        "lora_embedding_B" => parameter(Part::EmbeddingB),
        "lora_magnitude_vector" => parameter(Part::Magnitude),
        "lora_a" => mlx(Part::MlxA),
        "lora_b" => mlx(Part::MlxB),
        "base_layer" => match parts[..] {
            ["weight"] => (Part::Base { bias: false }, None),
            ["bias"] => (Part::Base { bias: true }, None),
            _ => (Part::Other, None),
        },
        "modules_to_save" => (Part::ModulesToSave, None),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, module: &str, part: Part, adapter: Option<&str>) {
        let expected = Key {
            module,
            part,
            adapter,
        };
        assert_eq!(Key::parse(name), expected, "{name}");
    }

    #[test]
    fn names_of_real_files_are_taken_apart() {
        let q = "model.layers.3.self_attn.q_proj";
        let peft = |rest: &str| format!("base_model.model.{q}.{rest}");
        check(&peft("lora_A.weight"), q, Part::A, None);
        check(&peft("lora_B.default.weight"), q, Part::B, Some("default"));
        check(&peft("lora_magnitude_vector"), q, Part::Magnitude, None);
        check(
            &peft("lora_magnitude_vector.weight"),
            q,
            Part::Magnitude,
            None,
        );
        check(
            &peft("lora_magnitude_vector.sql.weight"),
            q,
            Part::Magnitude,
            Some("sql"),
        );
        check(&peft("lora_B.bias"), q, Part::LoraBias, None);
        check(
            &peft("base_layer.weight"),
            q,
            Part::Base { bias: false },
            None,
        );
        check(&peft("bias"), q, Part::Base { bias: true }, None);
        check(&format!("{q}.lora_a"), q, Part::MlxA, None);
        check(&format!("{q}.m"), q, Part::MlxMagnitude, None);
        let embedding = "model.embed_tokens";
        let peft = |rest: &str| format!("base_model.model.{embedding}.{rest}");
        check(&peft("lora_embedding_A"), embedding, Part::EmbeddingA, None);
        check(
            &peft("lora_embedding_B.default"),
            embedding,
            Part::EmbeddingB,
            Some("default"),
        );
        check(
            "base_model.model.lm_head.modules_to_save.weight",
            "lm_head",
            Part::ModulesToSave,
            None,
        );
        check(
            "base_model.model.layers.0.mlp.up_proj.lora_A.weight",
            "layers.0.mlp.up_proj",
            Part::A,
            None,
        );
        check(
            "layers.0.attn.q_proj.lora_a.weight",
            "layers.0.attn.q_proj",
            Part::Torchtune,
            None,
        );
        check("prompt_embeddings", "", Part::Other, None);
        check("lora_A", "", Part::Other, None);
        check("", "", Part::Other, None);
    }
}
