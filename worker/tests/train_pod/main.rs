//! `train --pod` as a process, with the registry as another, and git as whoever looks at it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "all of it is tests")]

mod bench;
mod ends;
mod place;
mod registry;
