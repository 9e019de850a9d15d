//! Server-sent events out of pieces of any size.

/// Collects bytes and gives the data of whole events.
#[derive(Debug, Default)]
pub(super) struct Events {
    pending: Vec<u8>,
}

impl Events {
    /// The data of the events that `bytes` completed.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.strip_prefix("data:") {
                found.push(data.trim().to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_do_not_depend_on_how_they_are_cut() {
        let text = "data: {\"a\": \"ä\"}\n\n: kept alive\r\n\r\ndata:[DONE]\r\n\r\n".as_bytes();
        for cut in 1..text.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in text.chunks(cut) {
                found.extend(events.take(piece));
            }
            assert_eq!(found, ["{\"a\": \"ä\"}", "[DONE]"], "{cut}");
        }
    }
}
