//! What a command prints: lines for people, JSON for programs.

use std::{fmt::Write as _, io::Write as _};

use serde::Serialize;

use crate::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// As JSON, one value for the command.
    pub(crate) json: bool,
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|error| Failure::failed(error.to_string()))?
        } else {
            text(value)
        };
        line(&text)
    }
}

/// Prints a text and the end of its line; nothing for an empty one. Whoever reads no more is not
/// in the way of what is done.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match out
        .write_all(text.trim_end().as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}

/// Columns as wide as their longest cell, under a head.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .max()
            .unwrap_or_default()
            .max(head[column].chars().count())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // To a text it always can be written.
            let _ = write!(line, "{cell:<width$}   ");
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(head);
    for row in rows {
        text.push_str(&line(std::array::from_fn(|i| row[i].as_str())));
    }
    text
}

/// A number of bytes as people write it, in powers of 1024.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The beginning of a commit that people read.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_bytes_have_units() {
        let rows = [
            ["a".to_owned(), "1".to_owned()],
            ["long".to_owned(), "ä".to_owned()],
        ];
        assert_eq!(
            table(["NAME", "X"], &rows),
            "NAME   X\na      1\nlong   ä\n"
        );
        assert_eq!(table(["NAME"], &[]), "");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(500 << 20), "500.0 MiB");
    }
}
