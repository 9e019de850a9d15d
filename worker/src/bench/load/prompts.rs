//! Prompts of random words.

/// Words that most vocabularies have as one token with a space before them.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

/// Makes texts that begin like no other.
pub(super) struct Words(fastrand::Rng);

impl Words {
    /// The same seed gives the same texts.
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// One of these, by lot.
    pub(super) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        match all {
            // A server with one model gets the texts that it always got.
            [only] => only,
            _ => &all[self.0.usize(0..all.len())],
        }
    }

    /// So many words.
    pub(super) fn text(&mut self, words: usize) -> String {
        let mut text = String::new();
        for at in 0..words {
            if at > 0 {
                text.push(' ');
            }
            text.push_str(WORDS[self.0.usize(0..WORDS.len())]);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_so_long_and_none_begins_like_another() {
        let mut words = Words::new(1);
        let (a, b) = (words.text(40), words.text(40));
        assert_eq!(a.split(' ').count(), 40);
        let beginning = |text: &str| text.split(' ').take(6).collect::<String>();
        assert_ne!(beginning(&a), beginning(&b));
        assert_eq!(Words::new(1).text(40), a);
    }
}
