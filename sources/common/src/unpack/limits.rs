//! How much may come out of an archive, and who says so.

use std::fmt;

use llm_local_core::{Error, Result};

/// Bounds on what is unpacked, held against the bytes that come and not against what a header claims.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries, those that are skipped and folders too.
    pub entries: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files together; in a tar also of those that are skipped, for they are read.
    pub total_bytes: u64,
    /// Bytes of a path, as it stands in the archive.
    pub path_bytes: usize,
    /// Parts of a path: folders and the file.
    pub depth: usize,
    /// What a policy allows besides.
    policy: Option<Policy>,
}

/// Bounds that the application's policy makes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy {
    rules: String,
    file_bytes: u64,
    total_bytes: u64,
}

/// What would have to allow more.
#[derive(Debug, Clone, Copy)]
pub(super) enum Setting<'a> {
    /// This method of [`Limits`].
    Limits(&'static str),
    /// These rules of a policy.
    Policy(&'a str),
    /// Nothing does.
    Fixed,
}

impl Default for Limits {
    /// 1000 entries, 8 GiB a file and 16 GiB in all, paths of 512 bytes and eight parts.
    fn default() -> Self {
        Self { entries: 1000, file_bytes: 8 << 30, total_bytes: 16 << 30, path_bytes: 512, depth: 8, policy: None }
    }
}

impl Limits {
    /// Sets the number of entries.
    pub fn with_entries(mut self, entries: usize) -> Self {
        self.entries = entries;
        self
    }

    /// Sets the bytes of one file.
    pub fn with_file_bytes(mut self, bytes: u64) -> Self {
        self.file_bytes = bytes;
        self
    }

    /// Sets the bytes of all files together.
    pub fn with_total_bytes(mut self, bytes: u64) -> Self {
        self.total_bytes = bytes;
        self
    }

    /// Sets the bytes of a path.
    pub fn with_path_bytes(mut self, bytes: usize) -> Self {
        self.path_bytes = bytes;
        self
    }

    /// Sets the parts of a path.
    pub fn with_depth(mut self, parts: usize) -> Self {
        self.depth = parts;
        self
    }

    /// Adds bounds that a policy makes, for one file and for all together. Where they are what is exceeded, the error is
    /// [`Error::NotAllowed`], and names `rules`: those of the policy, in words. They bound what is joined of parts, too,
    /// which nothing else here does: how large that becomes is known before the first byte comes.
    pub fn with_policy(mut self, rules: impl Into<String>, file_bytes: u64, total_bytes: u64) -> Self {
        self.policy = Some(Policy { rules: rules.into(), file_bytes, total_bytes });
        self
    }

    /// Refuses the file `name`, which is joined of parts that have `bytes` together, if a policy allows no such. If it is an
    /// archive it is no file of the artifact, and bounded as all files together are.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] that names the rules.
    pub(crate) fn check_joined(&self, name: &str, bytes: u64, is_archive: bool) -> Result<()> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let most = if is_archive { policy.total_bytes } else { policy.total_bytes.min(policy.file_bytes) };
        if bytes <= most {
            return Ok(());
        }
        let reason = format!("its parts have {bytes} bytes, which are more than {most}, and were not fetched");
        Err(Setting::Policy(&policy.rules).exceeded(name, reason, ""))
    }

    /// The bytes that one file may have, and who says so.
    pub(super) fn file_bound(&self) -> (u64, Setting<'_>) {
        self.bound(self.file_bytes, "with_file_bytes", |policy| policy.file_bytes)
    }

    /// The bytes that all files may have together, and who says so.
    pub(super) fn total_bound(&self) -> (u64, Setting<'_>) {
        self.bound(self.total_bytes, "with_total_bytes", |policy| policy.total_bytes)
    }

    fn bound(&self, own: u64, method: &'static str, of: impl Fn(&Policy) -> u64) -> (u64, Setting<'_>) {
        match &self.policy {
            Some(policy) if of(policy) <= own => (of(policy), Setting::Policy(&policy.rules)),
            _ => (own, Setting::Limits(method)),
        }
    }
}

impl Setting<'_> {
    /// The error for `name`, which has more than this allows, as `reason` says. `by_hand` is what its user can do without
    /// it.
    pub(super) fn exceeded(self, name: &str, reason: impl fmt::Display, by_hand: &str) -> Error {
        match self {
            Self::Limits(method) => {
                let more = format!("allow more with `TransferConfig::with_unpack` (`Limits::{method}`)");
                Error::load(name, format!("{reason}: if you trust it, {by_hand}, or {more}"))
            }
            Self::Policy(rules) => Error::not_allowed(name, format!("{reason}: no more is allowed by {rules}")),
            Self::Fixed => Error::load(name, format!("{reason}: if you trust it, {by_hand}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_bound_counts_and_is_named() {
        let own = Limits::default().with_file_bytes(10).with_total_bytes(20);
        let named = |(bytes, setting): (u64, Setting<'_>)| {
            let error = setting.exceeded("a.zip", "it has too much", "unpack it yourself");
            (bytes, error.code(), error.to_string())
        };
        let (bytes, code, text) = named(own.file_bound());
        assert_eq!((bytes, code), (10, "load_failed"));
        assert!(text.contains("`TransferConfig::with_unpack` (`Limits::with_file_bytes`)"), "{text}");
        let (bytes, code, text) = named(own.total_bound());
        assert_eq!((bytes, code), (20, "load_failed"));
        assert!(text.contains("`TransferConfig::with_unpack` (`Limits::with_total_bytes`)"), "{text}");
        // To raise the own one would not help where the policy has the same.
        let both = own.clone().with_policy("`Policy::max_adapter_bytes`", 10, 21);
        let (bytes, code, text) = named(both.file_bound());
        assert_eq!((bytes, code), (10, "not_allowed"));
        assert!(text.contains("a.zip") && text.contains("by `Policy::max_adapter_bytes`"), "{text}");
        assert!(!text.contains("with_unpack"), "{text}");
        assert_eq!((both.total_bound().0, named(both.total_bound()).1), (20, "load_failed"));
        let both = own.with_policy("`Policy::max_adapter_bytes`", 11, 19);
        assert_eq!((both.file_bound().0, named(both.file_bound()).1), (10, "load_failed"));
        assert_eq!((both.total_bound().0, named(both.total_bound()).1), (19, "not_allowed"));
    }
}
