//! The hourly limit of the API.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::access::Visitor;
use crate::server::Response;

/// How many requests were made, by token.
#[derive(Debug)]
pub(in super::super) struct RateLimits {
    /// Without a token, and with one.
    limits: (u64, u64),
    used: BTreeMap<Option<String>, u64>,
    exhausted: bool,
    /// In seconds since 1970.
    reset: u64,
}

/// What is left to a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    limit: u64,
    used: u64,
    reset: u64,
}

impl RateLimits {
    pub(super) fn new(limits: (u64, u64)) -> Self {
        let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
        let reset = in_an_hour.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self { limits, used: BTreeMap::new(), exhausted: false, reset }
    }

    /// What is left to `visitor`.
    pub(super) fn of(&self, visitor: Visitor<'_>) -> Allowance {
        let limit = if visitor.token().is_some() { self.limits.1 } else { self.limits.0 };
        let used = if self.exhausted { limit } else { self.used(visitor.token()).min(limit) };
        Allowance { limit, used, reset: self.reset }
    }

    /// Counts a request; what is left if that is none.
    pub(super) fn take(&mut self, visitor: Visitor<'_>) -> Result<(), Allowance> {
        let allowance = self.of(visitor);
        if allowance.remaining() == 0 {
            return Err(allowance);
        }
        *self.used.entry(visitor.token().map(str::to_owned)).or_default() += 1;
        Ok(())
    }

    /// Takes the count of a request back.
    pub(super) fn give_back(&mut self, visitor: Visitor<'_>) {
        let used = self.used.get_mut(&visitor.token().map(str::to_owned));
        used.into_iter().for_each(|used| *used = used.saturating_sub(1));
    }

    pub(in super::super) fn exhaust(&mut self, reset: u64) {
        (self.exhausted, self.reset) = (true, reset);
    }

    pub(in super::super) fn set_reset(&mut self, reset: u64) {
        self.reset = reset;
    }

    pub(in super::super) fn refill(&mut self) {
        self.used.clear();
        self.exhausted = false;
    }

    pub(in super::super) fn used(&self, token: Option<&str>) -> u64 {
        self.used.get(&token.map(str::to_owned)).copied().unwrap_or_default()
    }
}

impl Allowance {
    pub(super) fn remaining(self) -> u64 {
        self.limit - self.used
    }

    /// `response` with the headers that tell of it.
    pub(super) fn told_in(self, response: Response) -> Response {
        response
            .with_header("X-RateLimit-Limit", self.limit.to_string())
            .with_header("X-RateLimit-Remaining", self.remaining().to_string())
            .with_header("X-RateLimit-Reset", self.reset.to_string())
            .with_header("X-RateLimit-Used", self.used.to_string())
            .with_header("X-RateLimit-Resource", "core")
    }

    /// `/rate_limit`.
    pub(super) fn json(self) -> Value {
        let core = json!({
            "limit": self.limit,
            "used": self.used,
            "remaining": self.remaining(),
            "reset": self.reset,
        });
        json!({ "resources": { "core": core }, "rate": core })
    }
}
