//! Stop strings.

/// Looks for stop strings in a text that comes in pieces, and holds back what may be the
/// beginning of one.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    /// Invariant: held back text is a proper beginning of a stop string.
    held: String,
}

/// What may be shown after a piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StopMatch {
    /// No stop string; this text is settled.
    None(String),
    /// A stop string was completed; this is all the text up to it (and itself, if so wished).
    Stopped(String),
}

impl StopMatcher {
    /// Looks for `stops`, none of them empty. With `include` the one that is found is shown.
    pub(crate) fn new(stops: Vec<String>, include: bool) -> Self {
        Self {
            stops,
            include,
            held: String::new(),
        }
    }

    /// Takes the next piece. The stop string that begins first decides; of those the longest.
    pub(crate) fn push(&mut self, piece: &str) -> StopMatch {
        if self.stops.is_empty() {
            return StopMatch::None(piece.to_owned());
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| text.find(stop.as_str()).map(|at| (at, stop.len())))
            .min_by_key(|&(at, len)| (at, std::cmp::Reverse(len)));
        if let Some((at, len)) = found {
            text.truncate(if self.include { at + len } else { at });
            return StopMatch::Stopped(text);
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest - 1);
        let hold = (from..text.len()).find(|&at| {
            text.is_char_boundary(at) && self.stops.iter().any(|s| s.starts_with(&text[at..]))
        });
        if let Some(at) = hold {
            self.held = text.split_off(at);
        }
        StopMatch::None(text)
    }

    /// Takes a piece in which no stop string is looked for.
    pub(crate) fn pass(&mut self, piece: &str) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        text
    }

    /// The text that was held back, for an answer that ends otherwise.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
