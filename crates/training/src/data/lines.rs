//! Records out of files, one after another.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{At, DataError, Line, files::Chosen};

/// Longest line. A longer one is bad.
const MAX_LINE: u64 = 64 << 20;
const GZIP: &[u8] = &[0x1f, 0x8b];
const PARQUET: &[u8] = b"PAR1";
const POINTER: &[u8] = b"version https://git-lfs";

/// Gives `take` every record of these files, and returns the digest of them: that of the file, or
/// that of the names and digests of all files, a line each.
pub(super) fn read(
    from: &Chosen,
    mut take: impl FnMut(At<'_>, Line) -> Result<(), DataError>,
) -> Result<String, DataError> {
    if let ([path], true) = (from.files.as_slice(), from.is_one) {
        return file(path, &mut take);
    }
    let mut hash = Sha256::new();
    for path in &from.files {
        let digest = file(path, &mut take)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hash.update(format!("{digest}  {name}\n"));
    }
    Ok(hex::encode(hash.finalize()))
}

fn file(
    path: &Path,
    take: &mut impl FnMut(At<'_>, Line) -> Result<(), DataError>,
) -> Result<String, DataError> {
    let mut raw = BufReader::with_capacity(1 << 18, Hashed::open(path).map_err(reading(path))?);
    let head = raw.fill_buf().map_err(reading(path))?;
    let refuse = |why: &str| {
        Err(DataError::File {
            path: path.to_owned(),
            why: why.to_owned(),
        })
    };
    if head.starts_with(POINTER) {
        return refuse("it is a git-lfs pointer: the file itself was not fetched");
    }
    if head.starts_with(PARQUET) {
        drop(raw);
        return parquet(path, take);
    }
    let mut raw = if head.starts_with(GZIP) {
        let mut unpacked = BufReader::new(MultiGzDecoder::new(raw));
        lines(path, &mut unpacked, take)?;
        unpacked.into_inner().into_inner()
    } else {
        if head.trim_ascii_start().starts_with(b"[") {
            return refuse("it is one JSON array: make each element a line (jq -c '.[]')");
        }
        lines(path, &mut raw, take)?;
        raw
    };
    io::copy(&mut raw, &mut io::sink()).map_err(reading(path))?;
    Ok(hex::encode(raw.into_inner().hash.finalize()))
}

fn lines(
    path: &Path,
    from: &mut impl BufRead,
    take: &mut impl FnMut(At<'_>, Line) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let mut limited = from.by_ref().take(MAX_LINE);
        let read = limited
            .read_until(b'\n', &mut line)
            .map_err(reading(path))?;
        if read == 0 {
            break;
        }
        let at = At { path, number };
        if read as u64 == MAX_LINE && !line.ends_with(b"\n") {
            skip_line(from).map_err(reading(path))?;
            take(
                at,
                Err(format!("the line is longer than {} MiB", MAX_LINE >> 20)),
            )?;
            continue;
        }
        let text = line
            .strip_prefix(b"\xef\xbb\xbf".as_slice())
            .unwrap_or(&line);
        if !text.trim_ascii().is_empty() {
            take(at, parse(text))?;
        }
    }
    Ok(())
}

fn parse(text: &[u8]) -> Line {
    match serde_json::from_slice(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

fn skip_line(from: &mut impl BufRead) -> io::Result<()> {
    loop {
        let some = from.fill_buf()?;
        let (len, ends) = match some.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (some.len(), some.is_empty()),
        };
        from.consume(len);
        if ends {
            return Ok(());
        }
    }
}

#[cfg(feature = "parquet")]
fn parquet(
    path: &Path,
    take: &mut impl FnMut(At<'_>, Line) -> Result<(), DataError>,
) -> Result<String, DataError> {
    super::parquet::rows(path, take)?;
    let mut hashed = Hashed::open(path).map_err(reading(path))?;
    io::copy(&mut hashed, &mut io::sink()).map_err(reading(path))?;
    Ok(hex::encode(hashed.hash.finalize()))
}

#[cfg(not(feature = "parquet"))]
fn parquet(
    path: &Path,
    _: &mut impl FnMut(At<'_>, Line) -> Result<(), DataError>,
) -> Result<String, DataError> {
    Err(DataError::File {
        path: path.to_owned(),
        why: "it is parquet, which this program was built without: write JSON lines".to_owned(),
    })
}

/// A file that is hashed as it is read.
struct Hashed {
    file: File,
    hash: Sha256,
}

impl Hashed {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            hash: Sha256::new(),
        })
    }
}

impl Read for Hashed {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(to)?;
        self.hash.update(&to[..read]);
        Ok(read)
    }
}

pub(super) fn reading(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |source| DataError::Read {
        path: path.to_owned(),
        source,
    }
}
