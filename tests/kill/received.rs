//! How many bytes a process had read when it was killed.
//!
//! The hub knows what it handed to the system; part of that is still in the buffers of sockets, which may hold megabytes.
//! So the process is frozen, its sockets are duplicated into this process, it is killed, and what it had not read is read
//! here, to the end of each answer. The rest it had read: no byte that it had is left out, whatever buffers there are.

use std::{
    fs,
    io::{self, Read},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::{
    process::Fetching,
    world::{World, sent},
};

/// What a process had read when it was killed.
pub(crate) struct Received {
    /// Bytes of the weights.
    pub(crate) bytes: u64,
    /// Whether it had ended by itself before.
    pub(crate) ended: bool,
}

/// Kills the process wherever it is now.
pub(crate) fn kill(world: &World, fetching: Fetching) -> Received {
    let ended = !freeze(fetching.id());
    if ended {
        fetching.succeed();
        world.hub.wait_until_idle();
        return Received { bytes: sent(&world.hub.requests()), ended };
    }
    let sockets = sockets(fetching.id(), world.hub.cdn_address());
    fetching.kill();
    let unread: u64 = sockets.into_iter().map(unread).sum();
    let requests = world.hub.wait_until_idle();
    Received { bytes: sent(&requests) - unread, ended }
}

/// Stops all threads of a child of this process. False if it has ended.
fn freeze(id: u32) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the process is a child of this one that nobody has waited for, so its number is still its own.
    assert_eq!(unsafe { libc::kill(id as libc::pid_t, libc::SIGSTOP) }, 0, "{}", io::Error::last_os_error());
    // It is left to be waited for.
    let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: `info` has room for what is written to it.
    let waited = unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), options) };
    assert_eq!(waited, 0, "{}", io::Error::last_os_error());
    // SAFETY: zeroed, and then written by a call that succeeded.
    unsafe { info.assume_init() }.si_code == libc::CLD_STOPPED
}

/// The sockets of a frozen process that lead to `address`.
fn sockets(id: u32, address: SocketAddr) -> Vec<TcpStream> {
    let process = call(libc::SYS_pidfd_open, [id as libc::c_long, 0, 0]);
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{id}/fd")).unwrap() {
        let entry = entry.unwrap();
        if !fs::read_link(entry.path()).unwrap().to_string_lossy().starts_with("socket:") {
            continue;
        }
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let socket = TcpStream::from(call(libc::SYS_pidfd_getfd, [process.as_raw_fd().into(), number, 0]));
        // The ends of pairs lead nowhere.
        if socket.peer_addr().is_ok_and(|peer| peer == address) {
            sockets.push(socket);
        }
    }
    sockets
}

/// A system call that gives a file descriptor.
fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> OwnedFd {
    let [a, b, c] = arguments;
    // SAFETY: the two calls above take three numbers and no pointer.
    let fd = unsafe { libc::syscall(number, a, b, c) };
    assert!(fd >= 0, "pidfd_getfd needs Linux 5.6 and the right to trace a child: {}", io::Error::last_os_error());
    // SAFETY: the call made it, for nobody else.
    unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) }
}

/// How many bytes of bodies its process has not read.
fn unread(mut socket: TcpStream) -> u64 {
    socket.set_nonblocking(false).unwrap();
    // The hub ends the connection once the answer is sent.
    socket.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    // An answer of which nothing was read begins with its head.
    let head = if rest.starts_with(b"HTTP/1.1 ") { rest.windows(4).position(|end| end == b"\r\n\r\n") } else { None };
    (rest.len() - head.map_or(0, |end| end + 4)) as u64
}
