//! A thousand generations that end at random points, in their prompts and behind: the worker lives on, and keeps
//! nothing of them.

#![cfg(all(feature = "candle", feature = "local"))]
#![allow(clippy::print_stdout)] // what was measured, shown with --nocapture

mod common;

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use common::{engine, reference, tiny};
use futures_util::FutureExt;
use llm_local::{
    ComputeDtype, FinishReason, GenerateRequest, Generation, GenerationEvent, Model,
    core::{CancellationToken, SessionId},
};
use pollster::block_on;

const GENERATIONS: usize = 1000;
/// Generations after which pools, buffers and the heap have their size.
const WARM: usize = 200;
/// Generations that run at one time.
const AT_ONCE: usize = 4;
const SESSIONS: usize = 3;
const MOST_TOKENS: usize = 12;
/// Tokens of the prompts that take several steps. With [`MOST_TOKENS`] they fill all but a few of the context's 512.
const LONG: [usize; 4] = [300, 365, 430, 495];
/// Tokens that the long prompts begin with alike.
const ALIKE: usize = 100;
/// Tokens of a prompt that the worker computes in one step on the CPU.
const CHUNK: usize = 256;
/// What resident memory may grow by from `WARM` to `GENERATIONS`: the heap of several threads, in which caches of up to
/// 1 MiB come and go; 0 to 7 MiB were measured. The caches of the long prompts between, were they kept, would be more
/// than 100 MiB. What is counted as a cache is checked to the byte.
const GROWTH: u64 = 12 << 20;

/// Held by the test that runs: what the process holds is that of one.
static ALONE: Mutex<()> = Mutex::new(());

/// A prompt and the tokens that follow it.
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
}

impl Case {
    fn request(&self, most: usize) -> GenerateRequest {
        GenerateRequest::new(self.prompt.clone()).with_max_tokens(most).with_ignore_eos(true)
    }
}

/// How a generation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// After all of its tokens.
    Complete,
    /// By its token, at that moment.
    Cancel(Moment),
    /// Dropped, at that moment.
    Drop(Moment),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// After so many tokens were read.
    Tokens(usize),
    /// After it was asked so many times for an event, without waiting for one.
    Polls(usize),
    /// When the model begins its next step.
    NextStep,
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
    polls: usize,
    /// The thread that cancels it.
    canceller: Option<thread::JoinHandle<()>>,
}

/// How many generations ended how.
#[derive(Debug, Default)]
struct Ends {
    complete: usize,
    cancelled: usize,
    dropped: usize,
    /// Of the cancelled, those that were not given a step.
    before_prompt: usize,
    /// Of the cancelled, those that computed a part of their prompt.
    within_prompt: usize,
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

/// The reference's prompts, and long ones that continue a mixture of them, with what follows uninterrupted.
fn cases(model: &Model) -> (Vec<Case>, Vec<Case>) {
    let known = reference("tiny-llama").cases;
    let short = known.iter().map(|c| Case { prompt: c.prompt_ids.clone(), greedy: c.greedy_ids.clone() }).collect();
    let mixture: Vec<u32> = known.iter().flat_map(|c| c.prompt_ids.iter().chain(&c.greedy_ids).copied()).collect();
    let long = LONG.iter().enumerate().map(|(n, length)| {
        let rest = mixture.iter().cycle().skip(ALIKE + 41 * n);
        let prompt: Vec<_> = mixture[..ALIKE].iter().chain(rest).take(*length).copied().collect();
        let mut case = Case { prompt, greedy: Vec::new() };
        case.greedy = block_on(model.generate(case.request(MOST_TOKENS)).complete()).unwrap().tokens;
        case
    });
    (short, long.collect())
}

fn start<'a>(
    model: &Model,
    (short, long): (&'a [Case], &'a [Case]),
    random: &mut Random,
    running: &[Running<'_>],
) -> Running<'a> {
    let is_long = random.below(4) == 0;
    let cases = if is_long { long } else { short };
    let case = &cases[random.below(cases.len())];
    let most = 1 + random.below(MOST_TOKENS);
    let moment = match random.below(3) {
        0 if is_long => Moment::Polls(random.below(3)),
        1 if is_long => Moment::NextStep,
        _ => Moment::Tokens(random.below(most + 1)),
    };
    let end = match random.below(3) {
        0 => End::Complete,
        1 => End::Cancel(moment),
        _ => End::Drop(moment),
    };
    // A session has one generation at a time: a second would wait for a first that nobody reads.
    let session = Some(random.below(2 * SESSIONS))
        .filter(|s| model.keeps_sessions() && *s < SESSIONS && running.iter().all(|other| other.session != Some(*s)));
    launch(model, case, most, end, session)
}

