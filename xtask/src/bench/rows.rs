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
    /// Sequences that have so many adapters in turn, against the same without adapters or a peer
    /// with one.
    Adapters {
        adapters: usize,
        part: Part,
        batch: usize,
    },
    /// The time from asking a server for an adapter in a folder until it answers by it, against what
    /// it may be.
    AdapterLoad,
    /// The 99th percentile of the times between tokens of so many streams while adapters are loaded,
    /// one after the other, against the same without.
    AdapterLoads { streams: usize, tokens: usize },
    /// The longest that a request of many over so many adapters, drawn by lot, waits for a token
    /// where the server computes with no more than so many of them at a time, against what it may.
    AdapterCrowd {
        adapters: usize,
        resident: usize,
        requests: usize,
        streams: usize,
    },
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Prefill { tokens: usize },
    Decode { context: usize, tokens: usize },
}

/// The rank of all adapters, which lie on all linear layers.
pub(super) const RANK: usize = 16;

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
    adapters: usize,
    requests: usize,
}

const WHOLE: Sizes = Sizes {
    prefill: 512,
    context: 128,
    long_context: 4096,
    tokens: 64,
    shared: 1000,
    adapters: 100,
    requests: 1000,
};
const QUICK: Sizes = Sizes {
    prefill: 64,
    context: 16,
    long_context: 256,
    tokens: 8,
    shared: 100,
    adapters: 10,
    requests: 20,
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
    let mut rows = vec![
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
    ];
    rows.extend(with_adapters(&sizes));
    rows
}

/// What adapters cost.
fn with_adapters(sizes: &Sizes) -> Vec<Row> {
    let row = |name, work, peers, bar| Row {
        name,
        model: Model::SmolLm2,
        form: Form::Bf16,
        work,
        peers,
        bar,
    };
    let decode = Part::Decode {
        context: sizes.context,
        tokens: sizes.tokens,
    };
    let prefill = Part::Prefill {
        tokens: sizes.prefill,
    };
    let work = |adapters, part, batch| Work::Adapters {
        adapters,
        part,
        batch,
    };
    vec![
        row(
            "adapter decode B=1 cost",
            work(1, decode, 1),
            &[],
            Bar::AtLeast(0.93),
        ),
        row(
            "adapter decode B=1 beside",
            work(1, decode, 1),
            &[Peer::Llama],
            Bar::AtLeast(1.1),
        ),
        row(
            "adapters decode B=8",
            work(8, decode, 8),
            &[],
            Bar::AtLeast(0.9),
        ),
        row(
            "adapters decode B=32",
            work(8, decode, 32),
            &[],
            Bar::AtLeast(0.9),
        ),
        row(
            "adapter prefill",
            work(1, prefill, 1),
            &[],
            Bar::AtLeast(0.9),
        ),
        row("adapter load", Work::AdapterLoad, &[], Bar::AtMost(1.0)),
        row(
            "adapter loads p99 gap",
            Work::AdapterLoads {
                streams: 8,
                tokens: 4 * sizes.tokens,
            },
            &[],
            Bar::AtMost(2.0),
        ),
        row(
            "adapter crowd longest wait",
            Work::AdapterCrowd {
                adapters: sizes.adapters,
                resident: 8,
                requests: sizes.requests,
                streams: 8,
            },
            &[],
            Bar::AtMost(1.0),
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
            Self::Adapters {
                adapters,
                part: Part::Prefill { tokens },
                batch,
            } => format!("prompt {tokens} x {batch}, {adapters} adapters of rank {RANK}"),
            Self::Adapters {
                adapters,
                part: Part::Decode { context, tokens },
                batch,
            } => format!(
                "{tokens} tokens x {batch} behind {context}, {adapters} adapters of rank {RANK}"
            ),
            Self::AdapterLoad => format!("rank {RANK}, from its folder"),
            Self::AdapterLoads { streams, tokens } => {
                format!("{streams} streams of {tokens} tokens, rank {RANK}")
            }
            Self::AdapterCrowd {
                adapters,
                resident,
                requests,
                streams,
            } => format!(
                "{requests} requests, {streams} at a time, {adapters} adapters of rank {RANK}, \
                 {resident} resident"
            ),
        }
    }

    /// What the figures are.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::SharedPrefix { .. }
            | Self::AdapterLoad
            | Self::AdapterLoads { .. }
            | Self::AdapterCrowd { .. } => "s",
            _ => "tok/s",
        }
    }
}
