//! What Windows holds a process to.
//!
//! Memory is charged when it is allocated, touched or not: to what the system can back with memory and paging files, its commit
//! limit, and to the limits of the job object that the process is in. Past either nobody gets memory, however much is free.
//!
//! Of a limit for all processes of a job only what this process was charged is taken off, so one that shares such a job can have
//! less left than is said. Of nested jobs the innermost is asked.

#[cfg(windows)]
pub(crate) use calls::*;

use super::MemoryLimit;

/// Memory that may be charged, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    /// In all.
    pub(crate) limit: u64,
    /// To this process, from now on.
    pub(crate) left: u64,
}

/// Limits of a job object, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Job {
    /// What all its processes may be charged.
    all: Option<u64>,
    /// What each of them may be charged.
    each: Option<u64>,
}

/// What a process is held to that was charged `charged` bytes. What the job's limit leaves is at most what is said here: what
/// the other processes of the job were charged is not known.
fn held_to(commit: Commit, job: Job, charged: u64) -> Vec<MemoryLimit> {
    let of = |bytes: u64, by| MemoryLimit::new(bytes, bytes.saturating_sub(charged), by);
    let all = job.all.map(|bytes| of(bytes, "the job object's limit, other processes of the job not counted"));
    let each = job.each.map(|bytes| of(bytes, "the job object's limit for a process"));
    let commit = MemoryLimit::new(commit.limit, commit.left, "the system's commit limit");
    each.into_iter().chain(all).chain([commit]).collect()
}

#[cfg(windows)]
mod calls {
    use std::{io, ptr};

    use windows_sys::Win32::System::{
        JobObjects::{
            IsProcessInJob, JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY,
            JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation, QueryInformationJobObject,
        },
        ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS_EX},
        SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX},
        Threading::GetCurrentProcess,
    };

    use super::{
        super::{MemoryLimit, SystemMemory},
        Commit, Job, held_to,
    };

    /// What the last call of this thread, `call`, said when it failed.
    pub(crate) fn failed(call: &str) -> io::Error {
        let error = io::Error::last_os_error();
        io::Error::new(error.kind(), format!("{call}: {error}"))
    }

    pub(crate) fn limits() -> io::Result<Vec<MemoryLimit>> {
        Ok(held_to(commit()?, job()?, charged()?))
    }

    fn status() -> io::Result<MEMORYSTATUSEX> {
        let mut status = MEMORYSTATUSEX { dwLength: size_of::<MEMORYSTATUSEX>() as u32, ..Default::default() };
        // SAFETY: it says how long it is.
        match unsafe { GlobalMemoryStatusEx(&raw mut status) } {
            0 => Err(failed("GlobalMemoryStatusEx")),
            _ => Ok(status),
        }
    }

    /// Physical memory; what is available is unused, or a copy of what lies on disk.
    pub(crate) fn of_machine() -> io::Result<SystemMemory> {
        let status = status()?;
        Ok(SystemMemory::new(status.ullTotalPhys, status.ullAvailPhys))
    }

    /// What the system, or what holds this process to less, lets it commit.
    pub(crate) fn commit() -> io::Result<Commit> {
        let status = status()?;
        Ok(Commit { limit: status.ullTotalPageFile, left: status.ullAvailPageFile })
    }

    /// The limits of the job object that this process is in, if it is in one.
    fn job() -> io::Result<Job> {
        let mut inside = 0;
        // SAFETY: the handle of this process needs no closing, and no handle of a job stands for any.
        if unsafe { IsProcessInJob(GetCurrentProcess(), ptr::null_mut(), &raw mut inside) } == 0 {
            return Err(failed("IsProcessInJob"));
        }
        if inside == 0 {
            return Ok(Job::default());
        }
        let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
        let length = size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32;
        // SAFETY: this class fills this struct, of that length; no handle stands for the job of this process.
        let done = unsafe {
            QueryInformationJobObject(
                ptr::null_mut(),
                JobObjectExtendedLimitInformation,
                (&raw mut limits).cast(),
                length,
                ptr::null_mut(),
            )
        };
        if done == 0 {
            return Err(failed("QueryInformationJobObject(JobObjectExtendedLimitInformation)"));
        }
        let set = |flag, bytes: usize| (limits.BasicLimitInformation.LimitFlags & flag != 0).then_some(bytes as u64);
        Ok(Job {
            all: set(JOB_OBJECT_LIMIT_JOB_MEMORY, limits.JobMemoryLimit),
            each: set(JOB_OBJECT_LIMIT_PROCESS_MEMORY, limits.ProcessMemoryLimit),
        })
    }

    /// What this process was charged.
    fn charged() -> io::Result<u64> {
        let length = size_of::<PROCESS_MEMORY_COUNTERS_EX>() as u32;
        let mut counters = PROCESS_MEMORY_COUNTERS_EX { cb: length, ..Default::default() };
        // SAFETY: the struct begins with the one that the call names, and the length says that it is the longer one.
        match unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), (&raw mut counters).cast(), length) } {
            0 => Err(failed("GetProcessMemoryInfo")),
            _ => Ok(counters.PrivateUsage as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Commit = Commit { limit: 20_000, left: 9_000 };

    /// Bytes, what is left of them, and who limits them.
    fn all(job: Job) -> Vec<(u64, u64, String)> {
        held_to(COMMIT, job, 500).into_iter().map(|limit| (limit.bytes, limit.available, limit.by)).collect()
    }

    fn commit() -> (u64, u64, String) {
        (20_000, 9_000, "the system's commit limit".into())
    }

    #[test]
    fn the_commit_limit_holds_every_process() {
        assert_eq!(all(Job::default()), [commit()]);
    }

    #[test]
    fn a_job_leaves_its_limits_less_what_was_charged_and_says_whose_charge_that_is() {
        let whole = (4_000, 3_500, "the job object's limit, other processes of the job not counted".into());
        let each = (3_000, 2_500, "the job object's limit for a process".into());
        assert_eq!(all(Job { all: Some(4_000), each: Some(3_000) }), [each, whole, commit()]);
        // A limit can be set below what was charged before.
        assert_eq!(all(Job { all: None, each: Some(400) })[0].1, 0);
    }
}
