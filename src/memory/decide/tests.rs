use std::{collections::BTreeMap, time::Duration};

use super::*;

const WAITS: WhenShort = WhenShort::Wait;
const FAILS: WhenShort = WhenShort::Fail;

/// A model of the ledger: bytes that it was promised, bytes that it holds, and what it is doing.
type There = (u64, u64, Is);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    Idle,
    InUse,
    Pinned,
    /// Pinned, and in use.
    Both,
    Loading,
    Leaving,
    /// Idle, on the GPU.
    OnGpu,
}
use Is::*;

/// A ledger with these models, which were used in this order; and their ids and what they hold.
fn ledger(there: &[There]) -> (Ledger, Vec<Id>, HashMap<Id, u64>) {
    let (mut ledger, mut held) = (Ledger::default(), HashMap::new());
    let put = |(at, (promised, holds, is)): (usize, &There)| {
        let now = Duration::from_secs(at as u64);
        let (device, on_host) = if *is == OnGpu { ("cuda:0", false) } else { ("cpu", true) };
        let demand = Demand { model: format!("m{at}"), device: device.into(), on_host, bytes: *promised };
        let id = ledger.insert(demand, now);
        if *is == Loading {
            return id;
        }
        ledger.ready(id, *promised, now);
        held.insert(id, *holds);
        match is {
            InUse => drop(ledger.lease(id, None).unwrap()),
            Pinned => ledger.pin(id, true),
            Both => {
                ledger.pin(id, true);
                ledger.lease(id, None).unwrap();
            }
            // It says nothing of what it holds any more.
            Leaving => {
                ledger.leave(id);
                ledger.leaves_with(id, *holds);
                held.remove(&id);
            }
            Idle | OnGpu | Loading => {}
        }
        id
    };
    let ids = there.iter().enumerate().map(put).collect();
    (ledger, ids, held)
}

/// What applies to the machine: bytes that may be promised, and that are free.
fn host(limit: u64, free: u64) -> Vec<Bound> {
    vec![Bound { scope: Scope::Host, limit, free, headroom: 0, by: "the budget".into() }]
}

fn demand(bytes: u64) -> Demand {
    Demand { model: "new".into(), device: "cpu".into(), on_host: true, bytes }
}

