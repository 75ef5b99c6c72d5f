//! What cgroup v1 tells of: `cgroup.event_control`.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use super::{
    groups::{self, failed},
    listen::{self, Heard, Listen},
};
use crate::{
    CgroupTree,
    pressure::{PressureLevel, PressureSink, PressureSource, Shares, Watch},
};

const NAME: &str = "cgroup.event_control";

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
        NAME
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let groups = groups::watch(self.name(), &self.folders, |folder| Group::register(folder, &self.shares))?;
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
        let mut heard = Vec::new();
        let mut ready = ready.chunks(EVENTS.len());
        self.groups.retain(|group| {
            let rang = group.events().into_iter().zip(ready.next().unwrap_or_default()).map(|(event, ready)| {
                // Resets it. It does not block, and nobody else reads it.
                !ready.is_empty() && rustix::io::read(event, &mut [0; 8]).is_ok()
            });
            let rang: Vec<_> = rang.collect();
            // The kernel rings all of a group's events when it goes.
            if rang.contains(&true) && !group.folder.join("memory.usage_in_bytes").exists() {
                tracing::debug!(group = %group.folder.display(), "a group is gone, and not watched any more");
                return false;
            }
            let limit = CgroupTree::limit_of_v1(&group.folder).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is left to a group could not be read");
                None
            });
            let by_rest = limit.as_ref().map(|limit| self.shares.level(limit.available, limit.bytes));
            now = now.max(by_rest.unwrap_or(PressureLevel::Normal));
            let level = level(&rang, by_rest);
            if level > PressureLevel::Normal {
                let rang = EVENTS.iter().zip(rang).filter_map(|(name, rang)| rang.then_some(*name));
                let rang = rang.collect::<Vec<_>>().join(", ");
                let rest = limit.map(|limit| format!("; {}", groups::left(&limit))).unwrap_or_default();
                heard.push((level, format!("{}: {rang}{rest}", group.folder.display())));
            }
            true
        });
        let before = std::mem::replace(&mut self.before, now);
        if heard.is_empty() && before > PressureLevel::Normal && !self.groups.is_empty() {
            heard.push((PressureLevel::Normal, "every group has enough left again".into()));
        }
        groups::worst(NAME, &self.groups, heard)
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
    use std::{
        io::ErrorKind,
        sync::{Arc, mpsc::channel},
        time::Duration,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::Pressure;

    /// A folder with the files of a group that may have 1000 bytes, of which `used` are in use.
    fn fake(used: u64) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let used = used.to_string();
        let files = [("memory.limit_in_bytes", "1000"), ("memory.usage_in_bytes", &used), ("memory.stat", "cache 0")];
        let empty = ["memory.pressure_level", "memory.oom_control", "cgroup.event_control"].map(|name| (name, ""));
        for (name, text) in files.into_iter().chain(empty) {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn ring(event: &OwnedFd) {
        rustix::io::write(event, &1_u64.to_ne_bytes()).unwrap();
    }

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
    fn how_little_is_short_can_be_said() {
        let folder = fake(700);
        let (sender, reports) = channel();
        let sink: PressureSink = Arc::new(move |pressure: Pressure| sender.send(pressure.level).unwrap());
        let source = GroupNotifications::at([folder.path()]).with_shares(Shares::new(0.5, 0.2));
        let watch = source.watch(sink).unwrap();
        // The first look is at once.
        assert_eq!(reports.recv_timeout(Duration::from_secs(60)), Ok(PressureLevel::Warn));
        drop(watch);
    }

    #[test]
    fn a_group_that_is_gone_is_left_out_and_the_last_one_ends_the_watch() {
        let shares = Shares::default();
        let folders = [fake(100), fake(970)];
        let groups = folders.iter().map(|folder| Group::register(folder.path(), &shares).unwrap()).collect();
        let mut notified = Notified { groups, shares, before: PressureLevel::Normal };
        let all = |notified: &Notified| vec![PollFlags::IN; EVENTS.len() * notified.groups.len()];
        let gone = |folder: &TempDir| fs::remove_file(folder.path().join("memory.usage_in_bytes")).unwrap();
        // What rang in the others is told all the same.
        gone(&folders[0]);
        ring(&notified.groups[1].oom);
        let Heard::Report(pressure) = notified.hear(&all(&notified)) else { panic!("nothing is reported") };
        assert_eq!(pressure.level, PressureLevel::Critical);
        let folder = folders[1].path().display();
        let said = format!("{folder}: memory.oom_control, memory.usage_in_bytes; 30 of 1000 bytes are left");
        assert!(pressure.reason.starts_with(&said), "{}", pressure.reason);
        gone(&folders[1]);
        ring(&notified.groups[0].oom);
        assert_eq!(notified.hear(&all(&notified)), Heard::Gone);
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
