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

use super::{
    groups::{self, failed},
    listen::{self, Heard, Listen},
};
use crate::{
    CgroupTree,
    pressure::{PressureLevel, PressureSink, PressureSource, Shares, Watch},
};

const NAME: &str = "memory.events";

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
        NAME
    }

    fn watch(&self, sink: PressureSink) -> io::Result<Box<dyn Watch>> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("inotify_init1: {error}")))?;
        let groups = groups::watch(self.name(), &self.folders, |folder| Group::watch(&inotify, folder))?;
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

    /// What rose since the last time, and how bad that is. Told once; where what is left cannot be read, the next look sees it.
    fn look(&mut self, shares: &Shares) -> io::Result<Option<(PressureLevel, String)>> {
        let now = Self::read(&self.file)?;
        let heard = self.judge(now, shares)?;
        self.counts = now;
        Ok(heard)
    }

    fn judge(&self, now: Counts, shares: &Shares) -> io::Result<Option<(PressureLevel, String)>> {
        let before = self.counts;
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
        Ok((level > PressureLevel::Normal).then(|| (level, format!("{what}; {}", groups::left(&limit)))))
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
        let mut heard = Vec::new();
        self.groups.retain_mut(|group| match group.look(&self.shares) {
            Ok(rise) => {
                heard.extend(rise);
                true
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                tracing::debug!(%error, "a group is gone, and not watched any more");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "the events of a group could not be read");
                true
            }
        });
        groups::worst(NAME, &self.groups, heard)
    }
}

#[cfg(test)]
mod tests;
