//! `serve` and `chat`: a model on this machine.

use crate::{
    chat::{Client, Opening, Session},
    credentials::CredentialArgs,
    failure::{Failure, Kind},
    home::Home,
    output::{self, Output},
    progress::spinner,
    reference::{Named, suffix},
    server::{Server, WorkerOptions},
};

/// Serves a model with the OpenAI API until it is told to stop.
// The worker's options beside these have a group of that name, too.
#[derive(Debug, clap::Args)]
#[group(id = "serve")]
pub(crate) struct ServeArgs {
    /// NAME[:BRANCH[:COMMIT]], a folder, or URL[@REF], which is cloned if it is not here.
    #[arg(value_name = "REF")]
    reference: Named,
    /// Who we are to the server that files come from.
    #[command(flatten)]
    credentials: CredentialArgs,
    /// How the model is run.
    #[command(flatten)]
    pub(crate) worker: WorkerOptions,
}

/// Talks with a model in the terminal.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    /// NAME[:BRANCH[:COMMIT]], a folder, or URL[@REF], each with +ADAPTER[@SCALE] behind it. With
    /// --endpoint the name of the model there.
    #[arg(value_name = "REF")]
    reference: String,
    /// An OpenAI endpoint that answers in place of this machine, with its /v1. A key for it is
    /// read from OPENAI_API_KEY.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    #[command(flatten)]
    opening: Opening,
    /// Who we are to the server that files come from.
    #[command(flatten)]
    credentials: CredentialArgs,
    /// How the model is run.
    #[command(flatten)]
    pub(crate) worker: WorkerOptions,
}

/// Runs `serve`.
pub(crate) fn serve(home: &Home, args: ServeArgs, output: Output) -> Result<(), Failure> {
    if !args.reference.adapters.is_empty() {
        return Err(Failure::usage(
            "a server has all adapters of its commit: name them in requests",
        )
        .hint(format!(
            "serve the model alone, and ask for \"NAME{}\"",
            suffix(&args.reference.adapters)
        )));
    }
    args.worker.init_logs()?;
    let served = home.serve(&args.reference.model, args.worker.name(), &args.credentials)?;
    let mut server = Server::start(args.worker, &served)?;
    let loading = spinner(&format!("loading {}", served.name));
    let ready = server.wait_ready();
    loading.finish_and_clear();
    if !ready? {
        return Err(interrupted());
    }
    let told = serde_json::json!({
        "model": served.name,
        "endpoint": server.endpoint(),
        "commit": served.provenance.as_ref().map(|found| found.commit.clone()),
    });
    output.print(&told, |_| {
        let commit = served.provenance.as_ref().map_or(String::new(), |found| {
            format!(" (commit {})", output::short(&found.commit))
        });
        format!(
            "{}{commit} answers at {}; Ctrl-C ends it",
            served.name,
            server.endpoint()
        )
    })?;
    server.run()
}

/// Runs `chat`.
pub(crate) fn chat(home: &Home, mut args: ChatArgs, output: Output) -> Result<(), Failure> {
    args.worker.init_logs()?;
    if let Some(endpoint) = &args.endpoint {
        let key = std::env::var("OPENAI_API_KEY").ok();
        return remote(endpoint, key, args.reference, args.opening, output);
    }
    let named: Named = args.reference.parse().map_err(Failure::usage)?;
    let served = home.serve(&named.model, args.worker.name(), &args.credentials)?;
    let key = args.worker.key();
    // Small models have long tails, and most files of models say nothing about them.
    args.opening.sampling.min_p.get_or_insert(0.05);
    let mut server = Server::start(args.worker.on_any_port(), &served)?;
    let loading = spinner(&format!("loading {}", served.name));
    let ready = server.wait_ready();
    loading.finish_and_clear();
    if !ready? {
        return Err(interrupted());
    }
    let model = format!("{}{}", served.name, suffix(&named.adapters));
    let client = Client::new(&server.endpoint(), key, model)?;
    Session::new(server.runtime(), client, args.opening, output.json).run()
}

/// Talks with a model that another machine serves.
pub(crate) fn remote(
    endpoint: &str,
    key: Option<String>,
    model: String,
    opening: Opening,
    output: Output,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(error.to_string()))?;
    let client = Client::new(endpoint, key, model)?;
    Session::new(&runtime, client, opening, output.json).run()
}

fn interrupted() -> Failure {
    Failure::new(Kind::Interrupted, "interrupted")
}
