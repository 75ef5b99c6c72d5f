//! A process is killed while it publishes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use llm_local_testkit::hub::{Fault, Host};

use crate::{
    disk::names,
    process::Fetching,
    world::{Folder, WEIGHTS, World, of_weights, sent},
};

const SEGMENT: u64 = 1 << 20;

#[test]
fn killed_as_soon_as_a_step_is_seen_it_goes_on_from_there() {
    let world = World::new(0, SEGMENT);
    let steps: [fn(&World, &Path) -> bool; 5] = [
        |world, folder| world.blob(folder, WEIGHTS).exists(),
        |world, folder| world.link(folder, WEIGHTS).exists(),
        |world, folder| world.files.keys().all(|name| world.link(folder, name).exists()),
        World::is_recorded,
        |world, folder| world.ref_path(folder).exists(),
    ];
    for (i, step) in steps.iter().enumerate() {
        for _ in 0..3 {
            let folder = Folder::new();
            let mut fetching = Fetching::start(&world, folder.path());
            fetching.until(|| step(&world, folder.path()));
            fetching.kill();
            world.hub.wait_until_idle();
            let left = world.left(folder.path());
            assert!(step(&world, folder.path()), "what was there is gone after step {i}: {left:?}");

            world.hub.clear();
            Fetching::start(&world, folder.path()).succeed();
            let requests = world.hub.wait_until_idle();
            assert_eq!(of_weights(&requests).count(), 0, "{requests:?}");
            world.assert_whole(folder.path());
        }
    }
}

/// A process that has fetched all but the end of the weights, and stays there.
fn before_the_end(world: &World, folder: &Folder) -> Fetching {
    let stalled = SEGMENT / 2;
    world.hub.fault(Fault::stall(stalled).on(Host::Cdn).path(WEIGHTS).once());
    let fetching = Fetching::start(world, folder.path());
    world.hub.wait_until(|requests| sent(requests) == world.size() - (SEGMENT - stalled));
    fetching
}

/// Kills the process once `done` holds, and has another one go on, which has no byte left to fetch.
fn kill_and_go_on(
    world: &World,
    folder: &Folder,
    mut fetching: Fetching,
    done: impl Fn() -> bool,
    undo: impl FnOnce(),
) {
    world.hub.release();
    fetching.until(done);
    fetching.kill();
    undo();
    world.hub.wait_until_idle();
    let left = world.left(folder.path());
    assert!(!left.has_ref, "{left:?}");
    world.hub.clear();
    Fetching::start(world, folder.path()).succeed();
    let requests = world.hub.wait_until_idle();
    // It asks which commit the ref names, and for nothing else.
    assert!(!requests.is_empty() && requests.iter().all(|r| r.path.starts_with("/api/")), "{requests:?}");
    assert!(requests.iter().all(|r| r.status == 200 && r.file.is_none()), "{requests:?}");
    world.assert_whole(folder.path());
    world.assert_loads(folder.path());
}

fn all_are_published(world: &World, folder: &Folder) -> bool {
    let partials: PathBuf = folder.path().join("store/partials");
    world.files.keys().all(|name| world.link(folder.path(), name).exists()) && names(&partials).is_empty()
}

/// Kills a fetch that has published all files and waits to record them, and lets another go on after `meanwhile`.
fn killed_before_the_record(meanwhile: impl FnOnce(&World, &Folder)) {
    let (world, folder) = (World::new(0, SEGMENT), Folder::new());
    let fetching = before_the_end(&world, &folder);
    // Nobody writes a record without this lock.
    let lock = fs::File::open(folder.path().join("store/locks/store.lock")).unwrap();
    lock.lock().unwrap();
    let published = || all_are_published(&world, &folder);
    kill_and_go_on(&world, &folder, fetching, published, || {
        meanwhile(&world, &folder);
        lock.unlock().unwrap();
    });
}

#[test]
fn killed_between_the_last_file_and_the_record_it_only_records() {
    killed_before_the_record(|world, folder| assert!(!world.is_recorded(folder.path())));
}

#[test]
fn killed_between_a_blob_and_its_link_it_only_links() {
    // No process can be stopped exactly there, but this is what it leaves.
    killed_before_the_record(|world, folder| fs::remove_file(world.link(folder.path(), WEIGHTS)).unwrap());
}

#[cfg(unix)]
#[test]
fn killed_between_the_record_and_the_ref_it_only_writes_the_ref() {
    let (world, folder) = (World::new(0, SEGMENT), Folder::new());
    let fetching = before_the_end(&world, &folder);
    // Whoever looks what the ref says waits for a writer.
    let path = world.ref_path(folder.path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    kill_and_go_on(&world, &folder, fetching, || world.is_recorded(folder.path()), || fs::remove_file(&path).unwrap());
}
