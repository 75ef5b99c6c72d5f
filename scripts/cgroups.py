"""A control group with a limit on its memory, made for one check and removed behind it: cgroup v2 where this machine has the
memory controller there, else v1.

It is made below the group that this process is in, or, with v2, below the nearest one above it that hands memory on to those below:
a v2 group with processes of its own cannot.
"""

import os
import time
from pathlib import Path


class Unavailable(Exception):
    """This machine does not let this process make a group; the text says why."""


class Version:
    """The files of a version."""

    def __init__(self, name, limit, usage, swap, counters):
        self.name, self.limit, self.usage, self.swap, self.counters = name, limit, usage, swap, counters


V1 = Version("cgroup v1", "memory.limit_in_bytes", "memory.usage_in_bytes", ("memory.swappiness", "0"),
             "memory.oom_control")
V2 = Version("cgroup v2", "memory.max", "memory.current", ("memory.swap.max", "0"), "memory.events")


class Group:
    """A group in the folder `path`, which may have `limit` bytes, and no swap."""

    def __init__(self, path, version, limit):
        self.path, self.version = path, version
        path.mkdir()
        try:
            (path / version.limit).write_text(str(limit))
            name, value = version.swap
            if (path / name).exists():
                (path / name).write_text(value)
            self.limit = int((path / version.limit).read_text())
            self.kills()
        except BaseException:
            path.rmdir()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A process that has ended leaves it a moment later.
        for _ in range(100):
            try:
                return self.path.rmdir()
            except FileNotFoundError:
                return None
            except OSError as error:
                last = error
                time.sleep(0.05)
        raise last

    def enter(self):
        """Moves this process here; in a child before it runs anything, so that all it takes is charged to the group."""
        (self.path / "cgroup.procs").write_text("0")

    def usage(self):
        """Bytes in use, cached files included."""
        return int((self.path / self.version.usage).read_text())

    def kills(self):
        """How many processes the kernel has killed here for want of memory."""
        path = self.path / self.version.counters
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        raise Unavailable(f"{path} does not count the kernel's kills; Linux does from 4.13 on")


def parents(cgroup, mounts):
    """The groups below which one may be made, best first, as (folder, version), by the texts of /proc/self/cgroup and
    /proc/self/mountinfo."""
    own = {}
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            own[V2] = path
        elif "memory" in controllers.split(","):
            own[V1] = path
    found = []
    for version, path in sorted(own.items(), key=lambda item: item[0] is V1):
        for line in mounts.splitlines():
            mount, _, rest = line.partition(" - ")
            kind, _, options = rest.split(" ")[:3]
            root, point = mount.split(" ")[3:5]
            is_it = kind == "cgroup2" if version is V2 else kind == "cgroup" and "memory" in options.split(",")
            # `/../x` is outside of what this process can see.
            inside = (path == root or path.startswith(root.rstrip("/") + "/")) and ".." not in path.split("/")
            if not is_it or not inside:
                continue
            point = Path(point)
            folder = point / path[len(root):].lstrip("/")
            if version is V1:
                found.append((folder, V1))
                continue
            above = [folder, *folder.parents]
            found += [(at, V2) for at in above[:above.index(point) + 1]]
    return found


def hands_on_memory(folder):
    """Whether groups below this one of v2 have the memory controller."""
    return "memory" in (folder / "cgroup.subtree_control").read_text().split()


def make(limit, name=f"llm-local-check-{os.getpid()}"):
    """A group of `limit` bytes.

    Raises Unavailable.
    """
    reasons = []
    try:
        found = parents(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    except OSError as error:
        raise Unavailable(str(error)) from error
    for folder, version in found:
        try:
            if version is V2 and not hands_on_memory(folder):
                reasons.append(f"{folder}/cgroup.subtree_control has no memory")
                continue
            return Group(folder / name, version, limit)
        except (OSError, Unavailable) as error:
            reasons.append(str(error))
    raise Unavailable("; ".join(reasons) or "no memory hierarchy is mounted in which this process is")
