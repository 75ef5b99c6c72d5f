//! Blocks of ggml where candle is not there to dequantize them: there are none.

use std::{convert::Infallible, marker::PhantomData};

use llm_local_core::GgmlType;

use super::{is_known, unknown};

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

    /// There is none.
    pub(in crate::lora) fn block(self) -> (usize, usize) {
        match self.never {}
    }

    /// There are none.
    pub(in crate::lora) fn bytes(self, _: usize, _: usize) -> &'a [u8] {
        match self.never {}
    }

    /// There is nothing to be written.
    pub(in crate::lora) fn widen(self, _: usize, _: &mut [f32]) {
        match self.never {}
    }
}

/// From f32 to blocks of one format.
#[derive(Debug, Clone, Copy)]
pub(in crate::lora) struct Quantizer {
    never: Infallible,
}

impl Quantizer {
    /// The error of [`check`].
    pub(in crate::lora) fn new(kind: GgmlType) -> Result<Self, String> {
        Err(without(kind))
    }

    /// There is none.
    pub(in crate::lora) fn kind(&self) -> GgmlType {
        match self.never {}
    }

    /// There is nothing to be written.
    pub(in crate::lora) fn quantize(&self, _: &[f32], _: &mut [u8]) {
        match self.never {}
    }

    /// There is nothing to be written.
    pub(in crate::lora) fn dequantize(&self, _: &[u8], _: &mut [f32]) {
        match self.never {}
    }
}

/// The error is that blocks of this format cannot be dequantized. It continues a sentence that starts with a tensor's name.
pub(super) fn check(kind: GgmlType) -> Result<(), String> {
    Err(without(kind))
}

fn without(kind: GgmlType) -> String {
    if is_known(kind) {
        format!("is stored as {kind}, which takes the cargo feature `candle` to be dequantized")
    } else {
        unknown(kind)
    }
}
