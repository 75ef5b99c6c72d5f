//! Listeners, and a thread for each connection.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{Host, Request, Response, Subject, connection, faults::Faults, record::Log};

/// What is served.
pub(crate) trait Site: fmt::Debug + Send + Sync {
    /// The file that `request` asks for, whether it is there or not.
    fn subject(&self, host: Host, request: &Request) -> Option<Subject>;

    /// The whole answer to `request`, whatever range and conditions it names: they are applied to it after.
    fn answer(&self, host: Host, request: &Request) -> Response;

    /// An error with this status, as `host` words it.
    fn error(&self, host: Host, status: u16) -> Response;
}

/// Bound listeners: a site has to know their addresses before it is served.
#[derive(Debug)]
pub(crate) struct Listeners {
    hosts: Vec<(Host, TcpListener, SocketAddr)>,
}

/// A server of some hosts. Dropping it ends every connection and waits for its threads.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    addresses: Vec<(Host, SocketAddr)>,
    accepting: Vec<JoinHandle<()>>,
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) site: Arc<dyn Site>,
    pub(super) log: Log,
    pub(super) faults: Faults,
    /// How often stalled requests were told to go on.
    pub(super) releases: AtomicU64,
    pub(super) stopping: AtomicBool,
    connections: Mutex<BTreeMap<u64, (TcpStream, JoinHandle<()>)>>,
    accepted: AtomicU64,
}

impl Listeners {
    /// Binds each of `hosts` to a port of 127.0.0.1 that is free.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn bind(hosts: &[Host]) -> Self {
        let bind = |host: &Host| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            io::Result::Ok((*host, listener, address))
        };
        let hosts = hosts.iter().map(bind).collect::<io::Result<_>>();
        Self { hosts: hosts.unwrap_or_else(|error| panic!("binding a port of 127.0.0.1: {error}")) }
    }

    /// The URL of `host`, which is one of those bound.
    pub(crate) fn endpoint(&self, host: Host) -> String {
        let bound = self.hosts.iter().find(|(known, ..)| *known == host);
        format!("http://{}", bound.expect("a site asks for hosts that it has").2)
    }
}

impl Server {
    /// Serves `site` until it is dropped.
    pub(super) fn start(listeners: Listeners, site: Arc<dyn Site>) -> Self {
        let shared = Arc::new(Shared {
            site,
            log: Log::default(),
            faults: Faults::default(),
            releases: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
        });
        let addresses = listeners.hosts.iter().map(|(host, _, address)| (*host, *address)).collect();
        let accept = |(host, listener, _)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || accept(host, &listener, &shared))
        };
        let accepting = listeners.hosts.into_iter().map(accept).collect();
        Self { shared, addresses, accepting }
    }

    /// Where `host` listens, which is one of those bound.
    pub(super) fn address(&self, host: Host) -> SocketAddr {
        let bound = self.addresses.iter().find(|(known, _)| *known == host);
        bound.expect("a server is asked for hosts that it has").1
    }

    pub(super) fn log(&self) -> &Log {
        &self.shared.log
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Lets the requests in progress go on where they are stalled, or will be.
    pub(super) fn release(&self) {
        self.shared.releases.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for (accepting, (_, address)) in self.accepting.drain(..).zip(&self.addresses) {
            // A connection wakes the listener up. If none can be made, its thread is left to the end of the process.
            if TcpStream::connect(address).is_ok() {
                let _ = accepting.join(); // a panic was reported when it happened
            }
        }
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for (stream, thread) in std::mem::take(&mut *connections).into_values() {
            let _ = stream.shutdown(Shutdown::Both); // it may be closed already
            let _ = thread.join();
        }
    }
}

fn accept(host: Host, listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        // A client that gave up before it was accepted is no concern of the others.
        let Ok((stream, own)) = stream.and_then(|stream| Ok((stream.try_clone()?, stream))) else { continue };
        let id = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let thread = thread::spawn({
            let shared = Arc::clone(shared);
            move || {
                connection::serve(&shared, host, id, &own);
                let _ = own.shutdown(Shutdown::Both); // the other handle to it would keep it open
            }
        });
        let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|_, (_, thread)| !thread.is_finished());
        connections.insert(id, (stream, thread));
    }
}
