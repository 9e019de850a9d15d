//! The `Range` header.

/// Which part of a content is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it: no range was asked for, or one that need not be understood.
    All,
    /// From the first byte to the last, both included.
    Part { first: u64, last: u64 },
    /// A part that does not exist.
    Impossible,
}

/// Reads a `Range` header for a content of `size` bytes. Several ranges at once are answered with
/// all of the content, as RFC 9110 allows.
pub(super) fn parse(header: Option<&str>, size: u64) -> Wanted {
    let Some(ranges) = header.and_then(|value| value.trim().strip_prefix("bytes=")) else {
        return Wanted::All;
    };
    let Some((from, to)) = ranges.split_once('-').filter(|_| !ranges.contains(',')) else {
        return Wanted::All;
    };
    let end = size.saturating_sub(1);
    match (from.trim().parse::<u64>(), to.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => Wanted::All,
        (Ok(first), _) if first >= size => Wanted::Impossible,
        (Ok(first), Ok(last)) => Wanted::Part {
            first,
            last: last.min(end),
        },
        (Ok(first), Err(_)) if to.trim().is_empty() => Wanted::Part { first, last: end },
        (Err(_), Ok(count)) if from.trim().is_empty() => match count {
            0 => Wanted::Impossible,
            _ if size == 0 => Wanted::Impossible,
            count => Wanted::Part {
                first: size.saturating_sub(count),
                last: end,
            },
        },
        _ => Wanted::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let part = |first, last| Wanted::Part { first, last };
        for (header, expected) in [
            (None, Wanted::All),
            (Some("bytes=0-9"), part(0, 9)),
            (Some("bytes=5-"), part(5, 9)),
            (Some("bytes=5-100"), part(5, 9)),
            (Some("bytes=-3"), part(7, 9)),
            (Some("bytes=-30"), part(0, 9)),
            (Some("bytes=10-"), Wanted::Impossible),
            (Some("bytes=-0"), Wanted::Impossible),
            (Some("bytes=3-2"), Wanted::All),
            (Some("bytes=0-1,3-4"), Wanted::All),
            (Some("bytes=x-y"), Wanted::All),
            (Some("items=0-1"), Wanted::All),
        ] {
            assert_eq!(parse(header, 10), expected, "{header:?}");
        }
        assert_eq!(parse(Some("bytes=0-0"), 0), Wanted::Impossible);
    }
}
