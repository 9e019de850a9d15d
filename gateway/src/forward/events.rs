//! Where server-sent events end, so that a broken stream can be ended in good form.

use bytes::{Bytes, BytesMut};

/// Longest event that is kept back until it is complete.
const MAX_EVENT: usize = 1 << 20;

/// Lets complete events through and keeps back the beginning of one, so that a stream that breaks
/// off inside an event can still be followed by an event that says so. Workers send whole events,
/// so nothing is kept back in practice.
#[derive(Debug, Default)]
pub(super) struct Events {
    tail: BytesMut,
    /// An event too long to be kept back is on its way to the client.
    open: bool,
}

impl Events {
    /// Takes bytes from the worker and returns those that may go to the client.
    pub(super) fn push(&mut self, data: Bytes) -> Bytes {
        if self.tail.is_empty() && ends_event(&data) {
            self.open = false;
            return data;
        }
        self.tail.extend_from_slice(&data);
        // Invariant: what was in the tail before holds no end of an event, but its last three
        // bytes may begin one.
        let searched = self.tail.len().saturating_sub(data.len() + 3);
        let end = (searched + 1..=self.tail.len())
            .rev()
            .find(|&end| ends_event(&self.tail[..end]));
        if let Some(end) = end {
            self.open = false;
            return self.tail.split_to(end).freeze();
        }
        if self.tail.len() > MAX_EVENT {
            self.open = true;
            return self.tail.split().freeze();
        }
        Bytes::new()
    }

    /// What is left when the stream ends as it should.
    pub(super) fn rest(&mut self) -> Bytes {
        self.tail.split().freeze()
    }

    /// Ends a stream that broke off: an event with the error, then the end mark of the API.
    pub(super) fn broken(&mut self, error: &[u8]) -> Bytes {
        self.tail.clear();
        let close: &[u8] = if self.open { b"\n\n" } else { b"" };
        [close, b"data: ", error, b"\n\ndata: [DONE]\n\n"]
            .concat()
            .into()
    }
}

fn ends_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_byte_is_lost_and_every_prefix_is_whole_events(
            parts in proptest::collection::vec("(data: [a-c]{0,3}\n\n|\r\n\r\n|a|\n|\r)", 0..20),
            cuts in proptest::collection::vec(0_usize..80, 0..10),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| c <= text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut events = Events::default();
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                out.extend(events.push(Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]])));
                prop_assert!(out.is_empty() || ends_event(&out));
            }
            out.extend(events.rest());
            prop_assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn a_broken_stream_ends_in_whole_events() {
        let mut events = Events::default();
        assert_eq!(events.push("data: a\n\ndata: b".into()), "data: a\n\n");
        assert_eq!(events.broken(b"{}"), "data: {}\n\ndata: [DONE]\n\n");
    }

    #[test]
    fn an_endless_event_is_passed_on_and_closed_when_the_stream_breaks() {
        let mut events = Events::default();
        let long = vec![b'a'; MAX_EVENT + 1];
        assert_eq!(events.push(long.clone().into()).len(), long.len());
        assert!(events.broken(b"{}").starts_with(b"\n\ndata: {}"));
    }
}
