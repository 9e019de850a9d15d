//! From a user's grammar to one that runs.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use llguidance::{
    ParserFactory,
    api::TopLevelGrammar,
    toktrie::{InferenceCapabilities, TokEnv},
};
use serde_json::{Value, json};
use tokio::{
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{Grammar, GrammarError, GrammarLimits, matcher::Matcher, trie::token_environment};
use crate::text::Tokenizer;

/// Most grammars that are compiled at once, those given up included.
const MAX_COMPILING: usize = 2;

/// Most grammars that are kept.
const MAX_KEPT: usize = 32;

/// Grammars are compiled by recursion; their depth is bounded, and this is far beyond that.
const STACK_BYTES: usize = 16 << 20;

/// Compiles grammars for one model. Cheap to clone.
#[derive(Clone)]
pub struct GrammarCompiler {
    inner: Arc<Inner>,
}

struct Inner {
    factory: ParserFactory,
    turns: Arc<Semaphore>,
    under_way: Mutex<Vec<(Grammar, Compiling)>>,
    /// The latest used last.
    kept: Mutex<VecDeque<(Grammar, Constraint)>>,
}

/// The end of a compilation, for everybody who waits for it.
type Compiling = Shared<BoxFuture<'static, Result<Constraint, GrammarError>>>;

impl GrammarCompiler {
    /// A compiler for the model that `tokenizer` belongs to, with logits of length `vocab_size`
    /// and the tokens `eos` that end its answers.
    ///
    /// # Errors
    /// [`GrammarError::Tokenizer`].
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        eos: &[u32],
    ) -> Result<Self, GrammarError> {
        let environment = token_environment(tokenizer, vocab_size, eos)?;
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| GrammarError::Tokenizer(first_line(&error)))?;
        factory.quiet();
        // Errors go to users and must not repeat their whole grammar.
        factory.limits_mut().verbose_errors = false;
        Ok(Self {
            inner: Arc::new(Inner {
                factory,
                turns: Arc::new(Semaphore::new(MAX_COMPILING)),
                under_way: Mutex::default(),
                kept: Mutex::default(),
            }),
        })
    }

    /// Compiles `grammar`, or takes it from those that were compiled lately. It waits up to
    /// [`GrammarLimits::timeout`] for its turn, and as long for the compilation, on no thread of
    /// the caller's. Whoever drops the future leaves the queue; what was begun goes on, and those
    /// who ask for the same grammar meanwhile wait for that.
    ///
    /// # Errors
    /// The grammar is wrong, or beyond `limits`, or others take too long.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    pub async fn compile(
        &self,
        grammar: &Grammar,
        limits: &GrammarLimits,
    ) -> Result<Constraint, GrammarError> {
        limits.check(grammar)?;
        if let Some(kept) = self.inner.take_kept(grammar) {
            return Ok(kept);
        }
        let begun = timeout(limits.timeout, self.begin(grammar)).await;
        let compiling = begun.map_err(|_| GrammarError::Busy)??;
        timeout(limits.timeout, compiling)
            .await
            .map_err(|_| GrammarError::Timeout(limits.timeout))?
    }

    /// As [`Self::compile`], on the caller's thread, which has no runtime.
    ///
    /// # Errors
    /// As there.
    pub fn compile_blocking(
        &self,
        grammar: &Grammar,
        limits: &GrammarLimits,
    ) -> Result<Constraint, GrammarError> {
        let runtime = runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|_| GrammarError::Busy)?;
        runtime.block_on(self.compile(grammar, limits))
    }

    #[cfg(test)]
    pub(super) fn turns(&self) -> Arc<Semaphore> {
        Arc::clone(&self.inner.turns)
    }

    /// The compilation of `grammar`: the one that is under way, or a new one when it is its turn.
    async fn begin(&self, grammar: &Grammar) -> Result<Compiling, GrammarError> {
        let inner = &self.inner;
        if let Some(compiling) = inner.find_under_way(grammar) {
            return Ok(compiling);
        }
        let turn = Arc::clone(&inner.turns).acquire_owned().await;
        let turn = turn.map_err(|_| GrammarError::Busy)?;
        if let Some(kept) = inner.take_kept(grammar) {
            return Ok(async { Ok(kept) }.boxed().shared());
        }
        let (sender, receiver) = oneshot::channel();
        let compiling = async {
            let panicked = |_| GrammarError::Invalid("its compilation panicked".to_owned());
            receiver.await.map_err(panicked)?
        };
        let compiling = compiling.boxed().shared();
        {
            let mut under_way = inner.under_way();
            // Another may have begun it while this one waited.
            if let Some((_, other)) = under_way.iter().find(|(other, _)| other == grammar) {
                return Ok(other.clone());
            }
            under_way.push((grammar.clone(), compiling.clone()));
        }
        let turn = Turn {
            inner: Arc::clone(inner),
            grammar: grammar.clone(),
            _permit: turn,
        };
        // A thread of its own, so that one that takes too long can be given up. It ends when
        // llguidance's own limits are met, and has its turn until then.
        thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let compiled = turn.inner.build(&turn.grammar);
                if let Ok(constraint) = &compiled {
                    turn.inner.keep(turn.grammar.clone(), constraint.clone());
                }
                drop(turn);
                // Maybe nobody listens any more.
                let _ = sender.send(compiled);
            })
            .map_err(|_| GrammarError::Busy)?;
        Ok(compiling)
    }
}

