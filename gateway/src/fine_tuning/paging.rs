//! What is asked of a list by its query.

use std::collections::BTreeMap;

use hyprstream_openai::{ApiError, Page, excerpt};

/// The query of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Paging {
    /// Id of the entry after which the page begins.
    pub(super) after: Option<String>,
    /// Most entries.
    pub(super) limit: usize,
    /// What else the list knows.
    pub(super) others: BTreeMap<String, String>,
}

impl Paging {
    /// The query of a request; `knows` says which other parameters the list has.
    ///
    /// # Errors
    /// A 400 that names the parameter at fault.
    pub(super) fn read(
        query: Option<&str>,
        default: usize,
        most: usize,
        knows: impl Fn(&str) -> bool,
    ) -> Result<Self, ApiError> {
        let mut paging = Self {
            limit: default,
            ..Self::default()
        };
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        for (name, value) in pairs {
            match &*name {
                "after" => paging.after = Some(value.into_owned()),
                "limit" => {
                    let limit = value.parse().ok().filter(|n| (1..=most).contains(n));
                    let why = format!("must be a whole number from 1 to {most}");
                    paging.limit = limit.ok_or_else(|| ApiError::invalid("limit", why))?;
                }
                name if knows(name) => {
                    paging.others.insert(name.to_owned(), value.into_owned());
                }
                name => {
                    let why = "is not a parameter of this list";
                    return Err(
                        ApiError::invalid(excerpt(name), why).with_code("unknown_parameter")
                    );
                }
            }
        }
        Ok(paging)
    }

    /// The page of these entries.
    ///
    /// # Errors
    /// No entry has the id `after`.
    pub(super) fn page<T>(
        &self,
        all: Vec<T>,
        id: impl Fn(&T) -> &str,
    ) -> Result<Page<T>, ApiError> {
        Page::new(all, id, self.after.as_deref(), self.limit)
            .ok_or_else(|| ApiError::invalid("after", "is not the id of an entry of this list"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_strictly() {
        let read = |query| Paging::read(Some(query), 20, 100, |name| name == "order");
        let paging = read("after=a%20b&limit=7&order=asc").unwrap();
        assert_eq!((paging.after.as_deref(), paging.limit), (Some("a b"), 7));
        assert_eq!(paging.others["order"], "asc");
        for (query, param) in [("limit=0", "limit"), ("limit=x", "limit"), ("x=1", "x")] {
            assert_eq!(read(query).unwrap_err().param.as_deref(), Some(param));
        }
        assert!(paging.page(vec![String::new()], String::as_str).is_err());
    }
}
