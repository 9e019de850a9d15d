//! Stop strings.

/// A part at the beginning of an answer in which stop strings mean nothing, such as thoughts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// What begins it, white space before not counting; none when the answer begins within it.
    pub open: Option<String>,
    /// What ends it.
    pub close: String,
}

/// Looks for stop strings in a text that comes in pieces, and holds back what may be the
/// beginning of one.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    /// Until it is over, or is known not to come.
    aside: Option<Follower>,
    /// Invariant: held back text is a proper beginning of a stop string, or of an answer of which
    /// it is not known yet whether it begins with an aside.
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
    /// Looks for `stops`, none of them empty, behind `aside`. With `include` the one that is found
    /// is shown.
    pub(crate) fn new(stops: Vec<String>, include: bool, aside: Option<Aside>) -> Self {
        let aside = aside.filter(|_| !stops.is_empty());
        Self {
            stops,
            include,
            aside: aside.map(Follower::new),
            held: String::new(),
        }
    }

    /// Takes the next piece. The stop string that begins first decides; of those the longest.
    pub(crate) fn push(&mut self, piece: &str) -> StopMatch {
        if self.stops.is_empty() {
            return StopMatch::None(piece.to_owned());
        }
        match self.follow(piece) {
            Progress::Unknown => {
                self.held.push_str(piece);
                StopMatch::None(String::new())
            }
            Progress::Within => StopMatch::None(self.release(piece)),
            Progress::Behind(at) => {
                let mut shown = if at > 0 {
                    self.release(&piece[..at])
                } else {
                    String::new()
                };
                match self.search(&piece[at..]) {
                    StopMatch::None(text) => {
                        shown.push_str(&text);
                        StopMatch::None(shown)
                    }
                    StopMatch::Stopped(text) => {
                        shown.push_str(&text);
                        StopMatch::Stopped(shown)
                    }
                }
            }
        }
    }

    /// Takes a piece in which no stop string is looked for.
    pub(crate) fn pass(&mut self, piece: &str) -> String {
        self.follow(piece);
        self.release(piece)
    }

    fn follow(&mut self, piece: &str) -> Progress {
        let Some(aside) = &mut self.aside else {
            return Progress::Behind(0);
        };
        let progress = aside.push(piece);
        if matches!(progress, Progress::Behind(_)) {
            self.aside = None;
        }
        progress
    }

    fn release(&mut self, piece: &str) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        text
    }

    fn search(&mut self, piece: &str) -> StopMatch {
        let mut text = self.release(piece);
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

    /// The text that was held back, for an answer that ends otherwise.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Finds the end of an aside in a text that comes in pieces.
#[derive(Debug)]
struct Follower {
    open: Option<String>,
    close: String,
    /// What came before it, and then as much of its end as may begin what ends it.
    seen: String,
}

/// Where a piece stands.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Whether there is an aside is not known.
    Unknown,
    /// All of it is in the aside.
    Within,
    /// It is behind the aside from this byte on.
    Behind(usize),
}

impl Follower {
    fn new(aside: Aside) -> Self {
        Self {
            open: aside.open,
            close: aside.close,
            seen: String::new(),
        }
    }

    fn push(&mut self, piece: &str) -> Progress {
        self.seen.push_str(piece);
        if let Some(open) = &self.open {
            let text = self.seen.trim_start();
            if let Some(rest) = text.strip_prefix(open.as_str()) {
                self.seen = rest.to_owned();
                self.open = None;
            } else if open.starts_with(text) {
                return Progress::Unknown;
            } else {
                return Progress::Behind(0);
            }
        }
        if let Some(at) = self.seen.find(&self.close) {
            let behind = self.seen.len() - at - self.close.len();
            return Progress::Behind(piece.len() - behind);
        }
        let from = self.seen.len().saturating_sub(self.close.len());
        let from = (from..=self.seen.len()).find(|at| self.seen.is_char_boundary(*at));
        self.seen.drain(..from.unwrap_or(0));
        Progress::Within
    }
}
