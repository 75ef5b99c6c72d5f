//! The functions that transformers gives to templates.

use std::fmt;

use minijinja::{Environment, Error, ErrorKind, Value};
use time::{OffsetDateTime, format_description};

use super::json;

/// The message of a template that called `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// What the template raised, if that is why rendering failed.
pub(super) fn raised(error: &Error) -> Option<&Raised> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        cause = error.source();
    }
    None
}

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "the template raised an exception").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| strftime(OffsetDateTime::now_utc(), format));
}

/// A time in the words of C's `strftime`.
fn strftime(time: OffsetDateTime, format: &str) -> Result<String, Error> {
    let failed = |error: String| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot write `{format}`: {error}"))
    };
    let items = format_description::parse_strftime_borrowed(format).map_err(|error| failed(error.to_string()))?;
    time.format(&items).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        let time = OffsetDateTime::from_unix_timestamp(1_709_251_449).unwrap();
        // datetime.fromtimestamp(1709251449, timezone.utc).strftime(…)
        for (format, expected) in [
            ("%d %b %Y", "01 Mar 2024"),
            ("%Y-%m-%d", "2024-03-01"),
            ("%A, %B %d, %Y %H:%M:%S", "Friday, March 01, 2024 00:04:09"),
            ("100%% — %y", "100% — 24"),
            ("", ""),
        ] {
            assert_eq!(strftime(time, format).unwrap(), expected, "{format}");
        }
        assert!(strftime(time, "%Q").unwrap_err().to_string().contains("%Q"));
        assert!(strftime(time, "%").is_err());
    }
}
