//! How long a model stays when nobody uses it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How long a model stays in memory while nobody uses it. As data: `"auto"`, `"forever"`, or a number of seconds, where 0 lets
/// it go as soon as it is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum KeepAlive {
    /// As long as the engine's memory policy says.
    #[default]
    Auto,
    /// This long after it was used last.
    For(Duration),
    /// Until its memory is needed.
    Forever,
}

impl Serialize for KeepAlive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Forever => serializer.serialize_str("forever"),
            Self::For(time) if time.subsec_nanos() == 0 => serializer.serialize_u64(time.as_secs()),
            Self::For(time) => serializer.serialize_f64(time.as_secs_f64()),
        }
    }
}

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = KeepAlive;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"forever\" or a number of seconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<KeepAlive, E> {
                match text {
                    "auto" => Ok(KeepAlive::Auto),
                    "forever" => Ok(KeepAlive::Forever),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<KeepAlive, E> {
                Ok(KeepAlive::For(Duration::from_secs(seconds)))
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<KeepAlive, E> {
                let of = de::Unexpected::Signed(seconds);
                u64::try_from(seconds).map_err(|_| E::invalid_value(of, &self)).and_then(|n| self.visit_u64(n))
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<KeepAlive, E> {
                let time = Duration::try_from_secs_f64(seconds);
                time.map(KeepAlive::For).map_err(|_| E::invalid_value(de::Unexpected::Float(seconds), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keep_alive_is_a_word_or_seconds() {
        let read = |text: &str| serde_json::from_str::<KeepAlive>(text);
        let seconds = |n| KeepAlive::For(Duration::from_secs_f64(n));
        for (text, is) in [
            ("\"auto\"", KeepAlive::Auto),
            ("\"forever\"", KeepAlive::Forever),
            ("0", seconds(0.0)),
            ("300", seconds(300.0)),
            ("0.5", seconds(0.5)),
        ] {
            assert_eq!(read(text).unwrap(), is);
            assert_eq!(serde_json::to_string(&is).unwrap(), text);
        }
        for text in ["-1", "-0.5", "1e300", "\"5m\"", "null"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
