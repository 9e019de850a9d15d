//! Loads an OpenAI server over HTTP, as many users would.
//!
//! Either at a rate, with the gaps of a Poisson process, whether or not the server keeps up; or
//! with so many clients, each of which waits for its answer. Requests are streamed chat
//! completions with prompts of random words. Number, time and the size of answers are bounded.

mod client;
mod events;
mod prompts;
mod schedule;
mod tally;
mod target;

use std::{sync::Arc, time::Instant};

use anyhow::Context;
use futures::stream::{FuturesUnordered, StreamExt};

use self::{client::Client, prompts::Words, schedule::Schedule, tally::Outcome, target::Target};
use super::BenchArgs;

pub(super) use tally::LoadReport;

/// Loads the server at `url` and tells how it did.
pub(super) fn measure(url: &str, args: &BenchArgs) -> anyhow::Result<LoadReport> {
    // One thread: the processors are the server's, when it runs here.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?
        .block_on(load(url, args))
}

async fn load(url: &str, args: &BenchArgs) -> anyhow::Result<LoadReport> {
    let target = Target::resolve(url, args.load.allow_remote).await?;
    let client = Client::new(target);
    let models = match &args.load.served_name {
        Some(name) => vec![name.clone()],
        None => client.models().await?,
    };
    let asked = &models[..if args.load.every_model {
        models.len()
    } else {
        1
    }];
    let mut words = Words::new(args.seed);
    let bodies: Vec<_> = (0..args.load.requests)
        .map(|_| {
            let model = words.one_of(asked);
            client::body(model, &words.text(args.own_tokens()), args.gen_tokens)
        })
        .collect();
    let schedule = match args.load.rate {
        Some(rate) => Schedule::poisson(rate, bodies.len(), args.seed),
        None => Schedule::at_once(bodies.len()),
    };
    let clients = args.load.concurrency.map_or_else(
        || {
            if args.load.rate.is_some() {
                bodies.len()
            } else {
                1
            }
        },
        usize::from,
    );
    let started = Instant::now();
    let outcomes = send(client, bodies, &schedule, clients, args, started).await;
    let whole = outcomes.iter().filter_map(|o| o.ended).max();
    let whole = whole.map_or_else(|| started.elapsed(), |end| end - started);
    Ok(LoadReport::new(asked, args, clients, &outcomes, whole))
}

/// Sends every request at its time, at most `clients` at once.
async fn send(
    client: Client,
    bodies: Vec<bytes::Bytes>,
    schedule: &Schedule,
    clients: usize,
    args: &BenchArgs,
    started: Instant,
) -> Vec<Outcome> {
    let client = Arc::new(client);
    let deadline = tokio::time::Instant::from_std(started) + args.load.time_limit;
    let total = bodies.len();
    let mut waiting = bodies.into_iter().zip(schedule.offsets());
    let mut next = waiting.next();
    let mut running = FuturesUnordered::new();
    let mut outcomes = Vec::with_capacity(total);
    let cut_off = tokio::time::sleep_until(deadline);
    tokio::pin!(cut_off);
    while next.is_some() || !running.is_empty() {
        let due = next.as_ref().map(|(_, offset)| started + *offset);
        let may_send = due.is_some() && running.len() < clients;
        let due = tokio::time::Instant::from_std(due.unwrap_or(started));
        tokio::select! {
            biased;
            () = &mut cut_off => break,
            Some(outcome) = running.next(), if !running.is_empty() => outcomes.push(outcome),
            () = tokio::time::sleep_until(due), if may_send => {
                if let Some((body, _)) = next.take() {
                    let client = Arc::clone(&client);
                    running.push(async move { client.complete(body).await });
                }
                next = waiting.next();
            }
        }
    }
    outcomes.resize_with(total, Outcome::cut_off);
    outcomes
}
