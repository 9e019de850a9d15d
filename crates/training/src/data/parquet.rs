//! Rows of parquet files.

use std::{fs::File, path::Path};

use parquet::file::{reader::FileReader as _, serialized_reader::SerializedFileReader};
use serde_json::Value;

use super::{At, DataError, Line, lines::reading};

/// Gives `take` every row of the file at `path`, a row group at a time.
pub(super) fn rows(
    path: &Path,
    take: &mut impl FnMut(At<'_>, Line) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let damaged = |error: parquet::errors::ParquetError| DataError::File {
        path: path.to_owned(),
        why: error.to_string(),
    };
    let file = File::open(path).map_err(reading(path))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let rows = reader.get_row_iter(None).map_err(damaged)?;
    for (index, row) in rows.enumerate() {
        let at = At {
            path,
            number: index as u64 + 1,
        };
        let line = match row.map_err(damaged)?.to_json_value() {
            Value::Object(fields) => Ok(fields),
            _ => Err("it is no row of columns".to_owned()),
        };
        take(at, line)?;
    }
    Ok(())
}
