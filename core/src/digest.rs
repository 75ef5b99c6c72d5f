//! Digests of files.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A digest of a file's bytes. As text: `sha256:<64 hex>` or `git-sha1:<40 hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Digest {
    /// SHA-256 of the bytes.
    Sha256([u8; 32]),
    /// git's blob id: SHA-1 of `"blob " + length + "\0" + bytes`.
    GitSha1([u8; 20]),
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, bytes): (_, &[u8]) = match self {
            Self::Sha256(b) => ("sha256", b),
            Self::GitSha1(b) => ("git-sha1", b),
        };
        write!(f, "{name}:")?;
        bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
            let mut out = [0; N];
            if text.len() != 2 * N || !text.is_ascii() {
                return None;
            }
            for (i, byte) in out.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
            }
            Some(out)
        }
        match text.split_once(':') {
            Some(("sha256", rest)) => hex(rest).map(Self::Sha256),
            Some(("git-sha1", rest)) => hex(rest).map(Self::GitSha1),
            _ => None,
        }
        .ok_or_else(|| {
            Error::invalid_spec(
                format!("digest `{text}`"),
                "expected `sha256:` and 64 hex digits, or `git-sha1:` and 40",
            )
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_text_round_trips() {
        for text in [format!("sha256:{}", "0f".repeat(32)), format!("git-sha1:{}", "a9".repeat(20))] {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
        for text in ["sha256:00", "md5:00", "", &format!("sha256:{}", "zz".repeat(32))] {
            assert!(text.parse::<Digest>().is_err());
        }
    }
}
