//! Files that were uploaded.

use serde::{Deserialize, Serialize};

/// What `/v1/files` tells of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// `file-` and 24 letters and digits.
    pub id: String,
    /// Always `file`.
    pub object: String,
    /// Its size.
    pub bytes: u64,
    /// When it was uploaded, in seconds since 1970.
    pub created_at: i64,
    /// Its name as the client gave it.
    pub filename: String,
    /// What it is for: `fine-tune`.
    pub purpose: String,
    /// Always `processed`: what cannot be learnt from is refused when it is uploaded.
    pub status: String,
    /// Always `null`.
    #[serde(default)]
    pub status_details: Option<String>,
}

/// Answer to the deletion of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedFile {
    /// Its id.
    pub id: String,
    /// Always `file`.
    pub object: String,
    /// Always true.
    pub deleted: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_members_of_openais_documentation() {
        let documented = serde_json::json!({
            "id": "file-abc123", "object": "file", "bytes": 120_000, "created_at": 1_677_610_602,
            "filename": "mydata.jsonl", "purpose": "fine-tune", "status": "processed",
            "status_details": null,
        });
        let file: File = serde_json::from_value(documented.clone()).unwrap();
        assert_eq!(serde_json::to_value(&file).unwrap(), documented);
    }
}
