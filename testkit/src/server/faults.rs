//! Which fault a request gets, and what it makes of the answer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Content, Fault, Host, Request, Response, Subject, conditions,
    delivery::{Delivery, Stop},
    fault::Action,
    gzip,
    record::is_for,
};

/// The faults that are set, in their order.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(super) fn set(&self, fault: Fault) {
        self.list().push(fault);
    }

    pub(super) fn clear(&self) {
        self.list().clear();
    }

    /// What goes wrong with `request`, to which `response` would be the answer: the first fault that is for it and has
    /// turns left, of which one is used up.
    pub(super) fn take(
        &self,
        host: Host,
        request: &Request,
        subject: Option<&Subject>,
        response: &Response,
    ) -> Vec<Action> {
        for fault in &mut *self.list() {
            if !concerns(fault, host, request, subject, response) || fault.times == Some(0) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times = fault.times.map(|times| times - 1);
            return fault.actions.clone();
        }
        Vec::new()
    }

    fn list(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn concerns(fault: &Fault, host: Host, request: &Request, subject: Option<&Subject>, response: &Response) -> bool {
    let needs_body = fault.actions.iter().any(Action::is_of_the_body);
    let needs_range = fault.actions.iter().any(|action| matches!(action, Action::IgnoreRange));
    fault.host.is_none_or(|only| only == host)
        && fault.method.as_ref().is_none_or(|only| *only == request.method)
        && fault.path.as_ref().is_none_or(|pattern| is_for(pattern, &request.path, subject))
        && (!needs_body || request.method == "GET" && response.status == 200)
        && (!needs_range || request.header("range").is_some())
}

/// The answer to `request` that `actions` make of the whole true one, and how it is sent. `error` words an error with
/// a status.
pub(super) fn apply(
    actions: &[Action],
    request: &Request,
    mut response: Response,
    error: impl Fn(u16) -> Response,
) -> (Response, Delivery) {
    let size = response.body.size();
    for action in actions {
        replace(action, request, &mut response, &error);
    }
    if !actions.iter().any(|action| matches!(action, Action::IgnoreRange)) {
        conditions::apply(request, &mut response);
    }
    let mut delivery = Delivery::default();
    for action in actions {
        match action {
            Action::HangUp => delivery.before = Some(Stop::Cut),
            Action::Silence => delivery.before = Some(Stop::Stall),
            Action::Cut(bytes) => delivery.within = Some((*bytes, Stop::Cut)),
            Action::Stall(bytes) => delivery.within = Some((*bytes, Stop::Stall)),
            Action::Slow(rate) => delivery.bytes_per_second = Some(*rate),
            Action::Promise(difference) => delivery.promise = *difference,
            Action::Status(416) => conditions::not_satisfiable(&mut response, size),
            Action::Gzip => compress(&mut response),
            Action::Header { name, value } => response.set_header(name, value),
            _ => {}
        }
    }
    (response, delivery)
}

/// Changes what there is to answer with, before a range of it is taken.
fn replace(action: &Action, request: &Request, response: &mut Response, error: &impl Fn(u16) -> Response) {
    match action {
        Action::Etag(etag) => {
            let linked = response.header("x-linked-etag").is_some();
            response.set_header(if linked { "X-Linked-Etag" } else { "ETag" }, etag);
        }
        Action::Changed(content) => {
            response.set_header("ETag", format!("\"{}\"", content.git_blob()));
            response.replace_body(content.clone());
        }
        Action::Invert(range) => response.replace_body(response.body.inverted(range.clone())),
        Action::Resize(difference) => {
            let size = response.body.size().saturating_add_signed(*difference);
            response.replace_body(response.body.resized(size));
        }
        Action::Answer { status, content_type, body } => {
            *response = Response::new(*status, content_type, body.clone());
        }
        Action::Status(status) => *response = error(*status),
        Action::Redirect { status, location } => {
            let location = location.clone().unwrap_or_else(|| request.target());
            *response = Response::redirect(*status, &location);
        }
        _ => {}
    }
}

fn compress(response: &mut Response) {
    // What cannot be read is not there to be encoded either: the delivery finds that out and ends the connection.
    if let Ok(bytes) = response.body.read(response.range.clone()) {
        response.replace_body(Content::from(gzip::stored(&bytes)));
        response.set_header("Content-Encoding", "gzip");
    }
}
