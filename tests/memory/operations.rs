//! What random sequences are made of.

use llm_local::memory::{WhenShort, pressure::PressureLevel};
use proptest::prelude::*;

use crate::{random::MODELS, world::MB};

/// A step. Numbers choose among what is there, and do nothing where nothing is.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Load(usize),
    Generate(usize),
    /// Polls a task once.
    Step(usize),
    /// Polls a task until it waits.
    Run(usize),
    Cancel(usize),
    GenerateOn(usize),
    Tokens(usize, usize),
    DropGeneration(usize),
    Pin(usize),
    Unpin(usize),
    /// Others take so many bytes of the machine.
    Others(u64),
    Relieve(PressureLevel),
    /// A load to come fails: the one after so many.
    Fail(usize, bool),
    LetLoad(usize),
    LetUnload(usize),
    Pass(u64),
    UnloadIdle,
    Unload(usize),
    UnloadModel(usize),
    DropHandles,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let model = || 0..MODELS.len();
    let any = || 0..8usize;
    prop_oneof![
        8 => model().prop_map(Op::Load),
        8 => model().prop_map(Op::Generate),
        6 => any().prop_map(Op::Step),
        24 => any().prop_map(Op::Run),
        2 => any().prop_map(Op::Cancel),
        3 => any().prop_map(Op::GenerateOn),
        5 => (any(), 1..6usize).prop_map(|(generation, tokens)| Op::Tokens(generation, tokens)),
        2 => any().prop_map(Op::DropGeneration),
        2 => any().prop_map(Op::Pin),
        2 => any().prop_map(Op::Unpin),
        2 => (0..70u64).prop_map(|mb| Op::Others(mb * MB)),
        2 => prop_oneof![Just(PressureLevel::Warn), Just(PressureLevel::Critical)].prop_map(Op::Relieve),
        2 => (0..3usize, proptest::bool::ANY).prop_map(|(after, of_memory)| Op::Fail(after, of_memory)),
        8 => (1..8usize).prop_map(Op::LetLoad),
        8 => (1..6usize).prop_map(Op::LetUnload),
        2 => (1..9u64).prop_map(Op::Pass),
        2 => Just(Op::UnloadIdle),
        2 => model().prop_map(Op::Unload),
        2 => any().prop_map(Op::UnloadModel),
        1 => Just(Op::DropHandles),
    ]
}

/// How an engine behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) when_in_use: WhenShort,
    pub(crate) max_models: Option<usize>,
    /// Whether nobody pins, and nobody else takes memory: then a load that may wait is never refused.
    pub(crate) calm: bool,
}

pub(crate) fn rules() -> impl Strategy<Value = Rules> {
    let when = prop_oneof![Just(WhenShort::Wait), Just(WhenShort::Fail)];
    let most = prop_oneof![3 => Just(None), 1 => (1..4usize).prop_map(Some)];
    (when, most, proptest::bool::ANY).prop_map(|(when_in_use, max_models, calm)| Rules {
        when_in_use,
        max_models,
        calm,
    })
}
