//! The services that the kubelet calls.

mod identity;
mod node;
mod registration;
mod socket;

pub use identity::IdentityService;
pub use node::NodeService;
pub use registration::{Outcome, RegistrationService, socket_name};
pub use socket::{bind, unlink};
