//! A thousand generations that end at random points: the worker lives on, and keeps nothing of them.

#![cfg(all(feature = "candle", feature = "local"))]
#![allow(clippy::print_stdout)] // what was measured, shown with --nocapture

mod common;

use common::{Case, engine, reference, tiny};
use llm_local::{
    ComputeDtype, FinishReason, GenerateRequest, Generation, GenerationEvent, Model,
    core::{CancellationToken, SessionId, TrimLevel},
};
use pollster::block_on;

const GENERATIONS: usize = 1000;
/// Generations after which pools, buffers and the heap have their size.
const WARM: usize = 200;
/// Generations that run at one time.
const AT_ONCE: usize = 4;
const SESSIONS: usize = 3;
const MOST_TOKENS: usize = 12;
/// What resident memory may grow by from `WARM` to `GENERATIONS`: the heap of several threads. A thousand KV caches that
/// are kept would be far more.
const GROWTH: u64 = 4 << 20;

/// How a generation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// After all of its tokens.
    Complete,
    /// By its token, after so many tokens were read.
    Cancel(usize),
    /// Dropped, after so many tokens were read.
    Drop(usize),
}

/// A running generation.
struct Running<'a> {
    generation: Generation,
    cancel: CancellationToken,
    case: &'a Case,
    most: usize,
    end: End,
    session: Option<usize>,
    tokens: Vec<u32>,
}

/// Seeded random numbers (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn session_id(session: usize) -> SessionId {
    SessionId::new(format!("session {session}"))
}

fn start<'a>(model: &Model, cases: &'a [Case], random: &mut Random, running: &[Running<'_>]) -> Running<'a> {
    let case = &cases[random.below(cases.len())];
    let most = 1 + random.below(MOST_TOKENS);
    let end = match random.below(3) {
        0 => End::Complete,
        1 => End::Cancel(random.below(most + 1)),
        _ => End::Drop(random.below(most + 1)),
    };
    // A session has one generation at a time: a second would wait for a first that nobody reads.
    let session = Some(random.below(2 * SESSIONS))
        .filter(|s| model.keeps_sessions() && *s < SESSIONS && running.iter().all(|other| other.session != Some(*s)));
    let cancel = CancellationToken::new();
    let mut request = GenerateRequest::new(case.prompt_ids.clone())
        .with_max_tokens(most)
        .with_ignore_eos(true)
        .with_cancel(cancel.clone());
    if let Some(session) = session {
        request = request.with_session(session_id(session));
    }
    Running { generation: model.generate(request), cancel, case, most, end, session, tokens: Vec::new() }
}

/// Reads the next event of a generation, or ends it. Gives it back while it goes on.
fn advance<'a>(mut running: Running<'a>, ends: &mut [usize; 3]) -> Option<Running<'a>> {
    match running.end {
        End::Drop(after) if running.tokens.len() == after => {
            ends[2] += 1;
            return None;
        }
        End::Cancel(after) if running.tokens.len() == after => running.cancel.cancel(),
        _ => {}
    }
    match block_on(running.generation.next()).expect("a generation ends with its last event").unwrap() {
        GenerationEvent::Token { id, .. } => running.tokens.push(id),
        GenerationEvent::Finished { reason, usage, .. } => {
            // Whatever was generated beside, it is what the reference says.
            assert_eq!(running.tokens, running.case.greedy_ids[..running.tokens.len()], "{:?}", running.case.prompt);
            assert_eq!(usage.prompt_tokens, running.case.prompt_ids.len());
            let whole = running.tokens.len() == running.most;
            match (running.end, reason) {
                (End::Cancel(_), FinishReason::Cancelled) => {
                    assert!(usage.generated_tokens >= running.tokens.len());
                    ends[1] += 1;
                }
                (End::Complete | End::Cancel(_), FinishReason::Length) if whole => ends[0] += 1,
                (end, reason) => panic!("{end:?} ended with {reason:?} after {} tokens", running.tokens.len()),
            }
            return None;
        }
        _ => {}
    }
    Some(running)
}

/// The KV caches that are left once the worker has seen that generations were dropped. Each call of the worker lets it
/// look once at least; it needs two looks, for what was dropped while it computed.
fn settled(model: &Model) -> u64 {
    for _ in 0..2 * AT_ONCE {
        block_on(model.trim(TrimLevel::Caches)).unwrap();
    }
    model.memory().kv_cache
}

/// This process's resident memory in bytes, where the system says it.
fn resident() -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Some(line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024)
}

#[test]
fn a_thousand_generations_leave_no_memory_and_the_worker_behind() {
    let engine = engine();
    let model = block_on(engine.load(&tiny(None).with_dtype(ComputeDtype::F32))).unwrap();
    let cases = reference("tiny-llama").cases;
    let mut random = Random(7);
    let mut running: Vec<Running<'_>> = Vec::new();
    let (mut started, mut ends, mut warm) = (0, [0; 3], None);
    while started < GENERATIONS || !running.is_empty() {
        if started < GENERATIONS && (running.is_empty() || running.len() < AT_ONCE && random.below(2) == 0) {
            running.push(start(&model, &cases, &mut random, &running));
            started += 1;
            if started == WARM {
                warm = resident();
            }
        }
        let one = running.swap_remove(random.below(running.len()));
        running.extend(advance(one, &mut ends));
    }
    let grown = warm.zip(resident()).map(|(warm, now)| now.saturating_sub(warm));

    assert_eq!(ends.iter().sum::<usize>(), GENERATIONS);
    assert!(ends.iter().all(|n| *n > GENERATIONS / 10), "complete, cancelled, dropped: {ends:?}");
    let of_sessions = settled(&model);
    assert_eq!(of_sessions > 0, model.keeps_sessions());
    for session in 0..SESSIONS {
        block_on(model.end_session(session_id(session))).unwrap();
    }
    assert_eq!(settled(&model), 0);
    println!("complete, cancelled, dropped: {ends:?}; sessions held {of_sessions} bytes; grown by {grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown <= GROWTH), "resident memory has grown by {grown:?} bytes");

    for case in &cases {
        let request =
            GenerateRequest::new(case.prompt_ids.clone()).with_max_tokens(case.greedy_ids.len()).with_ignore_eos(true);
        let completion = block_on(model.generate(request).complete()).unwrap();
        assert_eq!(completion.tokens, case.greedy_ids, "{:?}", case.prompt);
    }
    block_on(model.unload()).unwrap();
}
