//! What cgroup v1 tells of: `cgroup.event_control`.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::listen::{self, Heard, Listen, failed};
use crate::{
    CgroupTree,
    pressure::{Pressure, PressureLevel, PressureSink, PressureSource, Shares, Watch},
};

/// Hears when cgroup v1 groups fill up (Documentation/admin-guide/cgroup-v1/memory.rst, sections 9 to 11).
///
/// | event | what happened | level |
/// |---|---|---|
/// | threshold | use crossed a share of the limit, up or down | by what is left |
/// | `low` | the group reclaims | by what is left |
/// | `medium` | of the pages that it looked at for that, more than 60 % could not be given up | warn |
/// | `critical` | more than 95 % could not | critical; warn where enough is left |
/// | `oom` | reclaim failed: the next step is the killer's, or with `oom_kill_disable` tasks wait for memory | critical |
///
/// What is left is the limit less what is in use, without files that are only cached. A group that reads large files is always at
/// its limit, and gives up their pages for the next ones, which is no pressure. Thresholds alone would miss what comes after: the
/// kernel counts cached files in them, so a group that is full of files crosses none any more, but reclaims. And `critical` alone
/// says too much: it also comes when a group writes a large file, and reclaim has to wait for the disk.
///
/// The events of a limit go to the group that it is set for, so the groups above that of a process matter as much as its own.
/// Only who may write their `cgroup.event_control` hears of them, which by default is root.
#[derive(Debug, Clone)]
pub struct GroupNotifications {
    folders: Vec<PathBuf>,
    shares: Shares,
}

impl GroupNotifications {
    /// Of the groups in `folders`: a process's own, and those above it.
    pub fn at(folders: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { folders: folders.into_iter().map(Into::into).collect(), shares: Shares::default() }
    }

    /// Sets the thresholds, which are of the limit as it is when the watch begins. The kernel takes about 10 ms for each of ten.
    pub fn with_shares(mut self, shares: Shares) -> Self {
        self.shares = shares;
        self
    }
}

impl PressureSource for GroupNotifications {
    fn name(&self) -> &str {
        "cgroup.event_control"
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let mut groups = Vec::new();
        let mut missing = None;
        for folder in &self.folders {
            match Group::register(folder, &self.shares) {
                Ok(group) => groups.push(group),
                // Groups above may be out of sight, or their owner's alone.
                Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                    tracing::debug!(%error, "a group is not watched");
                    missing = missing.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        if groups.is_empty() {
            let none = || io::Error::new(ErrorKind::Unsupported, "cgroup.event_control: there is no group to watch");
            return Err(missing.unwrap_or_else(none));
        }
        let listener = Notified { groups, shares: self.shares, before: PressureLevel::Normal };
        listen::spawn("llm-cgroup-v1", listener, sink)
    }
}

/// What a group tells of, worst first.
const EVENTS: [&str; 4] =
    ["memory.oom_control", "memory.pressure_level critical", "memory.pressure_level medium", "memory.usage_in_bytes"];

/// What the kernel adds to when one of them happens.
struct Group {
    folder: PathBuf,
    oom: OwnedFd,
    critical: OwnedFd,
    medium: OwnedFd,
    /// Thresholds, and reclaim of any kind: to look at what is left.
    look: OwnedFd,
}

impl Group {
    fn register(folder: &Path, shares: &Shares) -> io::Result<Self> {
        let event = |count| eventfd(count, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        // The first look is at once: use may be above a threshold already, and then crosses none.
        let group =
            Self { folder: folder.to_owned(), oom: event(0)?, critical: event(0)?, medium: event(0)?, look: event(1)? };
        let on = |event: &OwnedFd, name: &str, arguments: &str| {
            let path = folder.join(name);
            let file = File::open(&path).map_err(|error| failed(&path, "open", error))?;
            let control = folder.join("cgroup.event_control");
            let line = format!("{} {} {arguments}", event.as_raw_fd(), file.as_raw_fd());
            fs::OpenOptions::new()
                .write(true)
                .open(&control)
                .and_then(|control| rustix::io::write(&control, line.as_bytes()).map_err(Into::into))
                .map(drop)
                .map_err(|error| failed(&control, format_args!("be told of `{name} {arguments}`"), error))
        };
        // `local`: what is reclaimed for this group's limit. Without it an event goes up until somebody listens, and one of ours
        // would be kept from whoever watches a group above.
        on(&group.look, "memory.pressure_level", "low,local")?;
        on(&group.medium, "memory.pressure_level", "medium,local")?;
        on(&group.critical, "memory.pressure_level", "critical,local")?;
        if let Some(limit) = CgroupTree::limit_of_v1(folder)? {
            on(&group.oom, "memory.oom_control", "")?;
            for threshold in thresholds(limit.bytes, shares) {
                on(&group.look, "memory.usage_in_bytes", &threshold.to_string())?;
            }
        }
        Ok(group)
    }

    /// In the order of [`EVENTS`].
    fn events(&self) -> [&OwnedFd; 4] {
        [&self.oom, &self.critical, &self.medium, &self.look]
    }
}

/// At which use of a group that may have `limit` bytes to look at what is left: in steps from the first share on, because files
/// count in what the kernel compares, and so what else there is crosses a share somewhat later.
fn thresholds(limit: u64, shares: &Shares) -> impl Iterator<Item = u64> {
    const STEPS: u32 = 10;
    let first = shares.warn.max(shares.critical);
    (0..STEPS).map(move |step| (limit as f64 * (1.0 - first * f64::from(STEPS - step) / f64::from(STEPS))) as u64)
}

struct Notified {
    groups: Vec<Group>,
    shares: Shares,
    /// The worst level by what is left at the last look.
    before: PressureLevel,
}

impl Listen for Notified {
    fn fds(&self) -> Vec<PollFd<'_>> {
        let events = self.groups.iter().flat_map(Group::events);
        events.map(|event| PollFd::new(event, PollFlags::IN)).collect()
    }

    fn hear(&mut self, ready: &[PollFlags]) -> Heard {
        let mut now = PressureLevel::Normal;
        let mut worst: Option<(PressureLevel, String)> = None;
        for (group, ready) in self.groups.iter().zip(ready.chunks(EVENTS.len())) {
            let rang = group.events().into_iter().zip(ready).map(|(event, ready)| {
                // Resets it. It does not block, and nobody else reads it.
                !ready.is_empty() && rustix::io::read(event, &mut [0; 8]).is_ok()
            });
            let rang: Vec<_> = rang.collect();
            // The kernel rings all of a group's events when it goes.
            if rang.contains(&true) && !group.folder.join("memory.usage_in_bytes").exists() {
                return Heard::Gone;
            }
            let limit = CgroupTree::limit_of_v1(&group.folder).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is left to a group could not be read");
                None
            });
            let by_rest = limit.as_ref().map(|limit| self.shares.level(limit.available, limit.bytes));
            now = now.max(by_rest.unwrap_or(PressureLevel::Normal));
            let level = level(&rang, by_rest);
            if level > PressureLevel::Normal && worst.as_ref().is_none_or(|worst| level > worst.0) {
                let rang = EVENTS.iter().zip(rang).filter_map(|(name, rang)| rang.then_some(*name));
                let rang = rang.collect::<Vec<_>>().join(", ");
                let rest = limit.map(|limit| format!("; {}", listen::left(&limit))).unwrap_or_default();
                worst = Some((level, format!("{}: {rang}{rest}", group.folder.display())));
            }
        }
        let before = std::mem::replace(&mut self.before, now);
        let over = || {
            let reason = "every group has enough left again".to_owned();
            (before > PressureLevel::Normal).then_some((PressureLevel::Normal, reason))
        };
        worst.or_else(over).map_or(Heard::Nothing, |(level, reason)| {
            Heard::Report(Pressure::new(level, "cgroup.event_control", reason))
        })
    }
}