/// The right to compile one grammar, which is under way as long as this lives.
struct Turn {
    inner: Arc<Inner>,
    grammar: Grammar,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = self.inner.under_way();
        under_way.retain(|(other, _)| *other != self.grammar);
    }
}

impl Inner {
    fn build(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        let invalid = |error: &dyn fmt::Display| GrammarError::Invalid(first_line(error));
        let grammar = top_level(grammar)?;
        let parser = self
            .factory
            .create_parser(grammar)
            .map_err(|e| invalid(&e))?;
        let matcher = llguidance::Matcher::new(Ok(parser));
        if let Some(error) = matcher.get_error() {
            return Err(invalid(&error));
        }
        Ok(Constraint {
            fresh: Arc::new(Mutex::new(matcher)),
            environment: self.factory.tok_env().clone(),
        })
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Grammar, Constraint)>> {
        // What it holds is whole at every moment.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, Vec<(Grammar, Compiling)>> {
        // What it holds is whole at every moment.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn find_under_way(&self, grammar: &Grammar) -> Option<Compiling> {
        let under_way = self.under_way();
        let found = under_way.iter().find(|(other, _)| other == grammar);
        found.map(|(_, compiling)| compiling.clone())
    }

    fn take_kept(&self, grammar: &Grammar) -> Option<Constraint> {
        let mut kept = self.kept();
        let at = kept.iter().position(|(other, _)| other == grammar)?;
        let entry = kept.remove(at)?;
        let constraint = entry.1.clone();
        kept.push_back(entry);
        Some(constraint)
    }

    fn keep(&self, grammar: Grammar, constraint: Constraint) {
        let mut kept = self.kept();
        kept.retain(|(other, _)| *other != grammar);
        if kept.len() >= MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back((grammar, constraint));
    }
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    Ok(match grammar {
        Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(on_one_line(schema)),
        Grammar::JsonObject => {
            TopLevelGrammar::from_json_schema(on_one_line(&json!({"type": "object"})))
        }
        Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
        Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        Grammar::Choice(texts) => {
            if texts.is_empty() || texts.iter().any(String::is_empty) {
                let why = "a choice needs texts that are not empty";
                return Err(GrammarError::Invalid(why.to_owned()));
            }
            // Lark's strings are written like JSON's.
            let quoted: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
        }
    })
}

/// The schema, for JSON without line breaks and with at most one space after a separator. White
/// space without end is allowed in JSON, and small models do not find out of it.
fn on_one_line(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(members) = schema.as_object_mut() {
        members.entry("x-guidance").or_insert_with(|| {
            json!({
                "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
            })
        });
    }
    schema
}

fn first_line(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().chars().take(300).collect()
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrammarCompiler")
    }
}

/// A compiled grammar, for any number of requests. Cheap to clone.
#[derive(Clone)]
pub struct Constraint {
    /// Has accepted nothing yet.
    fresh: Arc<Mutex<llguidance::Matcher>>,
    environment: TokEnv,
}

impl Constraint {
    /// A matcher at the beginning of the text. It shares no state with others, so that what one
    /// answer makes of a grammar (its lexer grows as it goes) neither slows nor ends another.
    pub(crate) fn start(&self) -> Matcher {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        Matcher::new(fresh.deep_clone(), self.environment.clone())
    }

    #[cfg(test)]
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fresh, &other.fresh)
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}
