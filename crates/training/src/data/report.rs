//! What was seen of a data set.

use std::{collections::BTreeSet, path::PathBuf};

use serde::Serialize;

use super::At;

/// Most bad records that are named.
const NAMED: usize = 10;

/// What was seen of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// SHA-256 in hexadecimal: of the file, or for a folder of its files' names and digests.
    pub digest: String,
    /// Lines or rows, blank lines apart.
    pub records: u64,
    /// Samples, or pairs, that were made of them.
    pub samples: u64,
    /// Tokens of all samples.
    pub tokens: u64,
    /// Tokens that count.
    pub targets: u64,
    /// Records that could not be used.
    pub bad: u64,
    /// The first of those.
    pub named: Vec<BadRecord>,
    /// Samples that were cut at the maximal length.
    pub truncated: u64,
    /// Samples, or pairs, that were left out because nothing that counts was left of them then.
    pub cut_away: u64,
    /// Answers that end without a token by which serving would stop.
    pub endless: u64,
    /// Records whose prompt and answer are texts, which were joined as they are though the model has
    /// a chat template, through which it will be asked.
    pub joined: u64,
    /// Columns that say nothing here.
    pub ignored: BTreeSet<String>,
    /// Files of the folder or pattern that were not read, because the job names them for something
    /// else: it is judged by them, or learns from them.
    pub left_out: Vec<String>,
    /// Whether the file is learnt from and judged by.
    pub is_shared: bool,
}

/// A record that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BadRecord {
    /// Its file.
    pub path: PathBuf,
    /// Its line or row, from 1.
    pub number: u64,
    /// Why.
    pub why: String,
}

impl Report {
    pub(super) fn bad(&mut self, at: At<'_>, why: String) {
        self.bad += 1;
        if self.named.len() < NAMED {
            self.named.push(BadRecord {
                path: at.path.to_owned(),
                number: at.number,
                why,
            });
        }
    }

    pub(super) fn note_ignored<'f>(&mut self, names: impl Iterator<Item = &'f str>) {
        for name in names {
            if !self.ignored.contains(name) {
                self.ignored.insert(name.to_owned());
            }
        }
    }

    /// What to do about [`Self::joined`], if anything.
    #[must_use]
    pub fn joined_advice(&self) -> Option<&'static str> {
        (self.joined > 0).then_some(
            "prompt and answer of a record are texts, which are joined as they are, without the \
             chat template of the model: what is asked through the template learns little of it; \
             write messages, or lists of messages for prompt and answer",
        )
    }

    /// The first bad records in words.
    #[must_use]
    pub fn first_bad(&self) -> String {
        let each = self.named.iter().map(|bad| {
            let name = bad.path.file_name().unwrap_or_default().to_string_lossy();
            format!("{name}:{}: {}", bad.number, bad.why)
        });
        let all: Vec<String> = each.collect();
        all.join("; ")
    }
}
