//! A process is killed wherever it is, many times.

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
    let (mut random, mut received, mut again) = (Random(0x5eed), 0, Vec::new());
    for _ in 0..DOWNLOADS {
        let folder = Folder::new();
        for kills in 0.. {
            let run = run(&world, &folder, (kills < KILLS).then_some(&mut random));
            received += run.received;
            if run.ended {
                assert_eq!(run.again, 0);
                break;
            }
            again.push(run.again);
        }
        world.assert_whole(folder.path());
        world.assert_loads(folder.path());
    }
    let needed = DOWNLOADS * world.size();
    assert_eq!(received, needed + again.iter().sum::<u64>());
    assert!(received <= needed + again.len() as u64 * RANGES as u64 * AGAIN, "{received} bytes of {needed}");
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

/// What became of one process.
struct Run {
    /// Bytes of the weights that it read.
    received: u64,
    /// Those of them that are not there now.
    again: u64,
    ended: bool,
}

/// Goes on with what is in the folder, in a process that is killed at a point by `random`, or else ends.
fn run(world: &World, folder: &Folder, random: Option<&mut Random>) -> Run {
    let folder = folder.path();
    let before = world.done(folder);
    let left = world.size() - before.bytes();
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
    Run { received, again, ended }
}
