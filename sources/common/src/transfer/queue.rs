//! Which file is next.

use std::collections::VecDeque;

use super::{TransferConfig, file::Item, small};

/// What waits to be fetched, and how much is on its way. Large files are few at a time, since each takes several
/// connections; small ones take one each, and none while the disk has them.
pub(super) struct Queue {
    large: Class,
    small: Class,
}

/// Which files a file is counted among while it is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    Large,
    Small,
}

struct Class {
    waiting: VecDeque<Item>,
    running: usize,
    most: usize,
}

impl Queue {
    /// Of `items`, in their order within each class. Where one file at a time is wanted, all are among the large.
    pub(super) fn new(config: &TransferConfig, items: Vec<Item>) -> Self {
        let at_once = config.files_at_once.max(1);
        let (small, large) = items.into_iter().partition(|item| at_once > 1 && item.is_small());
        let many = config.connections.saturating_mul(small::PER_CONNECTION).min(small::MOST_AT_ONCE);
        Self { large: Class::new(large, at_once), small: Class::new(small, at_once.max(many)) }
    }

    /// The next file, if one may be begun.
    pub(super) fn next(&mut self) -> Option<(Among, Item)> {
        // A description of a model is worth more than a part of its weights.
        let small = self.small.next().map(|item| (Among::Small, item));
        small.or_else(|| self.large.next().map(|item| (Among::Large, item)))
    }

    /// A file is no longer on its way.
    pub(super) fn ended(&mut self, among: Among) {
        let class = match among {
            Among::Large => &mut self.large,
            Among::Small => &mut self.small,
        };
        class.running -= 1;
    }
}

impl Class {
    fn new(waiting: VecDeque<Item>, most: usize) -> Self {
        Self { waiting, running: 0, most }
    }

    fn next(&mut self) -> Option<Item> {
        let item = if self.running < self.most { self.waiting.pop_front() } else { None };
        self.running += usize::from(item.is_some());
        item
    }
}
