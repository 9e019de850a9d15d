//! A conversation in the terminal with whatever answers the OpenAI API.

mod client;
mod events;
mod session;

pub(crate) use client::Client;
pub(crate) use session::{Opening, Session};
