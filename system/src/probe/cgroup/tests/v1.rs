//! Limits of version 1.

use super::{Fixture, MB, some};
use crate::probe::cgroup::CgroupTree;

/// What version 1 says where there is no limit and pages have 4 KiB.
const NONE_V1: u64 = 9_223_372_036_854_771_712;

#[test]
fn a_group_of_version_1_is_held_to_its_limit_and_those_above() {
    let stat = "cache 1\ninactive_file 1\nhierarchical_memory_limit 6000\ntotal_inactive_file 700\ntotal_active_file 300\n\
                total_dirty 90\ntotal_writeback 10";
    let system = Fixture::new()
        .v1("/", "cg/memory")
        .group_v1("cg/memory", NONE_V1, 50_000)
        .group_v1("cg/memory/a", 6000, 1000)
        .group_v1("cg/memory/a/b", 8000, 3000)
        .group("cg/memory/a/b", &[("memory.stat", stat)])
        .group_v1("cg/memory/a/c", i64::MAX as u64, 1000);
    // The counts of the whole subtree, as the usage is: 3000 - (700 + 300 - 90 - 10).
    assert_eq!(system.limit("4:memory:/a/b\n"), some(6000, 5000, "cg/memory/a/memory.limit_in_bytes"));
    let own = system.group_v1("cg/memory/a", NONE_V1, 1000);
    let own = own.group("cg/memory/a/b", &[("memory.stat", &stat.replace("limit 6000", "limit 8000"))]);
    assert_eq!(own.limit("9:cpu:/\n4:cpuset,memory:/a/b\n"), some(8000, 5900, "cg/memory/a/b/memory.limit_in_bytes"));
    assert_eq!(own.limit("4:memory:/a/c\n"), None);
    // Pages of 64 KiB.
    assert_eq!(own.group_v1("cg/memory/a/c", 9_223_372_036_854_710_272, 1).limit("4:memory:/a/c\n"), None);
}

#[test]
fn groups_above_one_that_does_not_charge_them_do_not_count() {
    let system = Fixture::new()
        .v1("/", "cg")
        .group_v1("cg/a", 1000, 900)
        .group_v1("cg/a/b", 8000, 3000)
        .group("cg/a", &[("memory.use_hierarchy", "0")]);
    assert_eq!(system.limit("4:memory:/a/b\n"), some(8000, 5000, "cg/a/b/memory.limit_in_bytes"));
    // Nor are they watched.
    assert_eq!(system.tree("4:memory:/a/b\n").v1(), [system.path("cg/a/b")]);
    let charged = system.group("cg/a", &[("memory.use_hierarchy", "1")]);
    assert_eq!(charged.limit("4:memory:/a/b\n"), some(1000, 100, "cg/a/memory.limit_in_bytes"));
}

#[test]
fn a_limit_above_the_mount_is_seen_in_version_1() {
    let stat = format!("hierarchical_memory_limit 5000\ntotal_inactive_file 100\ntotal_rss {MB}");
    let system = Fixture::new().v1("/pod/app", "cg").group_v1("cg", 9000, 1000).group("cg", &[("memory.stat", &stat)]);
    assert_eq!(system.limit("4:memory:/pod/app\n"), some(5000, 4100, "cg/memory.stat (hierarchical_memory_limit)"));
    let own = CgroupTree::limit_of_v1(&system.path("cg")).unwrap().unwrap();
    assert_eq!((own.bytes, own.available), (9000, 8100));
}
