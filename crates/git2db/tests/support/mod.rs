//! Real git, and servers on the loopback interface, for the tests.
// Every test program uses another part of it.
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub)]

pub mod git;
pub mod http;
pub mod lfs;
pub mod secrets;

pub use git::{GitServer, Work};
pub use http::{Request, Response, Server};
pub use lfs::LfsServer;
