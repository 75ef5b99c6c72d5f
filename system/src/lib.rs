//! What the operating system says of memory: how much there is, and when it runs short. It decides nothing.
//!
//! | item | what it is |
//! |---|---|
//! | [`MemoryProbe`] | says how much memory there is, and how much of it this process may take |
//! | [`SystemProbe`] | asks the system |
//! | `CgroupTree` | which control groups it asks on Linux, where those of the process are not meant |
//! | [`ScriptedProbe`] | says what it is told, for tests |
//! | [`PressureSource`] | says when memory runs short: an event of the system, polling, or whoever calls |
//!
//! A crate of its own, because all that is particular to an operating system is here, and so can be type-checked for each in
//! seconds, without the engines.

pub mod pressure;
mod probe;

pub use pressure::{Pressure, PressureLevel, PressureSink, PressureSource, Watch};
#[cfg(target_os = "linux")]
pub use probe::CgroupTree;
pub use probe::{MemoryLimit, MemoryProbe, ScriptedProbe, SystemMemory, SystemProbe};
