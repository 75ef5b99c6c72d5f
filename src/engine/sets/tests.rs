use std::{collections::BTreeSet, sync::Arc};

use futures_util::FutureExt;
use llm_local_core::{Allowance, ArtifactRef, Error, LoraAdapter, Result, UsedAdapter};
use tokio::sync::oneshot;

use super::{AdapterLimits, OwnSet, known::Known};

/// A set that is told from others by its digest.
fn set(digest: &str) -> OwnSet {
    OwnSet::new(Vec::new(), digest.into())
}

/// A set on its way, and what ends that way.
fn change(digest: &str, before: &Arc<OwnSet>) -> (Arc<OwnSet>, oneshot::Sender<Result<()>>) {
    let (sender, receiver) = oneshot::channel();
    let change = async { receiver.await.unwrap() }.boxed().shared();
    (Arc::new(set(digest).after(change, before)), sender)
}

fn settled(own: &Arc<OwnSet>) -> Option<String> {
    own.settled().now_or_never().map(|own| own.digest().to_owned())
}

#[test]
fn what_could_not_be_set_is_what_it_was_before() {
    for (first, second, expected) in [(true, true, "c"), (true, false, "b"), (false, true, "c"), (false, false, "a")] {
        let a = Arc::new(set("a"));
        let (b, to_b) = change("b", &a);
        let (c, to_c) = change("c", &b);
        assert!(!c.is_surely_empty());
        assert_eq!((settled(&a).as_deref(), settled(&b), settled(&c)), (Some("a"), None, None));
        let outcome = |worked| if worked { Ok(()) } else { Err(Error::adapter("x", "no")) };
        to_b.send(outcome(first)).unwrap();
        to_c.send(outcome(second)).unwrap();
        assert_eq!(settled(&c).as_deref(), Some(expected));
        assert_eq!(settled(&b).as_deref(), Some(if first { "b" } else { "a" }));
    }
}

#[test]
fn what_is_over_is_not_kept() {
    let first = Arc::new(set("first"));
    let over = Arc::downgrade(&first);
    let mut own = first;
    for worked in [true, false, true] {
        let (next, sender) = change("next", &own);
        sender.send(if worked { Ok(()) } else { Err(Error::Cancelled) }).unwrap();
        own = next;
    }
    let (last, _pending) = change("last", &own);
    drop(own);
    assert!(over.upgrade().is_none());
    assert!(last.settled().now_or_never().is_none());
}

#[test]
fn adapters_of_one_version_are_one_while_somebody_holds_it() {
    let adapter = |digest: &str| Arc::new(LoraAdapter::new("hf:a/b", digest, Vec::new()));
    let used = |revision: &str| {
        let reference: ArtifactRef = "hf:a/b".parse().unwrap();
        UsedAdapter::new(reference, revision, None, 1.0)
    };
    let mut known = Known::default();
    let one = known.take_up(adapter("1"), used("1"), BTreeSet::new());
    assert!(Arc::ptr_eq(&known.take_up(adapter("1"), used("1"), BTreeSet::new()), &one));
    // The same content by another revision, and other content.
    for (digest, revision) in [("1", "2"), ("2", "1")] {
        let other = known.take_up(adapter(digest), used(revision), BTreeSet::new());
        assert!(!Arc::ptr_eq(&other, &one));
        let (known, _) = known.used(&other, 0.5).unwrap();
        assert_eq!((known.revision.as_str(), known.weight), (revision, 0.5));
    }
    // Another that more is let pass of.
    let more = known.take_up(adapter("1"), used("1"), [Allowance::UndeclaredTensors].into());
    assert!(!Arc::ptr_eq(&more, &one));
    assert_eq!(known.used(&more, 1.0).unwrap().1, &[Allowance::UndeclaredTensors].into());
    assert!(known.used(&adapter("1"), 1.0).is_none());
    drop(one);
    let again = adapter("1");
    assert!(Arc::ptr_eq(&known.take_up(again.clone(), used("1"), BTreeSet::new()), &again));
}

#[test]
fn bytes_count_together_and_what_is_at_a_limit_is_within() {
    let module =
        |rank: usize| llm_local_core::LoraModule::new("m", (rank, 2, 3), vec![1.0; rank * 2], vec![1.0; rank * 3], 1.0);
    let adapter = |rank| LoraAdapter::new(format!("hf:a/r{rank}"), "d", vec![module(rank)]);
    let (small, large) = (adapter(1), adapter(4));
    let (of_small, of_large) = (20, 80);
    let limits = AdapterLimits::none().with_count(2).with_rank(4).with_bytes(of_small + of_large);
    limits.check([&small, &large]).unwrap();
    let refused = |limits: AdapterLimits| limits.check([&small, &large]).unwrap_err().to_string();
    for (limits, parts) in [
        (limits.with_count(1), ["hf:a/r1 + hf:a/r4", "`count` of 1"]),
        (limits.with_rank(3), ["hf:a/r4", "`rank` of 3"]),
        (limits.with_bytes(99), ["hf:a/r4 cannot be used: it takes 100 bytes with those before it", "`bytes` of 99"]),
        (limits.with_bytes(19), ["hf:a/r1 cannot be used: it takes 20 bytes,", "`bytes` of 19"]),
    ] {
        let text = refused(limits);
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    AdapterLimits::default().check([&small, &large]).unwrap();
}
