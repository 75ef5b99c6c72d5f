//! One connection: requests and their answers, one after the other.

use std::{io::Write as _, net::TcpStream, sync::atomic::Ordering};

use super::{Host, Outcome, Request, Response, delivery::Client, faults, listening::Shared, request::Reader};

/// Answers the requests that come on `stream` until the client is done with it or an answer ends it.
pub(super) fn serve(shared: &Shared, host: Host, connection: u64, stream: &TcpStream) {
    let _ = stream.set_nodelay(true); // an answer that waits for more bytes is only slower
    let mut reader = Reader::new(stream);
    loop {
        match reader.next() {
            Ok(Some(request)) => {
                if !answer(shared, host, connection, stream, &request) {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                let head = Response::text(400, error.to_string());
                let _ = (&*stream).write_all(&head.head(0, false)); // the client may be gone
                return;
            }
        }
    }
}

/// Answers `request`, and says whether the connection can be used for another.
fn answer(shared: &Shared, host: Host, connection: u64, stream: &TcpStream, request: &Request) -> bool {
    let releases = shared.releases.load(Ordering::SeqCst);
    let subject = shared.site.subject(host, request);
    let id = shared.log.begin(host, request, connection, subject.clone());

    let response = shared.site.answer(host, request);
    let actions = shared.faults.take(host, request, subject.as_ref(), &response);
    let error = |status| shared.site.error(host, status);
    let (response, delivery) = faults::apply(&actions, request, response, error);

    let keep_alive = request.keep_alive && delivery.promise == 0;
    let head_only = request.method == "HEAD" || response.status == 304;
    let outcome = Client { shared, stream, id, releases }.deliver(&response, &delivery, head_only, keep_alive);
    shared.log.end(id, outcome);
    keep_alive && outcome == Outcome::Finished
}
