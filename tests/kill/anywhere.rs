//! A process is killed wherever it is, many times.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    process::Fetching,
    received::{Received, kill},
    world::{AGAIN, Folder, RANGES, Random, World, of_weights, sent, start},
};

/// Tokens more: the weights have 24 MB, in eight segments the last of which is a short one.
const TOKENS: usize = 88_001;
const SEGMENT: u64 = 3 << 20;
const DOWNLOADS: u64 = 5;
/// Of one download.
const KILLS: usize = 8;
/// A process is killed once at most so many bytes were sent to it.
const MOST: u64 = 6 << 20;

#[test]
fn a_killed_download_goes_on_with_at_most_a_mebibyte_of_each_range_again() {
    let world = World::new(TOKENS, SEGMENT);
    let (mut random, mut again) = (Random(0x5eed), Vec::new());
    let small: u64 = world.small().map(|(_, content)| content.size()).sum();
    for _ in 0..DOWNLOADS {
        let (folder, mut sent) = (Folder::new(), Sent::default());
        let (mut unread, mut of_small, mut runs) = (0, 0, 0);
        for kills in 0.. {
            let run = run(&world, &folder, (kills < KILLS).then_some(&mut random));
            run.sent.iter().for_each(|part| sent.add(part.clone()));
            unread += run.unread;
            (of_small, runs) = (of_small + run.small, runs + 1);
            if run.ended {
                assert_eq!((run.again, run.unread), (0, 0));
                break;
            }
            again.push(run.again);
        }
        world.assert_whole(folder.path());
        world.assert_loads(folder.path());
        // A small file is in memory until it is there as a whole: a kill takes all of it.
        assert!(of_small >= small, "{of_small} bytes of small files in {runs} processes");
        // By the hub's word: every byte was sent, and again only what a process that was killed had not read or not kept.
        let twice = sent.twice(world.size());
        let kills = runs - 1;
        assert!(twice <= unread + kills * RANGES as u64 * AGAIN, "{twice} bytes twice, {unread} unread, {kills} kills");
    }
    // Else nothing was tested.
    assert!(again.len() > 20 && again.iter().filter(|again| **again > 0).count() > 15, "{again:?}");
}

/// Here nobody looks how much was received, so that the process need not be frozen before: it is killed in the middle of
/// calls to the system.
#[test]
fn what_counts_as_done_after_a_kill_is_right() {
    let world = World::new(TOKENS, SEGMENT);
    let mut random = Random(0xdead);
    for _ in 0..DOWNLOADS {
        let folder = Folder::new();
        let folder = folder.path();
        for _ in 0..KILLS {
            let left = world.size() - world.done(folder).bytes();
            let point = random.below(left.min(MOST) + 1);
            world.hub.clear();
            let fetching = Fetching::start(&world, folder);
            world.hub.wait_until(|requests| sent(requests) >= point);
            fetching.kill();
            world.left(folder);
        }
        Fetching::start(&world, folder).succeed();
        world.assert_whole(folder);
    }
}

/// The parts of the weights that the hub sent for one download, in the order of the processes that asked for them.
#[derive(Debug, Default)]
struct Sent(BTreeMap<u64, Vec<Range<u64>>>);

impl Sent {
    fn add(&mut self, part: Range<u64>) {
        self.0.entry(part.start / SEGMENT).or_default().push(part);
    }

    /// How many bytes were sent again. Asserts that the file of `size` bytes was sent whole, and of each segment each
    /// part from within the one before or from its end.
    fn twice(&self, size: u64) -> u64 {
        assert!(self.0.keys().copied().eq(0..size.div_ceil(SEGMENT)), "{self:?}");
        let of_segment = |(index, parts): (&u64, &Vec<Range<u64>>)| {
            let (start, end) = (index * SEGMENT, size.min((index + 1) * SEGMENT));
            let (mut reached, mut twice) = (start, 0);
            for part in parts {
                assert!((start..=reached).contains(&part.start) && part.end <= end, "{part:?} of {parts:?}");
                twice += reached - part.start;
                reached = part.end;
            }
            assert_eq!(reached, end, "{parts:?}");
            twice
        };
        self.0.iter().map(of_segment).sum()
    }
}

/// What became of one process.
struct Run {
    /// The parts of the weights that the hub sent it.
    sent: Vec<Range<u64>>,
    /// Bytes of the small files that the hub sent it.
    small: u64,
    /// Bytes of the weights that it did not read.
    unread: u64,
    /// Bytes that it read and that are not there now.
    again: u64,
    ended: bool,
}

/// Goes on with what is in the folder, in a process that is killed at a point by `random`, or else ends.
fn run(world: &World, folder: &Folder, random: Option<&mut Random>) -> Run {
    let folder = folder.path();
    let before = world.done(folder);
    let left = world.size() - before.bytes();
    let there: Vec<_> = world.small().map(|(name, _)| world.blob(folder, name).exists()).collect();
    world.hub.clear();
    let fetching = Fetching::start(world, folder);
    let Received { bytes: received, ended } = match random {
        Some(random) => {
            let point = random.below(left.min(MOST) + 1);
            world.hub.wait_until(|requests| sent(requests) >= point);
            kill(world, fetching)
        }
        None => {
            fetching.succeed();
            Received { bytes: sent(&world.hub.wait_until_idle()), ended: true }
        }
    };
    world.left(folder);
    // It goes on where the one before was, and asks for nothing twice.
    let mut starts: Vec<_> = of_weights(&world.hub.requests()).map(start).collect();
    starts.sort_unstable();
    let next = before.next();
    assert!(starts.is_sorted_by(|a, b| a < b), "{starts:?}");
    assert!(starts.iter().all(|start| next.contains(start)), "{starts:?} are asked for, and {next:?} are missing");
    let gained = world.done(folder).bytes() - before.bytes();
    let again = received.checked_sub(gained).expect("nothing is there that was not received");
    assert!(again <= RANGES as u64 * AGAIN, "{again} of {received} bytes were lost");
    let requests = world.hub.wait_until_idle();
    // What is there is never asked for again, and what is not once.
    let mut small = 0;
    for ((name, content), there) in world.small().zip(there) {
        let of_file = requests.iter().filter(|r| r.is_for(name) && matches!(r.status, 200 | 206));
        let sent: u64 = of_file.map(|r| r.body_bytes_sent).sum();
        assert!(sent <= if there { 0 } else { content.size() }, "{sent} bytes of {name}: {requests:?}");
        small += sent;
    }
    let parts = of_weights(&requests).map(|request| start(request)..start(request) + request.body_bytes_sent);
    Run { sent: parts.collect(), small, unread: sent(&requests) - received, again, ended }
}
