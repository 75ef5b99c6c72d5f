//! Files that are not as the kernel makes them.

use std::io::ErrorKind;

use fs_err as fs;

use super::Fixture;
use crate::probe::cgroup::CgroupTree;

/// Names and texts of a group's files.
type Files<'a> = [(&'a str, &'a str)];

/// The error of the limit in a tree with `files` in its one group, without the folder's name.
fn error(version: u8, files: &Files<'_>) -> (ErrorKind, String) {
    let (system, cgroup) = match version {
        1 => (Fixture::new().v1("/", "cg"), "4:memory:/app\n"),
        _ => (Fixture::new().v2("/", "cg"), "0::/app\n"),
    };
    let system = system.group("cg/app", files);
    let error = system.tree(cgroup).limits().unwrap_err();
    (error.kind(), error.to_string().replace(&system.root.path().display().to_string(), ""))
}

#[test]
fn files_that_are_broken_are_errors_with_their_name() {
    let (max, current) = (("memory.max", "100"), ("memory.current", "10"));
    let (limit, usage) = (("memory.limit_in_bytes", "100"), ("memory.usage_in_bytes", "10"));
    let number = "expected a number of bytes, found";
    let cases: [(u8, &Files<'_>, &str); 9] = [
        (
            2,
            &[("memory.max", "lots"), current],
            "/cg/app/memory.max: expected a number of bytes or `max`, found \"lots\"",
        ),
        (2, &[("memory.max", ""), current], "/cg/app/memory.max: expected a number of bytes or `max`, found \"\""),
        (2, &[max, ("memory.high", "-1"), current], "/cg/app/memory.high: expected a number of bytes or `max`, found"),
        (2, &[max, ("memory.current", "10 MB")], &format!("/cg/app/memory.current: {number} \"10 MB\"")),
        (2, &[max, current, ("memory.stat", "anon 1\nactive_file x")], &format!("/cg/app/memory.stat: {number} \"x\"")),
        (1, &[("memory.limit_in_bytes", "max"), usage], &format!("/cg/app/memory.limit_in_bytes: {number} \"max\"")),
        (1, &[limit, ("memory.usage_in_bytes", "")], &format!("/cg/app/memory.usage_in_bytes: {number} \"\"")),
        (1, &[limit, usage, ("memory.stat", "total_dirty ?")], &format!("/cg/app/memory.stat: {number} \"?\"")),
        (1, &[("memory.stat", "hierarchical_memory_limit ?")], &format!("/cg/app/memory.stat: {number} \"?\"")),
    ];
    for (version, files, expected) in cases {
        let (kind, text) = error(version, files);
        assert_eq!(kind, ErrorKind::InvalidData, "{text}");
        assert!(text.starts_with(expected), "{text}\nis not\n{expected}");
    }
}

#[test]
fn a_limit_without_a_usage_is_an_error() {
    for (version, file, usage) in
        [(2, "memory.max", "memory.current"), (1, "memory.limit_in_bytes", "memory.usage_in_bytes")]
    {
        let (kind, text) = error(version, &[(file, "100")]);
        assert!(kind == ErrorKind::NotFound && text.contains(&format!("/cg/app/{usage}")), "{text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_with_its_name() {
    let system = Fixture::new().v2("/", "cg").group_v2("cg/app", "max", 0);
    fs::remove_file(system.path("cg/app/memory.max")).unwrap();
    // A folder in place of the file: what nobody may read is read by root all the same.
    fs::create_dir(system.path("cg/app/memory.max")).unwrap();
    let text = system.tree("0::/app\n").limits().unwrap_err().to_string();
    assert!(text.contains("cg/app/memory.max"), "{text}");
}

#[test]
fn broken_lists_of_groups_and_mounts_are_errors_with_the_line() {
    let of = |cgroup: &[u8], mountinfo: &[u8]| CgroupTree::parse(cgroup, mountinfo).unwrap_err();
    let error = of(b"0::/\nmemory /a\n", b"");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let text = error.to_string();
    assert!(text.starts_with("/proc/self/cgroup: expected `hierarchy:") && text.ends_with("\"memory /a\""), "{text}");
    for line in ["41 31 0:38 / /cg rw cgroup2 cgroup2 rw", "41 31 0:38 / /cg rw - cgroup2 cgroup2", "-", "a - b c d"] {
        let text = of(b"0::/\n", format!("{line}\n").as_bytes()).to_string();
        assert!(text.starts_with("/proc/self/mountinfo: expected") && text.ends_with(&format!("\"{line}\"")), "{text}");
    }
}
