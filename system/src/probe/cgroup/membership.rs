//! Which groups a process is in, and where they are mounted.
//!
//! Read as bytes, because mount points of whatever else is mounted need not be UTF-8 and must not keep the probe from working.

use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

use super::{CgroupTree, v1};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// One hierarchy per controller, of which the one with the memory controller counts.
    V1,
    /// One for all controllers.
    V2,
}

/// A mounted hierarchy that may have the memory controller.
struct Mount {
    version: Version,
    /// What of the hierarchy is mounted.
    root: PathBuf,
    point: PathBuf,
}

/// The groups for memory among `cgroup`, with all above them that are mounted. See [`CgroupTree::parse`].
pub(super) fn tree(cgroup: &[u8], mountinfo: &[u8]) -> io::Result<CgroupTree> {
    let mounts = lines(mountinfo).filter_map(|line| mount(line).transpose()).collect::<io::Result<Vec<_>>>()?;
    let mut tree = CgroupTree::default();
    for line in lines(cgroup) {
        let Some((version, path)) = membership(line)? else { continue };
        let groups = groups(&path, mounts.iter().filter(|mount| mount.version == version));
        match version {
            Version::V1 => tree.v1 = v1::charged(groups)?,
            Version::V2 => tree.v2 = groups,
        }
    }
    Ok(tree)
}

/// The directories of the group `path` and of those above it, below the mount that shows most of them. None without a mount.
fn groups<'a>(path: &Path, mounts: impl Iterator<Item = &'a Mount> + Clone) -> Vec<PathBuf> {
    let found = mounts.clone().filter_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?;
        // `/../x` is not below `/` but beside it.
        let inside = below.components().all(|part| matches!(part, Component::Normal(_)));
        let group = mount.point.join(below);
        (inside && group.is_dir()).then_some((below.components().count(), group, mount))
    });
    let (group, mount) = match found.max_by_key(|(depth, ..)| *depth) {
        Some((_, group, mount)) => (group, mount),
        None => {
            let Some(mount) = mounts.last() else { return Vec::new() };
            tracing::debug!(
                group = %path.display(), root = %mount.root.display(), mount = %mount.point.display(),
                "this process's control group is not below the mount, whose root is taken for it"
            );
            (mount.point.clone(), mount)
        }
    };
    group.ancestors().take_while(|group| group.starts_with(&mount.point)).map(Path::to_owned).collect()
}

/// A line of `/proc/self/cgroup`, where it is for memory: `hierarchy:controllers:path`, without controllers in version 2.
fn membership(line: &[u8]) -> io::Result<Option<(Version, PathBuf)>> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(invalid("/proc/self/cgroup", "`hierarchy:controllers:path`", line));
    };
    let version = match controllers {
        b"" if hierarchy == b"0" => Version::V2,
        _ if has(controllers, b"memory") => Version::V1,
        _ => return Ok(None),
    };
    Ok(Some((version, OsString::from_vec(path.to_vec()).into())))
}

/// A line of `/proc/self/mountinfo`, where it mounts control groups that may be for memory: see proc_pid_mountinfo(5).
fn mount(line: &[u8]) -> io::Result<Option<Mount>> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    // Six fields, as many optional ones as there are, a separator, and three more.
    let separator = fields.iter().skip(6).position(|field| *field == b"-").map(|at| at + 6);
    let Some([kind, _, options]) = separator.and_then(|at| fields.get(at + 1..at + 4)) else {
        return Err(invalid("/proc/self/mountinfo", "the fields of proc_pid_mountinfo(5)", line));
    };
    let version = match *kind {
        b"cgroup2" => Version::V2,
        b"cgroup" if has(options, b"memory") => Version::V1,
        _ => return Ok(None),
    };
    Ok(Some(Mount { version, root: unescape(fields[3]), point: unescape(fields[4]) }))
}

/// Whether `name` is in a list with commas.
fn has(list: &[u8], name: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item == name)
}

/// A path of mountinfo, where blanks, line ends and backslashes stand as `\` and three octal digits.
fn unescape(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    while let [first, rest @ ..] = field {
        field = rest;
        path.push(match *field {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ref rest @ ..] if *first == b'\\' => {
                field = rest;
                (a - b'0') << 6 | (b - b'0') << 3 | (c - b'0')
            }
            _ => *first,
        });
    }
    OsString::from_vec(path).into()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

fn invalid(file: &str, expected: &str, line: &[u8]) -> io::Error {
    let found = line.escape_ascii();
    io::Error::new(ErrorKind::InvalidData, format!("{file}: expected {expected}, found the line \"{found}\""))
}
