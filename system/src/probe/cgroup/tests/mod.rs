//! Trees of control groups as the kernel shows them, in a folder.

mod broken;
mod membership;
mod v1;
mod v2;

use std::path::PathBuf;

use fs_err as fs;
use tempfile::TempDir;

use super::CgroupTree;
use crate::{MemoryProbe, SystemProbe, probe::tightest};

const MB: u64 = 1 << 20;

/// What is mounted, below a folder that stands for `/`.
struct Fixture {
    root: TempDir,
    mountinfo: String,
}

impl Fixture {
    /// With mounts of proc and of a disk, as every system has.
    fn new() -> Self {
        let mountinfo = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                         27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n";
        Self { root: TempDir::new().unwrap(), mountinfo: mountinfo.to_owned() }
    }

    /// Mounts `part` of the hierarchy of version 2 at `point`.
    fn v2(self, part: &str, point: &str) -> Self {
        self.mount(part, point, "cgroup2 cgroup2 rw,nsdelegate")
    }

    /// Mounts `part` of the memory hierarchy of version 1 at `point`.
    fn v1(self, part: &str, point: &str) -> Self {
        self.mount(part, point, "cgroup cgroup rw,memory")
    }

    fn mount(mut self, part: &str, point: &str, kind: &str) -> Self {
        let point = self.path(point);
        fs::create_dir_all(&point).unwrap();
        let point = point.display();
        self.mountinfo += &format!("41 31 0:38 {part} {point} rw,relatime shared:9 - {kind}\n");
        self
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// A group with `files`.
    fn group(self, path: &str, files: &[(&str, &str)]) -> Self {
        fs::create_dir_all(self.path(path)).unwrap();
        for (name, text) in files {
            fs::write(self.path(path).join(name), format!("{text}\n")).unwrap();
        }
        self
    }

    /// A group of version 2 with no page cache.
    fn group_v2(self, path: &str, max: &str, current: u64) -> Self {
        self.group(path, &[("memory.max", max), ("memory.high", "max"), ("memory.current", &current.to_string())])
    }

    /// A group of version 1 with no page cache.
    fn group_v1(self, path: &str, limit: u64, usage: u64) -> Self {
        let (limit, usage) = (limit.to_string(), usage.to_string());
        self.group(path, &[("memory.limit_in_bytes", &limit), ("memory.usage_in_bytes", &usage)])
    }

    fn tree(&self, cgroup: &str) -> CgroupTree {
        CgroupTree::parse(cgroup.as_bytes(), self.mountinfo.as_bytes()).unwrap()
    }

    /// The limit of a process in the groups that `cgroup` names: bytes, what is left, and by which file.
    fn limit(&self, cgroup: &str) -> Option<(u64, u64, String)> {
        let limit = tightest(&self.tree(cgroup).limits().unwrap())?;
        let root = format!("{}/", self.root.path().display());
        Some((limit.bytes, limit.available, limit.by.replace(&root, "")))
    }
}

fn some(bytes: u64, left: u64, by: &str) -> Option<(u64, u64, String)> {
    Some((bytes, left, by.to_owned()))
}

#[test]
fn the_smallest_limit_and_the_least_that_is_left_on_the_way_up_apply() {
    let system = Fixture::new()
        .v2("/", "cg")
        .group_v2("cg/pod", "16000", 14000)
        .group_v2("cg/pod/app", "8000", 2000)
        .group_v2("cg/pod/app/worker", "max", 1000);
    let both = "cg/pod/app/memory.max (in all) and cg/pod/memory.max (what is left)";
    // The group may have 8000 in all, and its neighbours leave it only 2000 now.
    assert_eq!(system.limit("0::/pod/app/worker\n"), some(8000, 2000, both));
    assert_eq!(system.limit("0::/pod\n"), some(16000, 2000, "cg/pod/memory.max"));
    // With quiet neighbours the group's own limit is all there is to say.
    let quiet = system.group_v2("cg/pod", "16000", 2500);
    assert_eq!(quiet.limit("0::/pod/app/worker\n"), some(8000, 6000, "cg/pod/app/memory.max"));
}

#[test]
fn the_probe_says_the_limit_of_the_tree_it_is_given() {
    let system = Fixture::new().v2("/", "cg").group_v2("cg/app", &(2 * MB).to_string(), MB / 2);
    let probe = SystemProbe::new().with_cgroups(system.tree("0::/app\n"));
    let memory = probe.read().unwrap();
    assert_eq!((memory.usable(), memory.free()), (2 * MB, 3 * MB / 2));
    // Read each time.
    fs::write(system.path("cg/app/memory.current"), MB.to_string()).unwrap();
    assert_eq!(probe.read().unwrap().free(), MB);
    fs::write(system.path("cg/app/memory.max"), "max").unwrap();
    assert_eq!(probe.read().unwrap().limit, None);
    fs::write(system.path("cg/app/memory.max"), "none").unwrap();
    assert!(probe.read().unwrap_err().to_string().contains("cg/app/memory.max"));
}

#[test]
fn the_groups_of_this_process_can_be_read() {
    CgroupTree::of_process().unwrap().limits().unwrap();
}
