//! What backends share: text in and out, sampling, and the worker thread that owns a model.
//!
//! | module | what it holds |
//! |---|---|
//! | [`decoder`] | checks of models before a load, what loads share, positions and windows |
//! | [`text`] | tokenizer, incremental decoding, chat template, end-of-sequence ids |
//! | [`sampler`] | the choice of the next token, on plain slices |
//! | [`stop`] | stop texts that match across tokens |
//! | [`worker`] | the thread that owns a model and serves generations in fair steps |

pub mod decoder;
pub mod sampler;
pub mod stop;
pub mod text;
pub mod worker;
