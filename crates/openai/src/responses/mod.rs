//! `/v1/responses`, as far as it needs no storage: every request carries its whole conversation.

mod input;
mod request;
mod response;

pub use request::ResponseRequest;
pub use response::{
    IncompleteDetails, InputTokensDetails, OutputContent, OutputItem, OutputTokensDetails,
    Response, ResponseUsage, Sampled, SummaryPart, event,
};

#[cfg(test)]
mod tests;
