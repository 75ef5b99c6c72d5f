//! For authors of llm-local plugins: suites that say whether a plugin keeps the contract, fakes to test code that
//! uses plugins, and mocks.
//!
//! | module | what it holds |
//! |---|---|
//! | [`conformance`] | suites over `&dyn` traits: sources, tensor sources, loaded models and their sessions, adapters beside the weights |
//! | [`fakes`] | small, deterministic implementations that count what is asked of them |
//! | `github` (feature `github`) | a server on the loopback that speaks the API of GitHub's releases and fails as told |
//! | `hub` (feature `hub`) | a server on the loopback that speaks the protocol of the Hugging Face Hub and fails as told |
//! | `mocks` (feature `mocks`) | `MockInferenceBackend`, `MockModelSource` and others, made by mockall |
//!
//! # A source under test
//!
//! ```
//! use llm_local_testkit::{conformance, fakes::MemorySource};
//!
//! let source = MemorySource::new("mem").with_file("tiny", "config.json", "{}");
//! pollster::block_on(conformance::model_source(&source, &"mem:tiny".parse()?));
//! # Ok::<_, llm_local_core::Error>(())
//! ```

pub mod conformance;
pub mod fakes;
#[cfg(feature = "github")]
pub mod github;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "mocks")]
pub mod mocks;
#[cfg(any(feature = "github", feature = "hub"))]
mod server;
