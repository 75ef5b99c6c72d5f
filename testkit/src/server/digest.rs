//! Digests in lower-case hex.

use std::{fmt::Write as _, io};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::Content;

/// How much of a content is hashed at a time.
const BLOCK: usize = 1 << 20;

/// The SHA-256 of `content`: what LFS calls a file by.
pub(super) fn sha256(content: &Content) -> io::Result<String> {
    let mut hasher = Sha256::new();
    each_block(content, |block| hasher.update(block))?;
    Ok(hex(&hasher.finalize()))
}

/// The id of `content` as a git blob: the SHA-1 of `blob {size}\0` and the bytes.
pub(super) fn git_blob(content: &Content) -> io::Result<String> {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", content.size()));
    each_block(content, |block| hasher.update(block))?;
    Ok(hex(&hasher.finalize()))
}

/// The SHA-1 of `parts`, each ended by a zero byte: for ids of commits and folders, which nobody can check.
pub(crate) fn sha1_of<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha1::new();
    for part in parts {
        hasher.update(part);
        hasher.update([0]);
    }
    hex(&hasher.finalize())
}

fn each_block(content: &Content, mut hash: impl FnMut(&[u8])) -> io::Result<()> {
    let (mut offset, mut scratch) = (0, Vec::new());
    while offset < content.size() {
        let block = content.block(offset, (content.size() - offset).min(BLOCK as u64) as usize, &mut scratch)?;
        hash(block);
        offset += block.len() as u64;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}
