//! The page (placeholder during development).
use super::record::Record;

/// The page.
pub fn html(record: &Record) -> String {
    format!("<pre>{record}</pre>")
}