fn launch<'a>(model: &Model, case: &'a Case, most: usize, end: End, session: Option<usize>) -> Running<'a> {
    let cancel = CancellationToken::new();
    let mut request = case.request(most).with_cancel(cancel.clone());
    if let Some(session) = session {
        request = request.with_session(session_id(session));
    }
    let generation = model.generate(request);
    Running { generation, cancel, case, most, end, session, tokens: Vec::new(), polls: 0, canceller: None }
}

impl Running<'_> {
    /// Reads the next event, or ends the generation. Gives it back while it goes on.
    fn advance(mut self, model: &Model, ends: &mut Ends) -> Option<Self> {
        match self.end {
            End::Drop(Moment::Tokens(after)) if self.tokens.len() == after => return self.dropped(ends),
            End::Drop(Moment::Polls(after)) if self.polls == after => return self.dropped(ends),
            End::Drop(Moment::NextStep) => {
                // Its own, if there is no other before. Asked meanwhile, it tells of a worker that is gone.
                let steps = model.counters().forward_steps;
                while model.counters().forward_steps == steps {
                    let event = self.generation.next().now_or_never();
                    if event.is_some_and(|event| self.accept(event, ends)) {
                        return None;
                    }
                    thread::yield_now();
                }
                return self.dropped(ends);
            }
            End::Cancel(Moment::Tokens(after)) if self.tokens.len() == after => self.cancel.cancel(),
            End::Cancel(Moment::Polls(after)) if self.polls == after => self.cancel.cancel(),
            End::Cancel(Moment::NextStep) if self.canceller.is_none() => {
                let (model, cancel, steps) = (model.clone(), self.cancel.clone(), model.counters().forward_steps);
                self.canceller = Some(thread::spawn(move || {
                    while !cancel.is_cancelled() && model.counters().forward_steps == steps {
                        thread::yield_now();
                    }
                    cancel.cancel();
                }));
            }
            End::Cancel(Moment::Polls(_)) | End::Drop(Moment::Polls(_)) => {
                self.polls += 1;
                let ended = self.generation.next().now_or_never().is_some_and(|event| self.accept(event, ends));
                return (!ended).then_some(self);
            }
            _ => {}
        }
        let event = block_on(self.generation.next());
        (!self.accept(event, ends)).then_some(self)
    }

    fn dropped(self, ends: &mut Ends) -> Option<Self> {
        ends.dropped += 1;
        None
    }

    /// Whether `event` is the last. What was generated must be what the reference says, whatever was generated beside.
    fn accept(&mut self, event: Option<llm_local::Result<GenerationEvent>>, ends: &mut Ends) -> bool {
        let (reason, usage, stats) = match event.expect("a generation ends with its last event").unwrap() {
            GenerationEvent::Token { id, .. } => {
                self.tokens.push(id);
                return false;
            }
            GenerationEvent::Finished { reason, usage, stats, .. } => (reason, usage, stats),
            _ => return false,
        };
        assert_eq!(self.tokens, self.case.greedy[..self.tokens.len()], "{:?}", self.case.prompt);
        assert_eq!(usage.prompt_tokens, self.case.prompt.len());
        let whole = self.tokens.len() == self.most;
        match (self.end, reason) {
            (End::Cancel(_), FinishReason::Cancelled) => {
                assert!(usage.generated_tokens >= self.tokens.len());
                ends.cancelled += 1;
                let computed = stats.prefill_tokens;
                let is_partial = usage.cached_tokens + computed < usage.prompt_tokens;
                assert!(!is_partial || usage.generated_tokens == 0);
                ends.before_prompt += usize::from(computed == 0);
                ends.within_prompt += usize::from(computed > 0 && is_partial);
            }
            // Also before the moment to drop it came.
            (_, FinishReason::Length) if whole => ends.complete += 1,
            (end, reason) => panic!("{end:?} ended with {reason:?} after {} tokens", self.tokens.len()),
        }
        if let Some(canceller) = self.canceller.take() {
            // It may be waiting for a step that nobody will ask for.
            self.cancel.cancel();
            canceller.join().unwrap();
        }
        true
    }
}