/// How bad it is that these of [`EVENTS`] rang, where what is left is that short, or is not known because there is no limit.
fn level(rang: &[bool], by_rest: Option<PressureLevel>) -> PressureLevel {
    let rest = by_rest.unwrap_or(PressureLevel::Normal);
    match rang {
        [true, ..] => PressureLevel::Critical,
        // For files: see `GroupNotifications`.
        [_, true, ..] if by_rest == Some(PressureLevel::Normal) => PressureLevel::Warn,
        [_, true, ..] => PressureLevel::Critical,
        [_, _, true, _] => rest.max(PressureLevel::Warn),
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_worst_of_what_rang_counts_and_critical_only_where_little_is_left() {
        use PressureLevel::{Critical, Normal, Warn};
        // oom, critical, medium, look; what is left: unknown, enough, little, next to nothing.
        let cases = [
            ([true, true, true, true], [Critical; 4]),
            ([false, true, true, true], [Critical, Warn, Critical, Critical]),
            ([false, false, true, false], [Warn, Warn, Warn, Critical]),
            ([false, false, false, true], [Normal, Normal, Warn, Critical]),
            ([false; 4], [Normal, Normal, Warn, Critical]),
        ];
        for (rang, levels) in cases {
            let rests = [None, Some(Normal), Some(Warn), Some(Critical)];
            assert_eq!(rests.map(|rest| level(&rang, rest)), levels, "{rang:?}");
        }
    }

    #[test]
    fn thresholds_go_from_the_first_share_to_the_limit() {
        let all: Vec<_> = thresholds(1_000_000, &Shares::default()).collect();
        assert_eq!(all.len(), 10);
        for (at, threshold) in all.into_iter().enumerate() {
            assert!(threshold.abs_diff(900_000 + 10_000 * at as u64) <= 1, "{threshold}");
        }
        // Whichever comes first.
        assert_eq!(thresholds(1000, &Shares::new(0.1, 0.5)).next(), Some(500));
    }

    #[test]
    fn a_folder_without_the_files_is_not_supported() {
        let folder = tempfile::tempdir().unwrap();
        let error = GroupNotifications::at([folder.path()]).watch(Arc::new(|_| ())).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(folder.path().join("memory.pressure_level").to_str().unwrap()), "{error}");
        let error = GroupNotifications::at(Vec::<PathBuf>::new()).watch(Arc::new(|_| ())).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
