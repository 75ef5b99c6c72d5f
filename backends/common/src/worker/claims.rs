//! Who may have a session, in order.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use llm_local_core::SessionId;

/// The claims on sessions, in the order they were made.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(Rc<RefCell<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    made: u64,
    claims: VecDeque<(u64, Vec<SessionId>)>,
}

impl Claims {
    /// Claims all of `sessions` together, behind the claims that are there. Whoever needs two sessions gets both at
    /// once or waits with none, so no two can wait for each other.
    pub(super) fn claim(&self, sessions: Vec<SessionId>) -> Claim {
        let mut queue = self.0.borrow_mut();
        queue.made += 1;
        let number = queue.made;
        queue.claims.push_back((number, sessions));
        Claim { claims: self.clone(), number }
    }
}

/// A claim on sessions. Dropping it gives them to the next in line.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Claims,
    number: u64,
}

impl Claim {
    /// Whether no earlier claim is on one of its sessions.
    pub(super) fn is_granted(&self) -> bool {
        let queue = self.claims.0.borrow();
        let earlier = queue.claims.iter().position(|(number, _)| *number == self.number);
        earlier.is_some_and(|place| {
            let (_, sessions) = &queue.claims[place];
            queue.claims.range(..place).all(|(_, others)| others.iter().all(|other| !sessions.contains(other)))
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.borrow_mut().claims.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_goes_to_its_claims_in_order() {
        let claims = Claims::default();
        let claim = |names: &[&str]| claims.claim(names.iter().map(|name| SessionId::new(*name)).collect());
        let first = claim(&["a"]);
        let second = claim(&["a"]);
        let third = claim(&["a"]);
        let other = claim(&["b"]);
        assert_eq!([&first, &second, &third, &other].map(Claim::is_granted), [true, false, false, true]);
        // One that gives up while it waits.
        drop(second);
        assert!(!third.is_granted());
        drop(first);
        assert!(third.is_granted());
    }

    #[test]
    fn two_sessions_are_had_together_or_not_at_all() {
        let claims = Claims::default();
        let claim = |names: &[&str]| claims.claim(names.iter().map(|name| SessionId::new(*name)).collect());
        let a = claim(&["a"]);
        let there = claim(&["a", "b"]);
        let back = claim(&["b", "a"]);
        let b = claim(&["b"]);
        assert_eq!([&a, &there, &back, &b].map(Claim::is_granted), [true, false, false, false]);
        drop(a);
        assert_eq!([&there, &back, &b].map(Claim::is_granted), [true, false, false]);
        drop(there);
        assert!(back.is_granted() && !b.is_granted());
        drop(back);
        assert!(b.is_granted());
    }
}
