//! Which groups count.

use fs_err as fs;
use tempfile::TempDir;

use super::{Fixture, some};
use crate::probe::cgroup::CgroupTree;

#[test]
fn in_a_hybrid_system_the_hierarchy_with_the_controller_counts() {
    let system = Fixture::new()
        .v1("/", "cg/memory")
        .mount("/", "cg/cpu", "cgroup cgroup rw,cpu")
        .v2("/", "cg/unified")
        .group_v1("cg/memory/app", 4000, 1000)
        .group("cg/cpu/app", &[("memory.limit_in_bytes", "17")])
        .group("cg/unified/app", &[("memory.pressure", "some"), ("cgroup.controllers", "")]);
    let tree = system.tree("4:memory:/app\n0::/app\n");
    let paths = |paths: [&str; 2]| paths.map(|path| system.path(path)).to_vec();
    assert_eq!(tree.v1(), paths(["cg/memory/app", "cg/memory"]));
    assert_eq!(tree.v2(), paths(["cg/unified/app", "cg/unified"]));
    let cgroup = "9:name=memory:/app\n4:memory:/app\n1:cpu:/app\n0::/app\n";
    assert_eq!(system.limit(cgroup), some(4000, 3000, "cg/memory/app/memory.limit_in_bytes"));
    let moved = system.group_v2("cg/unified/app", "2000", 100);
    fs::remove_file(moved.path("cg/memory/app/memory.limit_in_bytes")).unwrap();
    assert_eq!(moved.limit(cgroup), some(2000, 1900, "cg/unified/app/memory.max"));
}

#[test]
fn a_container_that_does_not_see_its_own_path_has_the_mount_s_root() {
    // Bind-mounted, and with the path of the host.
    let bound = Fixture::new().v2("/docker/abc", "cg").group_v2("cg", "3000", 0).group_v2("cg/job", "2000", 0);
    assert_eq!(bound.limit("0::/docker/abc\n"), some(3000, 3000, "cg/memory.max"));
    assert_eq!(bound.limit("0::/docker/abc/job\n"), some(2000, 2000, "cg/job/memory.max"));
    // Another's path, or one whose folder is not there.
    for path in ["/docker/xyz", "/docker", "/", "/docker/abc/gone", "/docker/abcd/job"] {
        assert_eq!(bound.limit(&format!("0::{path}\n")), some(3000, 3000, "cg/memory.max"), "{path}");
    }
    assert_eq!(bound.tree("0::/docker/abc/gone\n").v2(), [bound.path("cg")]);
    // In a namespace of its own, with a mount from outside and a path from beside it: `cg/../other` is not a group.
    let namespace = Fixture::new().v2("/..", "cg").group_v2("cg", "5000", 0).group_v2("other", "1", 0);
    assert_eq!(namespace.limit("0::/\n"), some(5000, 5000, "cg/memory.max"));
    let beside = Fixture::new().v2("/", "cg").group_v2("cg", "5000", 0).group_v2("other", "1", 0);
    assert_eq!(beside.limit("0::/../other\n"), some(5000, 5000, "cg/memory.max"));
}

#[test]
fn of_several_mounts_the_one_that_shows_most_groups_counts() {
    let system = Fixture::new()
        .v2("/a", "inner")
        .v2("/", "whole")
        .v2("/a", "again")
        .group_v2("whole/a", "2000", 0)
        .group_v2("whole/a/b", "max", 0)
        .group_v2("inner/b", "max", 0)
        .group_v2("again/b", "max", 0);
    assert_eq!(system.limit("0::/a/b\n"), some(2000, 2000, "whole/a/memory.max"));
}

#[test]
fn without_a_mount_nothing_is_known_of_a_limit() {
    let system = Fixture::new();
    assert_eq!(system.limit("4:memory:/app\n0::/app\n"), None);
    assert_eq!(system.limit(""), None);
}

#[test]
fn mount_points_may_have_blanks_colons_and_any_bytes() {
    let root = TempDir::new().unwrap();
    fs::create_dir_all(root.path().join("my groups/a:b")).unwrap();
    fs::write(root.path().join("my groups/a:b/memory.max"), "700\n").unwrap();
    fs::write(root.path().join("my groups/a:b/memory.current"), "1\n").unwrap();
    let point = root.path().display();
    let mut mountinfo = b"90 1 8:1 / /mnt/caf\xe9 rw - ext4 /dev/sdb rw\n91 1 0:5 / /mnt/x rw - tmpfs  rw\n".to_vec();
    mountinfo.extend(format!("41 31 0:38 / {point}/my\\040groups rw - cgroup2 cgroup2 rw\n").bytes());
    let limits = CgroupTree::parse(b"0::/a:b\n", &mountinfo).unwrap().limits().unwrap();
    assert_eq!((limits[0].bytes, limits[0].available), (700, 699));
}
