//! What is counted, and when that is worth an event. No thread, no lock and no clock: time is an argument.

use std::time::Duration;

use llm_local_core::{ArtifactRef, DownloadProgress, FileProgress, ProgressEvent};

use super::{
    delivery::{Kind, Note},
    speed::Speed,
};

/// Events of one kind are at least this far apart.
const APART: Duration = Duration::from_millis(100);

/// One file of a plan.
struct File {
    reference: ArtifactRef,
    path: String,
    size: u64,
    /// Bytes here now; a restart lowers them.
    count: u64,
    /// The most that was ever told.
    told: u64,
    /// When an event last told of it.
    at: Option<Duration>,
    done: bool,
}

/// The state of a plan between its events.
#[derive(Default)]
pub(super) struct Tally {
    total: u64,
    files: Vec<File>,
    /// The sum of the files' counts.
    sum: u64,
    told: u64,
    at: Option<Duration>,
    current: Option<usize>,
    speed: Speed,
    begun: bool,
    ended: bool,
}

impl Tally {
    /// Nothing of `total` bytes.
    pub(super) fn new(total: u64) -> Self {
        Self { total, ..Self::default() }
    }

    /// Takes in a file of `size` bytes and gives its number.
    pub(super) fn file(&mut self, reference: ArtifactRef, path: String, size: u64) -> usize {
        self.files.push(File { reference, path, size, count: 0, told: 0, at: None, done: false });
        self.files.len() - 1
    }

    /// Tells of what is present, first of the plan and then of the files that are done. What is counted before says
    /// nothing.
    pub(super) fn begin(&mut self, now: Duration) -> Vec<Note> {
        if self.begun || self.ended {
            return Vec::new();
        }
        self.begun = true;
        self.current = None;
        self.speed = Speed::default();
        let mut notes = vec![Note { kind: Kind::First, event: ProgressEvent::Download(self.plan(now)) }];
        self.at = Some(now);
        for i in 0..self.files.len() {
            if self.files[i].done {
                notes.push(self.last(i));
            }
        }
        notes
    }

    /// `n` more bytes of a file are here.
    pub(super) fn add(&mut self, index: usize, n: u64, now: Duration) -> Vec<Note> {
        let count = self.files[index].count.saturating_add(n);
        self.speed.add(now, n);
        self.current = Some(index);
        self.count(index, count, now)
    }

    /// A file has `n` bytes now, fewer perhaps than before. They are not taken for speed.
    pub(super) fn reset_to(&mut self, index: usize, n: u64, now: Duration) -> Vec<Note> {
        self.count(index, n, now)
    }

    /// A file is verified and in place.
    pub(super) fn done(&mut self, index: usize, now: Duration) -> Vec<Note> {
        let size = self.files[index].size;
        if self.files[index].done {
            return Vec::new();
        }
        self.set(index, size);
        self.files[index].done = true;
        if !self.live() {
            return Vec::new();
        }
        let mut notes = vec![self.last(index)];
        notes.extend(self.of_plan(now));
        notes
    }

    /// Somebody else fetches a file.
    pub(super) fn waiting(&self, index: usize, reason: String) -> Vec<Note> {
        if !self.live() {
            return Vec::new();
        }
        let what = format!("{} of {}", self.files[index].path, self.files[index].reference);
        vec![Note { kind: Kind::Waiting(index), event: ProgressEvent::waiting(what, reason) }]
    }

    /// Everything is verified and in place: the one event of 1.0. Nothing comes after it.
    pub(super) fn finish(&mut self, now: Duration) -> Vec<Note> {
        if self.ended {
            return Vec::new();
        }
        let mut notes = self.begin(now);
        self.ended = true;
        let event = ProgressEvent::Download(DownloadProgress::finished(self.total));
        notes.push(Note { kind: Kind::Final, event });
        notes
    }

    /// Nothing comes any more.
    pub(super) fn stop(&mut self) {
        self.ended = true;
    }

    fn live(&self) -> bool {
        self.begun && !self.ended
    }

    fn set(&mut self, index: usize, count: u64) {
        let file = &mut self.files[index];
        let count = count.min(file.size);
        self.sum = self.sum - file.count + count;
        file.count = count;
    }

    fn count(&mut self, index: usize, count: u64, now: Duration) -> Vec<Note> {
        if self.files[index].done {
            return Vec::new();
        }
        self.set(index, count);
        if !self.live() {
            return Vec::new();
        }
        let file = &mut self.files[index];
        let mut notes = Vec::new();
        // The event of all the bytes is the last one of a file, and comes when it is in place.
        if file.count > file.told && file.count < file.size && due(file.at, now) {
            (file.told, file.at) = (file.count, Some(now));
            notes.push(Note { kind: Kind::File(index), event: file.event() });
        }
        notes.extend(self.of_plan(now));
        notes
    }

    fn last(&mut self, index: usize) -> Note {
        let file = &mut self.files[index];
        file.told = file.size;
        Note { kind: Kind::Last(index), event: file.event() }
    }

    fn of_plan(&mut self, now: Duration) -> Option<Note> {
        if !due(self.at, now) {
            return None;
        }
        self.at = Some(now);
        Some(Note { kind: Kind::Plan, event: ProgressEvent::Download(self.plan(now)) })
    }

    fn plan(&mut self, now: Duration) -> DownloadProgress {
        self.told = self.told.max(self.sum.min(self.total));
        let mut progress = DownloadProgress::new(self.told, self.total);
        progress.current_file = self.current.map(|i| self.files[i].path.clone());
        progress.bytes_per_second = self.speed.per_second(now);
        progress
    }
}

impl File {
    fn event(&self) -> ProgressEvent {
        ProgressEvent::File(FileProgress::new(self.reference.clone(), &self.path, self.told, self.size))
    }
}

/// Whether an event may follow the one at `last`. A clock that stepped back may not silence a plan.
fn due(last: Option<Duration>, now: Duration) -> bool {
    last.is_none_or(|last| now < last || now - last >= APART)
}
