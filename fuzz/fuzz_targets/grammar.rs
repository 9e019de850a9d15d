//! Grammars of users: any text compiles, or is refused, in its time; and an answer that it
//! constrains comes to an end without harm to the engine.
//!
//! The first byte chooses the kind of grammar.
#![no_main]

use std::{
    panic,
    sync::{Arc, LazyLock},
};

use futures::{StreamExt, executor::block_on};
use hyprstream_engine::{
    Engine, EngineConfig, EngineHandle, Grammar, GrammarCompiler, GrammarLimits, NoObserver,
    Request, StopRules,
    fake::{self, FakeBackend, FakeOptions},
};
use libfuzzer_sys::fuzz_target;

static MODEL: LazyLock<(GrammarCompiler, EngineHandle)> = LazyLock::new(|| {
    // A panic while a grammar is compiled is caught by design, on a thread of its own; libFuzzer
    // would take it for a crash.
    let fatal = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some("grammar") {
            fatal(info);
        }
    }));
    let tokenizer = Arc::new(fake::tokenizer());
    let compiler = GrammarCompiler::new(&tokenizer, fake::VOCAB_SIZE, &[fake::EOS])
        .expect("the tokenizer has a vocabulary");
    let config = EngineConfig {
        eos: vec![fake::EOS],
        ..EngineConfig::default()
    };
    let options = FakeOptions {
        may_end: true,
        ..FakeOptions::default()
    };
    let backend = Box::new(FakeBackend::new(64, 256, options));
    let engine = Engine::start(backend, tokenizer, config, Arc::new(NoObserver));
    (compiler, engine.expect("the engine starts"))
});

fuzz_target!(|data: &[u8]| {
    let (compiler, engine) = &*MODEL;
    let [kind, rest @ ..] = data else { return };
    let text = String::from_utf8_lossy(rest).into_owned();
    let grammar = match kind % 4 {
        0 => match serde_json::from_str(&text) {
            Ok(schema) => Grammar::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Grammar::Regex(text),
        2 => Grammar::Choice(text.split('\n').map(str::to_owned).collect()),
        _ => Grammar::Lark(text),
    };
    let Ok(constraint) = compiler.compile_blocking(&grammar, &GrammarLimits::default()) else {
        return;
    };
    let request = Request {
        prompt: vec![40],
        constraint: Some(constraint),
        stop: StopRules {
            max_tokens: Some(24),
            ..StopRules::default()
        },
        ..Request::default()
    };
    // What goes wrong in a grammar while it generates ends that answer alone.
    if let Ok(mut stream) = engine.submit(request) {
        block_on(async { while stream.next().await.is_some() {} });
    }
    engine.health().expect("the engine lives");
});
