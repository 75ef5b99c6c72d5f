//! The probe in a real control group: a process of its own, held to 64 MiB.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a process tells another, and a test that cannot run says so

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
};

use fs_err as fs;
use llm_local_system::{MemoryProbe, SystemProbe};

const MB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MB;
/// What is taken of them, and given back.
const TAKEN: u64 = 24 * MB;
/// A file of which not all can be cached.
const FILE: u64 = 80 * MB;
/// How far counts may be off: each CPU takes 64 pages ahead (`MEMCG_CHARGE_BATCH`), and the process has some of its own.
const SLACK: u64 = 8 * MB;
/// Set, to a folder on a disk, in the process that is in the group.
const INSIDE: &str = "LLM_LOCAL_TEST_CGROUP_FOLDER";

#[test]
fn a_process_in_a_group_of_64_mib_sees_that_limit_and_what_is_left() {
    if let Some(folder) = env::var_os(INSIDE) {
        return inside(Path::new(&folder));
    }
    let group = match Group::new() {
        Ok(group) => group,
        Err(e) => {
            eprintln!("SKIPPED: no control group with a memory limit can be made here: {e}");
            return;
        }
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // The shell enters the group before there is a program to hold anything.
    let output = Command::new("sh")
        .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
        .arg(&group.directory)
        .arg(env::current_exe().unwrap())
        .args(["--exact", "a_process_in_a_group_of_64_mib_sees_that_limit_and_what_is_left", "--nocapture"])
        .env(INSIDE, folder.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success(), "{}: {out}\n{err}", output.status);
    assert!(out.contains(&format!("limit by {}", group.limit.display())), "{out}");
    // Outside nothing has changed.
    let limit = SystemProbe::new().read().unwrap().limit;
    assert!(limit.as_ref().is_none_or(|limit| !limit.by.contains(group.limit.to_str().unwrap())), "{limit:?}");
}

/// What the process in the group sees.
fn inside(folder: &Path) {
    let read = |when: &str| {
        let limit = SystemProbe::new().read().unwrap().limit.unwrap_or_else(|| panic!("{when}: no limit"));
        println!("{when}: {} of {} KiB left, limit by {}", limit.available >> 10, limit.bytes >> 10, limit.by);
        assert_eq!(limit.bytes, LIMIT);
        limit.available
    };
    let fresh = read("at first");
    assert!(fresh > LIMIT - 3 * SLACK && fresh < LIMIT, "{fresh}");

    let held = vec![1_u8; TAKEN as usize];
    let less = read("with 24 MiB held");
    assert!(less < fresh - TAKEN + SLACK && less + TAKEN + SLACK > fresh, "{fresh} became {less}");
    drop(std::hint::black_box(held));
    let again = read("with them given back");
    assert!(again + SLACK > fresh, "{fresh} became {again}");

    let on_tmpfs = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output();
    if on_tmpfs.is_ok_and(|output| output.stdout.starts_with(b"tmpfs")) {
        eprintln!("SKIPPED: page cache: {} is on a tmpfs", folder.display());
        return;
    }
    let mut file = fs::File::create(folder.join("cached")).unwrap();
    // In small pieces, which the allocator does not keep.
    for _ in 0..FILE / MB {
        file.write_all(&vec![1; MB as usize]).unwrap();
    }
    file.sync_all().unwrap();
    let cached = read("with all the rest page cache");
    assert!(cached + SLACK > fresh, "{fresh} became {cached}");
    // It would be killed if that were not there to be taken.
    let held = vec![1_u8; (cached - SLACK) as usize];
    let full = read("with nearly all of that held");
    assert!(full < 2 * SLACK, "{full}");
    drop(std::hint::black_box(held));
}

/// A group below this process's own, which goes away with it.
struct Group {
    directory: PathBuf,
    /// The file with its limit.
    limit: PathBuf,
}

impl Group {
    /// Where this process's group can have one.
    fn new() -> io::Result<Self> {
        let cgroup = fs::read_to_string("/proc/self/cgroup")?;
        let path = |of: fn(&str) -> bool| {
            cgroup
                .lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'))
                .find_map(|(controllers, path)| of(controllers).then(|| path.trim_start_matches('/')))
        };
        let v1 = path(|controllers| controllers.split(',').any(|name| name == "memory"));
        let (parent, file) = match (v1, path(str::is_empty)) {
            (Some(path), _) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
            (None, Some(path)) => (Path::new("/sys/fs/cgroup").join(path), "memory.max"),
            (None, None) => return Err(io::Error::other("no memory controller in /proc/self/cgroup")),
        };
        let directory = parent.join(format!("llm-local-test-{}", process::id()));
        fs::create_dir(&directory)?;
        let limit = directory.join(file);
        let group = Self { directory, limit };
        fs::OpenOptions::new().write(true).open(&group.limit)?.write_all(LIMIT.to_string().as_bytes())?;
        fs::OpenOptions::new().write(true).open(group.directory.join("cgroup.procs"))?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group cannot be removed while a process that has ended is still being taken out of it.
        for _ in 0..10_000 {
            match fs::remove_dir(&self.directory) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => thread::yield_now(),
                _ => return,
            }
        }
    }
}
