//! What git reports of a push, with the refs that it never saw.

use super::commands::{Commands, packet, packet_length};

/// Longest data of one packet of the side band, without its length and band.
const BAND_BYTES: usize = 65_515;
const NON_FAST_FORWARD: &str = "non-fast-forward";

/// Adds refusals to git's report as it passes by.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The report comes in packets of band 1, beside progress.
    in_band: bool,
    /// The client asked for one.
    wanted: bool,
    /// Refs that git does not see, with the reason.
    refused: Vec<(String, String)>,
    /// A beginning of a packet of the band.
    partial: Vec<u8>,
    /// What came of the report.
    lines: Vec<u8>,
    /// What git said of refs: nothing is good.
    results: Vec<(String, Option<String>)>,
}

impl Report {
    pub(super) fn new(commands: &Commands, refused: Vec<(String, String)>) -> Self {
        let wanted = commands.has("report-status") || commands.has("report-status-v2");
        Self {
            in_band: commands.has("side-band-64k"),
            wanted,
            refused,
            ..Self::default()
        }
    }

    /// Takes what git writes. Returns what the client gets of it now.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        if !self.wanted {
            return chunk.to_owned();
        }
        if !self.in_band {
            self.lines.extend(chunk);
            return Vec::new();
        }
        self.partial.extend(chunk);
        let mut out = Vec::new();
        loop {
            match packet_length(&self.partial) {
                Ok(Some(0)) => {
                    self.partial.drain(..4);
                    out.extend(self.in_bands());
                    out.extend(b"0000");
                }
                Ok(Some(length)) if self.partial.len() >= length => {
                    let whole: Vec<u8> = self.partial.drain(..length).collect();
                    match whole.get(4..) {
                        // An empty one keeps the connection alive.
                        Some([1, report @ ..]) if !report.is_empty() => self.lines.extend(report),
                        _ => out.extend(whole),
                    }
                }
                Ok(_) => return out,
                Err(_) => {
                    // Not what it should be: the client may make more of it.
                    self.wanted = false;
                    out.append(&mut self.lines);
                    out.append(&mut self.partial);
                    return out;
                }
            }
        }
    }

    /// What is left when git has ended.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut out = if self.in_band {
            self.in_bands()
        } else {
            self.whole()
        };
        out.append(&mut self.partial);
        out
    }

    /// The whole answer to a push of which git sees nothing.
    pub(super) fn alone(mut self) -> Vec<u8> {
        packet(&mut self.lines, b"unpack ok\n");
        self.lines.extend(b"0000");
        let mut out = self.finish();
        if self.in_band {
            out.extend(b"0000");
        }
        out
    }

    /// What git said of the refs: `None` for those that it took, else why not.
    pub(super) fn results(&self) -> &[(String, Option<String>)] {
        &self.results
    }

    /// The report with what is added, in packets of band 1.
    fn in_bands(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in self.whole().chunks(BAND_BYTES) {
            packet(&mut out, &[&[1], part].concat());
        }
        out
    }

    /// The report with what is added; what git did not finish stays so.
    fn whole(&mut self) -> Vec<u8> {
        let report = std::mem::take(&mut self.lines);
        let (mut out, mut rest) = (Vec::new(), report.as_slice());
        loop {
            match packet_length(rest) {
                Ok(Some(0)) => {
                    for (name, reason) in self.refused.drain(..) {
                        packet(&mut out, format!("ng {name} {reason}\n").as_bytes());
                    }
                    out.extend(b"0000");
                    rest = &rest[4..];
                }
                Ok(Some(length)) if rest.len() >= length => {
                    let line = String::from_utf8_lossy(&rest[4..length]).into_owned();
                    rest = &rest[length..];
                    packet(&mut out, self.line(line).as_bytes());
                }
                _ => {
                    out.extend(rest);
                    return out;
                }
            }
        }
    }

    /// One line of the report, as the client gets it.
    fn line(&mut self, line: String) -> String {
        if let Some(name) = line.strip_prefix("ok ") {
            self.results.push((name.trim_end().to_owned(), None));
        }
        let Some((name, reason)) = line
            .strip_prefix("ng ")
            .and_then(|rest| rest.trim_end().split_once(' '))
        else {
            return line;
        };
        self.results
            .push((name.to_owned(), Some(reason.to_owned())));
        if reason == NON_FAST_FORWARD {
            return format!(
                "ng {name} {NON_FAST_FORWARD}: merge what is there first, or ask for the right \
                 `force` and push this ref alone\n"
            );
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(capabilities: &str) -> Commands {
        let line = format!("{0} {0} refs/heads/a\0{capabilities}", "1".repeat(40));
        let mut bytes = Vec::new();
        packet(&mut bytes, line.as_bytes());
        bytes.extend(b"0000");
        let patience = std::time::Duration::from_secs(20);
        let read = super::super::commands::read(bytes.into(), patience);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(read).unwrap().0
    }

    fn refused() -> Vec<(String, String)> {
        vec![("refs/heads/main".to_owned(), "no".to_owned())]
    }

    fn lines(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in lines {
            packet(&mut out, line.as_bytes());
        }
        out.extend(b"0000");
        out
    }

    fn band(number: u8, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        packet(&mut out, &[&[number], data].concat());
        out
    }

    #[test]
    fn refusals_stand_behind_what_git_says() {
        let git = lines(&["unpack ok\n", "ok refs/heads/a\n", "ng refs/heads/b bad\n"]);
        let expected = lines(&[
            "unpack ok\n",
            "ok refs/heads/a\n",
            "ng refs/heads/b bad\n",
            "ng refs/heads/main no\n",
        ]);
        let mut plain = Report::new(&commands("report-status"), refused());
        assert_eq!(plain.push(&git), b"");
        assert_eq!(plain.finish(), expected);
        let results = plain.results();
        assert_eq!(results[0], ("refs/heads/a".to_owned(), None));
        assert_eq!(
            results[1],
            ("refs/heads/b".to_owned(), Some("bad".to_owned()))
        );

        let (progress, alive) = (band(2, b"50%"), band(1, b""));
        let (one, two) = git.split_at(11);
        let whole = [&progress[..], &band(1, one), &alive, &band(1, two), b"0000"].concat();
        for part in [1, 5, 1000] {
            let mut banded = Report::new(&commands("report-status side-band-64k"), refused());
            let mut out = Vec::new();
            for chunk in whole.chunks(part) {
                out.extend(banded.push(chunk));
            }
            out.extend(banded.finish());
            let expected = [&progress[..], &alive, &band(1, &expected), b"0000"].concat();
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_push_of_refused_refs_alone_is_answered_as_git_would() {
        let expected = lines(&["unpack ok\n", "ng refs/heads/main no\n"]);
        let plain = Report::new(&commands("report-status-v2"), refused());
        assert_eq!(plain.alone(), expected);
        let banded = Report::new(&commands("report-status side-band-64k"), refused());
        let expected = [&band(1, &expected)[..], b"0000"].concat();
        assert_eq!(banded.alone(), expected);
    }

    #[test]
    fn a_ref_that_would_lose_commits_is_told_what_to_do() {
        let mut report = Report::new(&commands("report-status"), Vec::new());
        report.push(&lines(&[
            "unpack ok\n",
            "ng refs/heads/a non-fast-forward\n",
        ]));
        let told = String::from_utf8(report.finish()).unwrap();
        assert!(told.contains("merge what is there first"), "{told}");
    }

    #[test]
    fn what_git_did_not_finish_is_passed_on_as_it_is() {
        let mut report = Report::new(&commands("report-status side-band-64k"), refused());
        let fatal = band(3, b"fatal");
        let half = &band(2, b"half")[..6];
        let mut out = report.push(&[&fatal[..], half].concat());
        out.extend(report.finish());
        assert_eq!(out, [&fatal[..], half].concat());
    }
}
