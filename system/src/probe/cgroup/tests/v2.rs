//! Limits of version 2.

use super::{Fixture, MB, some};

#[test]
fn a_group_of_version_2_is_held_to_memory_max() {
    let system = Fixture::new().v2("/", "cg").group_v2("cg/app", &(512 * MB).to_string(), 100 * MB);
    assert_eq!(system.limit("0::/app\n"), some(512 * MB, 412 * MB, "cg/app/memory.max"));
}

#[test]
fn max_and_a_group_without_the_controller_are_no_limit() {
    let system =
        Fixture::new().v2("/", "cg").group_v2("cg/a", "max", MB).group("cg/a/b", &[("memory.pressure", "some")]);
    assert_eq!(system.limit("0::/a/b\n"), None);
    assert_eq!(system.limit("0::/\n"), None);
}

#[test]
fn memory_high_is_a_limit_where_it_is_below_memory_max() {
    let files = |max, high| [("memory.max", max), ("memory.high", high), ("memory.current", "300")];
    let system =
        Fixture::new().v2("/", "cg").group("cg/high", &files("5000", "4000")).group("cg/max", &files("4000", "5000"));
    assert_eq!(system.limit("0::/high\n"), some(4000, 3700, "cg/high/memory.high"));
    assert_eq!(system.limit("0::/max\n"), some(4000, 3700, "cg/max/memory.max"));
    let alone = system.group("cg/only", &files("max", "4000"));
    assert_eq!(alone.limit("0::/only\n"), some(4000, 3700, "cg/only/memory.high"));
}

#[test]
fn clean_page_cache_is_not_in_use_and_dirty_tmpfs_and_anonymous_memory_is() {
    let stat = "anon 2000\nfile 9000\nshmem 1000\nfile_dirty 70\nfile_writeback 30\ninactive_anon 1500\nactive_anon 1500\n\
                inactive_file 3000\nactive_file 5000\nunevictable 10\nslab_reclaimable 400";
    let files = [("memory.max", "20000"), ("memory.current", "12000"), ("memory.stat", stat)];
    let system = Fixture::new().v2("/", "cg").group("cg/app", &files);
    // 12000 in use, of which 3000 + 5000 - 70 - 30 can be given up.
    assert_eq!(system.limit("0::/app\n"), some(20000, 20000 - (12000 - 7900), "cg/app/memory.max"));
}

#[test]
fn counts_that_a_kernel_does_not_have_free_nothing() {
    let with = |stat| [("memory.max", "20000"), ("memory.current", "12000"), ("memory.stat", stat)];
    let system = Fixture::new()
        .v2("/", "cg")
        .group("cg/none", &with("anon 2000"))
        .group("cg/clean", &with("inactive_file 3000"))
        .group("cg/similar", &with("inactive_file_x 3000\nworkingset_inactive_file 1"))
        // Counted at different times.
        .group("cg/more", &with("inactive_file 13000\nfile_dirty 0"))
        .group("cg/dirty", &with("inactive_file 100\nfile_dirty 200"));
    let left = |group: &str| system.limit(&format!("0::/{group}\n")).unwrap().1;
    let all = ["none", "clean", "similar", "more", "dirty"].map(left);
    assert_eq!(all, [8000, 11000, 8000, 20000, 8000]);
}

#[test]
fn a_group_that_is_over_its_limit_has_nothing_left() {
    let system = Fixture::new().v2("/", "cg").group_v2("cg/app", "1000", 1500).group_v2("cg/zero", "0", 0);
    assert_eq!(system.limit("0::/app\n"), some(1000, 0, "cg/app/memory.max"));
    assert_eq!(system.limit("0::/zero\n"), some(0, 0, "cg/zero/memory.max"));
}
