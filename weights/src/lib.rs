//! Tensor sources over files: memory-mapped safetensors, single or sharded, and GGUF; and the checkpoint they make.
//!
//! | item | what it is |
//! |---|---|
//! | [`Checkpoint`] | a model's description, tensors and text files, opened from the files of a manifest |
//! | [`SafetensorsSource`] | tensors of one safetensors file, or of shards |
//! | [`SafetensorsFiles`], [`ShardIndex`] | which files of a folder hold a model's weights |
//! | [`GgufSource`] | tensors and metadata of a GGUF file |
//! | [`read_json`], [`read_json_object`], [`parse_json_object`] | a JSON file, bounded in size |
//! | [`Outline`], [`Head`] | the description alone, from config and first bytes of weights that are elsewhere |
//! | [`MODEL_CONFIG`], [`MODEL_TEXT_FILES`], [`is_gguf`], [`is_pickle`], ... | names of files by which a model or an adapter is known |
//! | [`widen_f16`], [`narrow_to_f16`] | floats of 16 bits to 32 and back |
//!
//! Nothing here trusts a file: each header is checked against the size of its file before a tensor is handed out.

mod checkpoint;
mod convert;
mod f16;
mod gguf;
mod head;
mod json;
mod map;
mod mlx;
mod names;
mod outline;
mod safetensors;
mod table;

pub use checkpoint::Checkpoint;
pub use f16::{narrow_to_f16, widen_f16, widen_f16_bytes};
pub use gguf::GgufSource;
pub use head::Head;
pub use json::{LARGEST_CONFIG, parse_json_object, read_json, read_json_object};
pub use names::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, GGUF_TEXT_FILES, MODEL_CONFIG, MODEL_TEXT_FILES, is_adapter_checkpoint,
    is_adapter_file, is_gguf, is_pickle, is_safetensors, is_trainer_state,
};
pub use outline::{Outline, WeightFiles};
pub use safetensors::{SafetensorsFiles, SafetensorsSource, ShardIndex};

#[cfg(test)]
mod testing;
