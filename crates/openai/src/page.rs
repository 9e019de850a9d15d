//! Lists that are answered page by page.

use serde::{Deserialize, Serialize};

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Always `list`.
    pub object: String,
    /// The entries.
    pub data: Vec<T>,
    /// Id of the first entry; `null` without any.
    #[serde(default)]
    pub first_id: Option<String>,
    /// Id of the last entry, by which the next page is asked for; `null` without any.
    #[serde(default)]
    pub last_id: Option<String>,
    /// Whether there are more entries after these.
    pub has_more: bool,
}

impl<T> Page<T> {
    /// The page of at most `limit` of the entries that follow the one with the id `after`, or of
    /// the first ones. `None` if no entry has that id.
    pub fn new(
        mut all: Vec<T>,
        id: impl Fn(&T) -> &str,
        after: Option<&str>,
        limit: usize,
    ) -> Option<Self> {
        let begin = match after {
            None => 0,
            Some(after) => all.iter().position(|entry| id(entry) == after)? + 1,
        };
        let mut data = all.split_off(begin);
        let has_more = data.len() > limit;
        data.truncate(limit);
        let own = |entry: Option<&T>| entry.map(|entry| id(entry).to_owned());
        Some(Self {
            object: "list".to_owned(),
            first_id: own(data.first()),
            last_id: own(data.last()),
            data,
            has_more,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(after: Option<&str>, limit: usize) -> Option<(Vec<String>, bool)> {
        let all = ["a", "b", "c"].map(str::to_owned).to_vec();
        let page = Page::new(all, String::as_str, after, limit)?;
        assert_eq!(page.first_id.as_ref(), page.data.first());
        assert_eq!(page.last_id.as_ref(), page.data.last());
        Some((page.data, page.has_more))
    }

    #[test]
    fn a_page_begins_after_an_entry_and_says_whether_there_are_more() {
        let texts = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        assert_eq!(page(None, 2), Some((texts(&["a", "b"]), true)));
        assert_eq!(page(Some("b"), 2), Some((texts(&["c"]), false)));
        assert_eq!(page(Some("c"), 2), Some((texts(&[]), false)));
        assert_eq!(page(Some("d"), 2), None, "there is none to go on from");
    }
}