/// Bytes of the KV caches that are left once the worker has seen which generations were dropped.
fn settled(model: &Model) -> u64 {
    // It waits for its turn behind them.
    block_on(model.end_session(SessionId::new("nobody"))).unwrap();
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

/// Every case, uninterrupted.
fn check_cases(model: &Model, cases: &[Case]) {
    for case in cases {
        let completion = block_on(model.generate(case.request(case.greedy.len())).complete()).unwrap();
        assert_eq!(completion.tokens, case.greedy, "{:?}", case.prompt);
    }
}

#[test]
fn a_thousand_generations_leave_no_memory_and_the_worker_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = engine();
    let model = block_on(engine.load(&tiny(None).with_dtype(ComputeDtype::F32))).unwrap();
    let (short, long) = cases(&model);
    let mut random = Random(7);
    let mut running: Vec<Running<'_>> = Vec::new();
    let (mut started, mut ends, mut warm) = (0, Ends::default(), None);
    while started < GENERATIONS || !running.is_empty() {
        if started < GENERATIONS && (running.is_empty() || running.len() < AT_ONCE && random.below(2) == 0) {
            running.push(start(&model, (&short, &long), &mut random, &running));
            started += 1;
            if started == WARM {
                warm = resident();
            }
        }
        let one = running.swap_remove(random.below(running.len()));
        running.extend(one.advance(&model, &mut ends));
    }
    assert_eq!(ends.complete + ends.cancelled + ends.dropped, GENERATIONS);
    assert!([ends.complete, ends.cancelled, ends.dropped].iter().all(|n| *n > GENERATIONS / 10), "{ends:?}");
    assert!(ends.within_prompt > 0, "{ends:?}");
    let of_sessions = settled(&model);
    assert_eq!(of_sessions > 0, model.keeps_sessions());
    for session in 0..SESSIONS {
        block_on(model.end_session(session_id(session))).unwrap();
    }
    assert_eq!(settled(&model), 0);
    let grown = warm.zip(resident()).map(|(warm, now)| now.saturating_sub(warm));
    println!("{ends:?}; sessions held {of_sessions} bytes; grown by {grown:?} bytes");
    assert!(grown.is_none_or(|grown| grown <= GROWTH), "resident memory has grown by {grown:?} bytes");

    check_cases(&model, &short);
    check_cases(&model, &long);
    block_on(model.unload()).unwrap();
}

#[test]
fn a_prompt_that_is_given_up_is_computed_no_further() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = engine();
    let model = block_on(engine.load(&tiny(None).with_dtype(ComputeDtype::F32))).unwrap();
    let (_, long) = cases(&model);
    let moments = [Moment::Polls(0), Moment::Polls(1), Moment::NextStep];
    let (mut cut, mut asked, mut computed) = (0, 0, 0);
    for moment in moments {
        for end in [End::Cancel(moment), End::Drop(moment)] {
            for (n, case) in long.iter().enumerate() {
                for session in [None, model.keeps_sessions().then_some(n)] {
                    let before = model.counters().forward_tokens;
                    let mut running = Some(launch(&model, case, MOST_TOKENS, end, session));
                    while let Some(one) = running {
                        running = one.advance(&model, &mut Ends::default());
                    }
                    let kept = settled(&model);
                    let tokens = (model.counters().forward_tokens - before) as usize;
                    cut += usize::from(tokens == CHUNK);
                    asked += case.prompt.len();
                    computed += tokens;
                    // What a session was given of a prompt, it goes on from.
                    let Some(session) = session else {
                        assert_eq!(kept, 0, "{end:?}");
                        continue;
                    };
                    assert_eq!(kept > 0, tokens > 0, "{end:?}");
                    let request = case.request(MOST_TOKENS).with_session(session_id(session));
                    let completion = block_on(model.generate(request).complete()).unwrap();
                    assert_eq!(completion.tokens, case.greedy, "{end:?}");
                    assert_eq!(completion.usage.cached_tokens, tokens.min(case.prompt.len() - 1), "{end:?}");
                    block_on(model.end_session(session_id(session))).unwrap();
                }
            }
        }
    }
    println!("{computed} of {asked} tokens were computed; {cut} prompts were cut after their first step");
    assert!(cut > 0 && computed < asked, "{computed} of {asked}, {cut} cut");
    assert_eq!(settled(&model), 0);
    check_cases(&model, &long);
    block_on(model.unload()).unwrap();
}
