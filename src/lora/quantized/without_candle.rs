//! Blocks of ggml where candle is not there to dequantize them: there are none.

use std::{convert::Infallible, marker::PhantomData};

use llm_local_core::GgmlType;

/// A tensor in blocks.
#[derive(Clone, Copy)]
pub(in crate::lora) struct Blocks<'a> {
    never: Infallible,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Blocks<'a> {
    /// The error of [`check`].
    pub(in crate::lora) fn new(kind: GgmlType, _: &'a [u8]) -> Result<Self, String> {
        Err(without(kind))
    }

    /// There is nothing to be written.
    pub(in crate::lora) fn widen(self, _: usize, _: &mut [f32]) {
        match self.never {}
    }
}

/// The error is that blocks of this format cannot be dequantized. It continues a sentence that starts with a tensor's name.
pub(super) fn check(kind: GgmlType) -> Result<(), String> {
    Err(without(kind))
}

fn without(kind: GgmlType) -> String {
    format!("is stored as {kind}, which takes the cargo feature `candle` to be dequantized")
}
