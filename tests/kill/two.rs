//! Two processes that want one model at once.

use llm_local_testkit::hub::{Fault, Host};

use crate::{
    process::Fetching,
    world::{AGAIN, Folder, RANGES, WEIGHTS, World, of_weights, sent, start},
};

/// Tokens more: the weights have 12 MB, in four segments.
const TOKENS: usize = 40_000;
const SEGMENT: u64 = 3_012_352;
/// Of each range, until the hub goes on.
const FIRST: u64 = 2 << 20;

/// A process that has fetched the start of each range and no more, and one that waits for it.
fn one_fetches_and_one_waits(world: &World, folder: &Folder) -> (Fetching, Fetching) {
    world.hub.fault(Fault::stall(FIRST).on(Host::Cdn).path(WEIGHTS).times(RANGES));
    let first = Fetching::start(world, folder.path());
    world.hub.wait_until(|requests| sent(requests) == RANGES as u64 * FIRST);
    let mut second = Fetching::start(world, folder.path());
    let said = second.waits(WEIGHTS);
    assert!(said.starts_with(&format!("process {} holds ", first.id())), "{said}");
    (first, second)
}

#[test]
fn two_processes_fetch_each_byte_once() {
    let (world, folder) = (World::new(TOKENS, SEGMENT), Folder::new());
    let (first, second) = one_fetches_and_one_waits(&world, &folder);
    world.hub.release();
    first.succeed();
    second.succeed();
    let requests = world.hub.wait_until_idle();
    for (name, content) in &world.files {
        let of_file = requests.iter().filter(|r| r.is_for(name) && matches!(r.status, 200 | 206));
        assert_eq!(of_file.map(|r| r.body_bytes_sent).sum::<u64>(), content.size(), "{name}: {requests:?}");
    }
    assert_eq!(of_weights(&requests).count(), RANGES);
    world.assert_whole(folder.path());
    world.assert_loads(folder.path());
}

#[test]
fn who_waits_goes_on_where_the_other_was_killed() {
    let (world, folder) = (World::new(TOKENS, SEGMENT), Folder::new());
    let (mut first, second) = one_fetches_and_one_waits(&world, &folder);
    // What was sent is written, but for what may be lost.
    let is_written = |(_, done, _): &(u64, u64, u64)| (FIRST - AGAIN..=FIRST).contains(done);
    first.until(|| world.done(folder.path()).0.iter().all(is_written));
    world.hub.clear();
    world.hub.fault(Fault::silence().on(Host::Cdn).path(WEIGHTS).once());
    first.kill();
    // The other one has the lock, and has asked for something.
    world.hub.wait_until(|requests| of_weights(requests).count() == 1);
    let left = world.left(folder.path());
    assert!(!left.published.contains(WEIGHTS) && !left.recorded, "{left:?}");
    let done = world.done(folder.path());
    world.hub.release();
    second.succeed();
    let requests = world.hub.wait_until_idle();
    assert_eq!(sent(&requests), world.size() - done.bytes());
    let mut starts: Vec<_> = of_weights(&requests).map(start).collect();
    starts.sort_unstable();
    assert_eq!(starts, done.next());
    world.assert_whole(folder.path());
    world.assert_loads(folder.path());
}