fn decide(bounds: &[Bound], max_models: Option<usize>, when_in_use: WhenShort, there: &[There], need: u64) -> Outcome {
    let (ledger, ids, held) = ledger(there);
    let verdict = Rules { bounds, held: &held, max_models, when_in_use }.decide(&demand(need), &ledger);
    match verdict {
        Verdict::Fits => Outcome::Fits,
        Verdict::Unload(id) => Outcome::Unload(ids.iter().position(|at| *at == id).unwrap()),
        Verdict::Wait => Outcome::Wait,
        Verdict::Short { available, .. } => Outcome::Short(available),
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Fits,
    /// By the place in the table.
    Unload(usize),
    Wait,
    Short(u64),
}

#[test]
fn memory_of_the_machine_is_promised_as_the_table_says() {
    use Outcome::*;
    /// Budget, free, policy, who is there, what is needed, what becomes of it.
    type Case = (u64, u64, WhenShort, &'static [There], u64, Outcome);
    let cases: &[Case] = &[
        (100, 100, FAILS, &[], 100, Fits),
        (100, 100, WAITS, &[], 101, Short(100)),
        (100, 99, WAITS, &[], 100, Short(99)),
        // What is held is not free, and counts once.
        (100, 70, FAILS, &[(30, 30, Idle)], 70, Fits),
        (100, 70, FAILS, &[(30, 30, Idle)], 71, Unload(0)),
        // What was promised and is not taken yet is not free, however much is.
        (200, 100, FAILS, &[(30, 10, InUse)], 80, Fits),
        (200, 100, FAILS, &[(30, 10, InUse)], 81, Short(80)),
        // It is known how much of it is taken once the load has ended, which it does by itself.
        (200, 100, FAILS, &[(40, 0, Loading)], 61, Wait),
        (200, 100, FAILS, &[(40, 0, Loading)], 101, Short(60)),
        (200, 100, WAITS, &[(40, 0, Loading)], 61, Wait),
        // One that holds more than it was promised takes nothing of the others' promises.
        (200, 60, FAILS, &[(30, 40, InUse)], 60, Fits),
        // The oldest that may go.
        (100, 10, FAILS, &[(30, 30, Idle), (30, 30, Idle), (30, 30, Idle)], 40, Unload(0)),
        (100, 10, FAILS, &[(30, 30, InUse), (30, 30, Idle), (30, 30, Idle)], 40, Unload(1)),
        (100, 10, FAILS, &[(30, 30, Pinned), (30, 30, InUse), (30, 30, Idle)], 40, Unload(2)),
        // What leaves is waited for before another one goes, also where more is needed than it gives.
        (100, 10, FAILS, &[(30, 30, Idle), (30, 30, Idle), (30, 30, Leaving)], 40, Unload(2)),
        (100, 10, FAILS, &[(30, 30, Idle), (30, 30, Idle), (30, 30, Leaving)], 90, Unload(2)),
        // Its memory is not free, and counts once.
        (100, 40, FAILS, &[(30, 30, Idle), (30, 30, Leaving)], 40, Fits),
        // Where nothing would do, nothing goes.
        (100, 10, FAILS, &[(30, 30, InUse), (30, 30, Idle), (30, 30, Idle)], 71, Short(10)),
        (100, 10, WAITS, &[(30, 30, InUse), (30, 30, Idle), (30, 30, Idle)], 71, Wait),
        (100, 10, WAITS, &[(30, 30, Pinned), (30, 30, Idle), (30, 30, Idle)], 71, Short(10)),
        (100, 10, WAITS, &[(30, 30, Both), (30, 30, Idle), (30, 30, Idle)], 71, Wait),
        (100, 10, WAITS, &[(30, 30, Idle), (30, 30, Idle), (30, 30, Idle)], 101, Short(10)),
        // Others have taken it: what is idle goes where that may do, and stays where it cannot.
        (100, 10, FAILS, &[(30, 5, Idle)], 40, Unload(0)),
        (100, 5, FAILS, &[(30, 30, Idle)], 40, Short(5)),
        (100, 5, WAITS, &[(30, 30, InUse)], 40, Wait),
        (100, 5, FAILS, &[(30, 30, InUse)], 40, Short(5)),
        // Beyond any number.
        (u64::MAX, u64::MAX, FAILS, &[(u64::MAX, 0, InUse), (u64::MAX, 0, InUse)], 1, Short(0)),
    ];
    for (limit, free, when, there, need, expected) in cases {
        let found = decide(&host(*limit, *free), None, *when, there, *need);
        assert_eq!(found, *expected, "{need} of {limit}, {free} free, {when:?}: {there:?}");
    }
}

#[test]
fn places_are_given_as_the_table_says() {
    use Outcome::*;
    let cases: &[(usize, WhenShort, &[There], Outcome)] = &[
        (1, FAILS, &[], Fits),
        (2, FAILS, &[(1, 1, InUse)], Fits),
        (2, FAILS, &[(1, 1, InUse), (1, 1, Idle)], Unload(1)),
        // Wherever they are.
        (2, FAILS, &[(1, 1, OnGpu), (1, 1, Idle)], Unload(0)),
        (2, FAILS, &[(1, 1, Idle), (1, 1, Leaving)], Unload(1)),
        (2, FAILS, &[(1, 1, InUse), (1, 1, Loading)], Short(0)),
        (2, WAITS, &[(1, 1, InUse), (1, 1, Loading)], Wait),
        (2, WAITS, &[(1, 1, Pinned), (1, 1, Pinned)], Short(0)),
        (2, WAITS, &[(1, 1, Pinned), (1, 1, InUse)], Wait),
    ];
    for (most, when, there, expected) in cases {
        for bounds in [host(100, 100), Vec::new()] {
            let found = decide(&bounds, Some(*most), *when, there, 1);
            assert_eq!(found, *expected, "{most} models, {when:?}: {there:?}");
        }
    }
}

#[test]
fn what_nobody_knows_bounds_nothing() {
    let there = [(u64::MAX, u64::MAX, InUse), (7, 7, Idle)];
    assert_eq!(decide(&[], None, FAILS, &there, u64::MAX), Outcome::Fits);
    let (ledger, _, held) = ledger(&there);
    assert_eq!(Rules { bounds: &[], held: &held, max_models: None, when_in_use: FAILS }.room(&ledger), None);
}

#[test]
fn models_of_another_device_neither_count_nor_go() {
    use Outcome::*;
    let there = [(60, 60, OnGpu), (60, 60, Idle)];
    assert_eq!(decide(&host(100, 40), None, FAILS, &there, 40), Fits);
    assert_eq!(decide(&host(100, 40), None, FAILS, &there, 41), Unload(1));
    // Both bounds hold of a device that takes the machine's memory and has a budget of its own.
    let cpu =
        |limit, free| Bound { scope: Scope::Device("cpu".into()), limit, free, headroom: 0, by: "its own".into() };
    let both = [host(100, 40), vec![cpu(80, 40)]].concat();
    assert_eq!(decide(&both, None, FAILS, &there, 20), Fits);
    assert_eq!(decide(&both, None, FAILS, &there, 21), Unload(1));
    assert_eq!(decide(&both, None, FAILS, &there, 81), Short(20));
}

#[test]
fn a_refusal_names_what_bounds_it_and_who_has_the_memory() {
    let (ledger, _, held) = ledger(&[(30, 30, InUse), (30, 30, Pinned), (30, 0, Loading), (5, 5, Idle)]);
    let hint = |max_models, need, bounds: &[Bound]| {
        let rules = Rules { bounds, held: &held, max_models, when_in_use: FAILS };
        match rules.decide(&demand(need), &ledger) {
            Verdict::Short { hint, .. } => hint,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(hint(None, 50, &host(100, 40)), "the budget; in use: `m0`, `m2`; pinned: `m1`");
    assert_eq!(
        hint(Some(3), 1, &host(1000, 1000)),
        "4 models are loaded, and the policy allows 3; in use: `m0`, `m2`; pinned: `m1`"
    );
    assert!(hint(None, 101, &host(100, 40)).ends_with("may be used: the budget; in use: `m0`, `m2`; pinned: `m1`"));
}

#[test]
fn room_is_what_there_is_once_all_that_may_go_is_gone() {
    let room = |when_in_use, limit, free, there: &[There]| {
        let (ledger, _, held) = ledger(there);
        let bounds = host(limit, free);
        Rules { bounds: &bounds, held: &held, max_models: None, when_in_use }.room(&ledger).unwrap()
    };
    for when in [FAILS, WAITS] {
        assert_eq!(room(when, 100, 80, &[]), 80);
        assert_eq!(room(when, 100, 40, &[(30, 30, Idle), (30, 30, Leaving)]), 100);
        assert_eq!(room(when, 100, 40, &[(30, 30, Idle), (30, 20, Pinned)]), 60);
    }
    let in_use: [There; 3] = [(30, 30, InUse), (20, 0, Loading), (10, 5, Both)];
    assert_eq!(room(FAILS, 100, 65, &in_use), 40);
    // What is in use ends, and what is pinned does not.
    assert_eq!(room(WAITS, 100, 65, &in_use), 90);
}

/// Whatever is there, following the verdicts comes to an end, at which what is said holds.
#[test]
fn following_the_verdicts_ends_as_they_say() {
    let kinds = [Idle, InUse, Pinned, Both, Loading, Leaving];
    let sizes = [10, 25, 40];
    let mut outcomes = BTreeMap::new();
    for case in 0..kinds.len().pow(3) * sizes.len().pow(3) {
        let mut digits = case;
        let mut digit = |of: usize| {
            let digit = digits % of;
            digits /= of;
            digit
        };
        let there: Vec<There> = (0..3)
            .map(|_| {
                let (is, size) = (kinds[digit(kinds.len())], sizes[digit(sizes.len())]);
                (size, if is == Loading { 0 } else { size }, is)
            })
            .collect();
        if there.iter().map(|(promised, ..)| promised).sum::<u64>() > 100 {
            continue;
        }
        for (need, when) in [(30, FAILS), (30, WAITS), (70, FAILS), (70, WAITS)] {
            let (mut ledger, ids, mut held) = ledger(&there);
            let mut gone = Vec::new();
            let verdict = loop {
                let leaving: u64 = ledger.residents().map(|(_, resident)| resident.leaves_with).sum();
                let bounds = host(100, 100 - held.values().sum::<u64>() - leaving);
                match (Rules { bounds: &bounds, held: &held, max_models: None, when_in_use: when })
                    .decide(&demand(need), &ledger)
                {
                    Verdict::Unload(id) => {
                        let resident = ledger.get(id).unwrap();
                        assert!(resident.is_idle() || resident.phase == Phase::Leaving, "{there:?}");
                        ledger.remove(id);
                        held.remove(&id);
                        gone.push(ids.iter().position(|at| *at == id).unwrap());
                    }
                    verdict => break verdict,
                }
            };
            let left: u64 = ledger.residents().map(|(_, resident)| resident.demand.bytes).sum();
            let may_end = |is: Is| matches!(is, InUse | Both | Loading);
            let stays: u64 =
                there.iter().filter(|(.., is)| !matches!(is, Idle | Leaving)).map(|(bytes, ..)| bytes).sum();
            let expected = if stays + need <= 100 {
                "fits"
            } else if when == WAITS && there.iter().any(|(.., is)| may_end(*is)) {
                "waits"
            } else {
                "short"
            };
            let found = match verdict {
                Verdict::Fits => {
                    assert!(left + need <= 100, "{there:?}");
                    "fits"
                }
                Verdict::Wait => "waits",
                _ => "short",
            };
            assert_eq!(found, expected, "{need}, {when:?}: {there:?}, of which {gone:?} went");
            // What goes for nothing is a loss.
            assert!(found == "fits" || gone.is_empty(), "{there:?}");
            *outcomes.entry(found).or_insert(0) += 1;
        }
    }
    assert!(outcomes.len() == 3 && outcomes.values().all(|count| *count > 100), "{outcomes:?}");
}

#[test]
fn the_headroom_is_taken_once_from_what_is_free_and_what_comes_back() {
    let bounds = [Bound { headroom: 8, ..host(100, 2).remove(0) }];
    let there = [(30, 30, Idle)];
    let (ledger, _, held) = ledger(&there);
    let rules = Rules { bounds: &bounds, held: &held, max_models: None, when_in_use: FAILS };
    assert_eq!(rules.room(&ledger), Some(24));
    assert_eq!(decide(&bounds, None, FAILS, &there, 24), Outcome::Unload(0));
    assert_eq!(decide(&bounds, None, FAILS, &there, 25), Outcome::Short(0));
}

#[test]
fn where_memory_is_short_too_the_place_comes_from_one_that_has_some_of_it() {
    let there = [(30, 30, OnGpu), (30, 30, Idle)];
    assert_eq!(decide(&host(100, 40), Some(2), FAILS, &there, 50), Outcome::Unload(1));
    assert_eq!(decide(&host(100, 40), Some(2), FAILS, &there, 40), Outcome::Unload(0));
}

#[test]
fn what_is_being_loaded_has_room_left_beside_it_as_if_it_had_taken_all_of_its_own() {
    let (ledger, _, held) = ledger(&[(50, 0, Loading)]);
    let bounds = host(120, 60);
    let rules = Rules { bounds: &bounds, held: &held, max_models: None, when_in_use: FAILS };
    assert_eq!(rules.room(&ledger), Some(60));
}
