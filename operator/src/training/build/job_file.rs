use hyprstream_api::{
    AdapterType, LearningRateSchedule, LossOn, Objective, TrainingEval, TrainingMethod,
};
use hyprstream_contract::{
    training::{DATASET_DIR, OUTPUT_DIR, WORKSPACE_DIR},
    training_defaults as default,
};
use serde_json::{Map, Value, json};

use super::Plan;

/// The job as the trainer reads it (docs/training.md), with every field said, so that another
/// release's defaults change nothing of a job that runs.
pub(super) fn job_file(plan: &Plan) -> Value {
    let spec = &plan.spec;
    let method = &spec.method;
    let data = &spec.data;
    let variables: Map<String, Value> = data
        .template_variables
        .iter()
        .filter_map(|(name, text)| Some((name.clone(), serde_json::from_str(text).ok()?)))
        .collect();
    let mut job = json!({
        "model": WORKSPACE_DIR,
        "output": OUTPUT_DIR,
        "data": {
            "path": in_dataset(&spec.dataset.path),
            "loss": match data.loss_on {
                LossOn::Assistant => "assistant",
                LossOn::Completion => "completion",
                LossOn::All => "all",
            },
            "maxLength": data.max_length,
            "packing": data.packing,
            "maxBad": number(&data.max_bad_records),
            "date": plan.date,
            "templateVariables": variables,
        },
        "method": match method.objective {
            Objective::Sft => "sft",
            Objective::Dpo => "dpo",
        },
        "adapter": adapter(method),
        "training": training(method, data.max_length),
        "checkpoints": {
            "every": spec.checkpoint.every_steps,
            "keep": spec.checkpoint.keep,
        },
        "seed": method.seed,
    });
    // For the other objective it is refused.
    if method.objective == Objective::Dpo {
        job["beta"] = or(method.beta.as_deref(), default::DPO_BETA);
    }
    if let Some(eval) = eval(&spec.eval) {
        job["eval"] = eval;
    }
    job
}

fn adapter(method: &TrainingMethod) -> Value {
    let mut adapter = Map::new();
    let mut set = |name: &str, value: Value| adapter.insert(name.to_owned(), value);
    let dropout = or(method.dropout.as_deref(), default::DROPOUT);
    set("dropout", dropout);
    if let Some(from) = &method.from {
        set("from", json!(format!("{WORKSPACE_DIR}/{from}")));
        return Value::Object(adapter);
    }
    set("rank", json!(rank(method)));
    set("alpha", or(method.alpha.as_deref(), default::ALPHA));
    let targets = if method.target_modules.is_empty() {
        json!("all-linear")
    } else {
        json!(method.target_modules)
    };
    set("targets", targets);
    set("rsLora", json!(method.rs_lora.unwrap_or_default()));
    set("dora", json!(method.adapter_type == AdapterType::DoRA));
    Value::Object(adapter)
}

/// Rows of each A.
pub(super) fn rank(method: &TrainingMethod) -> u32 {
    method.rank.map_or(default::RANK, i32::unsigned_abs)
}

fn training(method: &TrainingMethod, max_length: i32) -> Value {
    let rate = match method.objective {
        Objective::Sft => default::SFT_LEARNING_RATE,
        Objective::Dpo => default::DPO_LEARNING_RATE,
    };
    let tokens = default::MICRO_BATCH_TOKENS.max(max_length.unsigned_abs());
    let tokens = method.micro_batch_tokens.map_or(tokens, i32::unsigned_abs);
    let mut training = json!({
        "microBatchTokens": tokens,
        "learningRate": or(method.learning_rate.as_deref(), rate),
        "batch": method.batch_size,
        "warmup": number(&method.warmup_ratio),
        "decay": match method.schedule {
            LearningRateSchedule::Cosine => "cosine",
            LearningRateSchedule::Linear => "linear",
            LearningRateSchedule::Constant => "constant",
        },
        "optimiser": {
            "weightDecay": number(&method.weight_decay),
            "clip": number(&method.max_grad_norm),
        },
    });
    if let Some(steps) = method.steps {
        training["steps"] = json!(steps);
    } else {
        let epochs = method.epochs.map_or(default::EPOCHS, i32::unsigned_abs);
        training["epochs"] = json!(epochs);
    }
    training
}

fn eval(eval: &TrainingEval) -> Option<Value> {
    let mut value = match (&eval.fraction, eval.records, &eval.path) {
        (Some(fraction), ..) => json!({"fraction": number(fraction)}),
        (None, Some(records), _) => json!({"records": records}),
        (None, None, Some(path)) => json!({"path": in_dataset(path)}),
        (None, None, None) => return None,
    };
    if let Some(every) = eval.every_steps {
        value["every"] = json!(every);
    }
    if let Some(patience) = eval.patience {
        value["patience"] = json!(patience);
    }
    value["keepBest"] = json!(eval.keep_best);
    Some(value)
}

/// Where a path of the dataset is in the pod.
pub(super) fn in_dataset(path: &str) -> String {
    match path {
        "." => DATASET_DIR.to_owned(),
        path => format!("{DATASET_DIR}/{path}"),
    }
}

/// What the spec says, or else what it is by itself.
fn or(said: Option<&str>, default: f64) -> Value {
    said.map_or_else(|| json!(default), number)
}

/// What the schema of the kind let in is a number; what is none stays the text that it is, which the
/// trainer refuses by its field's name.
fn number(text: &str) -> Value {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => json!(number),
        _ => json!(text),
    }
}
