//! What cgroup v2 counts: `memory.events`.

use std::{
    fs,
    io::{self, ErrorKind},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::inotify,
    io::Errno,
};

use super::listen::{self, Heard, Listen, failed};
use crate::{
    CgroupTree,
    pressure::{Pressure, PressureLevel, PressureSink, PressureSource, Shares, Watch},
};

/// Hears when the limits of cgroup v2 groups bite: counters of `memory.events.local` that rise
/// (Documentation/admin-guide/cgroup-v2.rst).
///
/// | counter | what happened | level |
/// |---|---|---|
/// | `high` | tasks were throttled, and made to reclaim, above `memory.high` | by what is left, up to warn |
/// | `max` | the group was about to go over `memory.max`, and had to reclaim | by what is left |
/// | `oom` | reclaim at the limit failed: the next step is the killer's | critical |
/// | `oom_kill`, `oom_group_kill` | a process of the group was killed | critical |
/// | `low` and others | | none |
///
/// What is left is the smaller of `memory.max` and `memory.high` less what is in use, without files that are only cached. A group
/// that reads large files is always at its limit, and gives up their pages for the next ones, which is no pressure.
///
/// The events of a limit are counted where the limit is set, so the groups above that of a process matter as much as its own.
/// `memory.events`, which counts those of groups below too, is watched where a kernel has no `.local` (before 5.2).
#[derive(Debug, Clone)]
pub struct MemoryEvents {
    folders: Vec<PathBuf>,
    shares: Shares,
}

impl MemoryEvents {
    /// Of the groups in `folders`: a process's own, and those above it.
    pub fn at(folders: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { folders: folders.into_iter().map(Into::into).collect(), shares: Shares::default() }
    }

    /// Sets how little is short, where a group is made to reclaim.
    pub fn with_shares(mut self, shares: Shares) -> Self {
        self.shares = shares;
        self
    }
}

impl PressureSource for MemoryEvents {
    fn name(&self) -> &str {
        "memory.events"
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("inotify_init1: {error}")))?;
        let mut groups = Vec::new();
        let mut missing = None;
        for folder in &self.folders {
            match Group::watch(&inotify, folder) {
                Ok(group) => groups.push(group),
                // The group at the root of the tree has none.
                Err(error) if error.kind() == ErrorKind::Unsupported => missing = missing.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        if groups.is_empty() {
            let none = || io::Error::new(ErrorKind::Unsupported, "memory.events: there is no group to watch");
            return Err(missing.unwrap_or_else(none));
        }
        listen::spawn("llm-mem-events", Counters { inotify, groups, shares: self.shares }, sink)
    }
}

/// What of it matters, as it was last read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    high: u64,
    max: u64,
    oom: u64,
    kills: u64,
}

impl Counts {
    fn parse(text: &str) -> Self {
        let mut counts = Self::default();
        for (name, count) in text.lines().filter_map(|line| line.split_once(' ')) {
            let Ok(count) = count.trim().parse::<u64>() else { continue };
            match name {
                "high" => counts.high = count,
                "max" => counts.max = count,
                "oom" => counts.oom = count,
                "oom_kill" | "oom_group_kill" => counts.kills += count,
                _ => {}
            }
        }
        counts
    }
}

struct Group {
    folder: PathBuf,
    file: PathBuf,
    counts: Counts,
}

impl Group {
    fn watch(inotify: &OwnedFd, folder: &Path) -> io::Result<Self> {
        let [local, all] = ["memory.events.local", "memory.events"].map(|name| folder.join(name));
        let file = if local.exists() { local } else { all };
        // Before it is read: what rises in between is heard of.
        inotify::add_watch(inotify, &file, inotify::WatchFlags::MODIFY)
            .map_err(|error| failed(&file, "watch with inotify", error))?;
        let counts = Self::read(&file)?;
        Ok(Self { folder: folder.to_owned(), file, counts })
    }

    fn read(file: &Path) -> io::Result<Counts> {
        let text = fs::read_to_string(file).map_err(|error| failed(file, "read", error))?;
        Ok(Counts::parse(&text))
    }

    /// What rose since the last time, and how bad that is.
    fn look(&mut self, shares: &Shares) -> io::Result<Option<(PressureLevel, String)>> {
        let before = std::mem::replace(&mut self.counts, Self::read(&self.file)?);
        let now = self.counts;
        let rose = |name: &str, before, now| format!("{}: {name} rose from {before} to {now}", self.file.display());
        if now.oom > before.oom {
            return Ok(Some((PressureLevel::Critical, rose("oom", before.oom, now.oom))));
        }
        if now.kills > before.kills {
            return Ok(Some((PressureLevel::Critical, rose("oom_kill", before.kills, now.kills))));
        }
        let (most, what) = if now.max > before.max {
            (PressureLevel::Critical, rose("max", before.max, now.max))
        } else if now.high > before.high {
            // Nobody is killed there.
            (PressureLevel::Warn, rose("high", before.high, now.high))
        } else {
            return Ok(None);
        };
        let Some(limit) = CgroupTree::limit_of_v2(&self.folder)? else { return Ok(None) };
        let level = shares.level(limit.available, limit.bytes).min(most);
        Ok((level > PressureLevel::Normal).then(|| (level, format!("{what}; {}", listen::left(&limit)))))
    }
}

struct Counters {
    inotify: OwnedFd,
    groups: Vec<Group>,
    shares: Shares,
}

impl Listen for Counters {
    fn fds(&self) -> Vec<PollFd<'_>> {
        vec![PollFd::new(&self.inotify, PollFlags::IN)]
    }

    fn hear(&mut self, _: &[PollFlags]) -> Heard {
        // Which file changed does not matter: they are few, and events may have been merged.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
        loop {
            match rustix::io::read(&self.inotify, &mut buffer) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    tracing::error!(%error, "inotify could not be read");
                    return Heard::Gone;
                }
            }
        }
        let mut worst: Option<(PressureLevel, String)> = None;
        for group in &mut self.groups {
            match group.look(&self.shares) {
                Ok(Some(heard)) if worst.as_ref().is_none_or(|worst| heard.0 > worst.0) => worst = Some(heard),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Unsupported => return Heard::Gone,
                Err(error) => tracing::warn!(%error, "the events of a group could not be read"),
            }
        }
        worst.map_or(Heard::Nothing, |(level, reason)| Heard::Report(Pressure::new(level, "memory.events", reason)))
    }
}

#[cfg(test)]
mod tests;
