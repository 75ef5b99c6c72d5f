//! Suites that say whether an implementation keeps the contract. Each takes a trait object and panics with what was
//! expected and what was found at the first thing that is wrong, as `assert!` does: call it from a `#[test]`.
//!
//! The functions that are `async` bring no runtime: use the one that the plugin needs, or `pollster::block_on`.

mod model;
mod sessions;
mod source;
mod tensor;
mod unmerged;

pub use model::loaded_model;
pub use sessions::sessions;
pub use source::{adapter_source, model_source};
pub use tensor::tensor_source;
pub use unmerged::{UnmergedCase, unmerged};

/// What a check that must fail said, for the tests of the suites.
#[cfg(test)]
fn failure(check: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).expect_err("the suite must fail");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a message")).to_owned(),
    }
}
