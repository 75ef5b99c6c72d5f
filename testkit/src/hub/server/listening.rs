//! Two listeners, and a thread for each connection.

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

use super::{
    super::record::{Host, Log},
    Request, Response, connection,
    faults::Faults,
};

/// What is served.
pub(crate) trait Site: fmt::Debug + Send + Sync {
    /// The repository and the path in it of the file that `request` asks for, whether it is there or not.
    fn file(&self, host: Host, request: &Request) -> Option<(String, String)>;

    /// The whole answer to `request`, whatever range and conditions it names: they are applied to it after.
    fn answer(&self, host: Host, request: &Request) -> Response;
}

/// Two bound listeners: a site has to know their addresses before it is served.
#[derive(Debug)]
pub(crate) struct Listeners {
    hosts: [(Host, TcpListener, SocketAddr); 2],
}

/// A server of two hosts. Dropping it ends every connection and waits for its threads.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    addresses: [SocketAddr; 2],
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
    /// Binds both to ports that are free.
    pub(crate) fn bind() -> io::Result<Self> {
        let bind = |host| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let address = listener.local_addr()?;
            io::Result::Ok((host, listener, address))
        };
        Ok(Self { hosts: [bind(Host::Hub)?, bind(Host::Cdn)?] })
    }

    /// Where `host` listens.
    pub(crate) fn address(&self, host: Host) -> SocketAddr {
        let [hub, cdn] = &self.hosts;
        if host == hub.0 { hub.2 } else { cdn.2 }
    }
}

impl Server {
    /// Serves `site` until it is dropped.
    pub(crate) fn start(listeners: Listeners, site: Arc<dyn Site>) -> Self {
        let shared = Arc::new(Shared {
            site,
            log: Log::default(),
            faults: Faults::default(),
            releases: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
        });
        let addresses = [listeners.hosts[0].2, listeners.hosts[1].2];
        let accept = |(host, listener, _)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || accept(host, &listener, &shared))
        };
        let accepting = listeners.hosts.into_iter().map(accept).collect();
        Self { shared, addresses, accepting }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.shared.log
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Lets the requests in progress go on where they are stalled, or will be.
    pub(crate) fn release(&self) {
        self.shared.releases.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for (accepting, address) in self.accepting.drain(..).zip(self.addresses) {
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
