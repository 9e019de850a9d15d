//! `kubectl hyprstream`: what people do with the cluster that they are logged in to.
//!
//! All of it goes through `kubectl` itself, which knows the user's context and identity; this
//! program sees no credentials of the cluster.

mod forward;
mod models;
mod push;
mod run;

use clap::{Parser, Subcommand};

use crate::{chat::Opening, commands::serve, failure::Failure, output::Output};
use run::Kubectl;

/// Models on a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(name = "kubectl-hyprstream", bin_name = "kubectl hyprstream", version)]
pub(crate) struct Args {
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Namespace; by default that of the context.
    #[arg(long, short, global = true)]
    namespace: Option<String>,
    /// Namespace that hyprstream is installed in; by default it is looked for.
    #[arg(long, global = true, value_name = "NAMESPACE")]
    system_namespace: Option<String>,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists Models with what they serve.
    Models(models::ModelsArgs),
    /// Shows the logs of a Model's workers.
    Logs(models::LogsArgs),
    /// Talks with a Model in the terminal.
    Chat(ChatArgs),
    /// Makes a folder a repository of the cluster's registry, or pushes what changed in it.
    Push(push::PushArgs),
}

#[derive(Debug, clap::Args)]
struct ChatArgs {
    /// MODEL[+ADAPTER[@SCALE]]..., of the namespace.
    #[arg(value_name = "MODEL")]
    reference: String,
    /// Key of the gateway, where it asks for one.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    #[command(flatten)]
    opening: Opening,
}

/// Runs the plugin.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let output = Output { json: args.json };
    let kubectl = Kubectl::new(args.context, args.namespace, args.system_namespace);
    match args.command {
        Command::Models(args) => models::models(&kubectl, &args, output),
        Command::Logs(args) => models::logs(&kubectl, &args),
        Command::Push(args) => push::push(&kubectl, &args, output),
        Command::Chat(args) => {
            let gateway = kubectl.system_service("gateway")?;
            let forward = forward::Forward::to(&kubectl, &gateway)?;
            let model = match args.reference.split_once('/') {
                Some(_) => args.reference,
                None => format!("{}/{}", kubectl.namespace()?, args.reference),
            };
            let endpoint = format!("http://{}/v1", forward.address());
            serve::remote(&endpoint, args.api_key, model, args.opening, output)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }
}
