//! Specs, on their way from refs to tokens: one program, since each more links the engines once more.

#[path = "../common/mod.rs"]
mod common;

mod adapter_files;
mod adapter_sets;
mod architectures;
mod bad_adapters;
mod beside_memory;
mod combined;
mod compatibility;
mod conformance;
mod engine;
mod export;
mod huggingface;
mod lora;
mod lora_quantized;
mod lora_requantized;
mod merged_cache;
mod merged_sets;
mod peek;
mod reference;
mod session;
mod session_cache;
mod session_files;
