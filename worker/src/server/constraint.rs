//! Grammars of requests, compiled for the model.

use std::sync::{Arc, OnceLock};

use hyprstream_engine::{Constraint, Grammar, GrammarCompiler, GrammarError, GrammarLimits};
use hyprstream_openai::{
    ApiError, ErrorKind, MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH, Structured, closed,
};

use super::app::App;

/// A grammar of ours holds the schemas of many tools.
const MAX_BYTES: usize = 16 * MAX_GRAMMAR_BYTES;

/// Compiles grammars off the threads that move bytes and off the engine's.
#[derive(Debug, Default)]
pub(super) struct Grammars {
    /// Made for the first grammar: it looks at every token of the vocabulary.
    compiler: OnceLock<Result<GrammarCompiler, GrammarError>>,
}

/// The engine's word for `structured`.
pub(super) fn grammar(structured: Structured) -> Grammar {
    match structured {
        Structured::JsonObject => Grammar::JsonObject,
        Structured::JsonSchema(schema) => Grammar::JsonSchema(closed(schema)),
        Structured::Regex(regex) => Grammar::Regex(regex),
        Structured::Choice(choice) => Grammar::Choice(choice),
        Structured::Lark(lark) => Grammar::Lark(lark),
    }
}

/// Compiles `grammar`, which the field `param` asks for.
///
/// # Errors
/// A 400 that names the field, or a 503 when too many are being compiled.
pub(super) async fn compile(
    app: &Arc<App>,
    grammar: Grammar,
    param: &'static str,
) -> Result<Constraint, ApiError> {
    let state = Arc::clone(app);
    let panicked = |_| ApiError::invalid(param, "the grammar cannot be compiled");
    let compiler = tokio::task::spawn_blocking(move || {
        let loaded = state.loaded()?;
        let compiler = state.grammars.compiler.get_or_init(|| {
            let (engine, tokenizer) = (&loaded.engine, &loaded.tokenizer);
            GrammarCompiler::new(tokenizer, engine.spec().vocab_size, engine.eos())
        });
        compiler.clone().map_err(|error| refusal(&error, param))
    })
    .await
    .map_err(panicked)??;
    let limits = GrammarLimits {
        max_bytes: MAX_BYTES,
        max_depth: 2 * MAX_SCHEMA_DEPTH,
        ..GrammarLimits::default()
    };
    compiler
        .compile(&grammar, &limits)
        .await
        .map_err(|error| refusal(&error, param))
}

fn refusal(error: &GrammarError, param: &str) -> ApiError {
    if matches!(error, GrammarError::Busy) {
        return ApiError::new(ErrorKind::Unavailable, error.to_string())
            .with_code("overloaded")
            .with_retry_after(std::time::Duration::from_secs(1));
    }
    // It quotes the grammar, which may be long.
    let text: String = error.to_string().chars().take(400).collect();
    ApiError::invalid(param, text).with_code("invalid_grammar")
}
