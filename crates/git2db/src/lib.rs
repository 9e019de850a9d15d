//! git2db.
