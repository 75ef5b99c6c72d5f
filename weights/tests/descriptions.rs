//! A GGUF file and the Hugging Face folder that it was made from describe the same decoder, up to the differences of
//! the two layouts that [`as_gguf_has_it`] names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use llm_local_core::{
    FloatType, TensorData, TensorSource,
    model::{Architecture, DecoderConfig, Layout, ResolvedRope, Rope, RopeScaling},
};
use llm_local_weights::Checkpoint;

/// Each GGUF file of a fixture, with the folder and the config.json that it was made from.
const TWINS: [(&str, &str, &str); 18] = [
    ("arch-gemma", "arch-gemma", "arch-gemma/config.json"),
    ("arch-gemma2", "arch-gemma2", "arch-gemma2/config.json"),
    ("arch-gemma3", "arch-gemma3", "arch-gemma3/config.json"),
    ("arch-granite", "arch-granite", "arch-granite/config.json"),
    ("arch-llama-bias", "arch-llama-bias", "arch-llama-bias/config.json"),
    ("arch-llama3rope", "arch-llama3rope", "arch-llama3rope/config.json"),
    ("arch-mistral.full-attention", "arch-mistral", "variants/arch-mistral.full-attention.config.json"),
    ("arch-olmo2", "arch-olmo2", "arch-olmo2/config.json"),
    ("arch-phi3", "arch-phi3", "arch-phi3/config.json"),
    ("arch-phi3.longrope", "arch-phi3", "variants/arch-phi3.longrope.config.json"),
    ("arch-phi3.partial-rotary0.75", "arch-phi3", "variants/arch-phi3.partial-rotary0.75.config.json"),
    ("arch-qwen2", "arch-qwen2", "arch-qwen2/config.json"),
    ("arch-qwen2.linear-rope", "arch-qwen2", "variants/arch-qwen2.linear-rope.config.json"),
    ("arch-qwen3", "arch-qwen3", "arch-qwen3/config.json"),
    ("tiny-llama-bf16", "tiny-llama", "tiny-llama/config.json"),
    ("tiny-llama-f16", "tiny-llama", "tiny-llama/config.json"),
    ("tiny-llama-q4_0", "tiny-llama", "tiny-llama/config.json"),
    ("tiny-llama-q8_0", "tiny-llama", "tiny-llama/config.json"),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn gguf(name: &str) -> Checkpoint {
    let file = (format!("{name}.gguf"), fixtures().join("gguf").join(format!("{name}.gguf")));
    Checkpoint::open(name, &BTreeMap::from([file])).unwrap()
}

fn folder(model: &str, config: &str) -> Checkpoint {
    let models = fixtures().join("models");
    let files = [("config.json", config.to_owned()), ("model.safetensors", format!("{model}/model.safetensors"))];
    let files = files.map(|(name, path)| (name.to_owned(), models.join(path)));
    Checkpoint::open(model, &BTreeMap::from(files)).unwrap()
}

fn frequencies(rope: &Rope, decoder: &DecoderConfig, tensors: &dyn TensorSource) -> ResolvedRope {
    let mut read = |name: &str| {
        Ok(match tensors.read(name, Some(FloatType::F32))? {
            TensorData::F32(values) => values,
            TensorData::Borrowed(bytes) => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            other => panic!("{name} is given as {} bytes of another type", other.byte_len()),
        })
    };
    rope.resolve("m", decoder.max_positions, &mut read).unwrap()
}

/// The largest difference of two tables, relative to the frequencies; the tables switch at the same length.
fn difference(a: &ResolvedRope, b: &ResolvedRope) -> f64 {
    assert_eq!(a.beyond.as_ref().map(|(at, _)| at), b.beyond.as_ref().map(|(at, _)| at));
    let tables = |r: &ResolvedRope| -> Vec<f64> {
        let all = [Some(&r.base), r.beyond.as_ref().map(|(_, f)| f)].into_iter().flatten();
        all.flat_map(|f| f.radians.iter().copied().chain([f.attention_factor])).collect()
    };
    let (a, b) = (tables(a), tables(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(x, y)| ((x - y) / y).abs()).fold(0.0, f64::max)
}

/// What the config says, in the words of the GGUF layout: norms hold what the others add to them, and Mistral is a
/// Llama.
fn as_gguf_has_it(mut decoder: DecoderConfig) -> DecoderConfig {
    decoder.norm_offset = 0.0;
    if decoder.architecture == Architecture::Mistral {
        decoder.architecture = Architecture::Llama;
    }
    decoder
}

/// With numbers in f32, which GGUF has them in.
fn rounded(mut decoder: DecoderConfig) -> DecoderConfig {
    let round = |x: &mut f64| *x = f64::from(*x as f32);
    let DecoderConfig { norm_eps, attention_scale, embedding_scale, residual_scale, logit_scale, .. } = &mut decoder;
    [norm_eps, attention_scale, embedding_scale, residual_scale, logit_scale].into_iter().for_each(round);
    decoder.attention_soft_cap.iter_mut().chain(&mut decoder.logit_soft_cap).for_each(round);
    decoder
}

#[test]
fn each_gguf_file_describes_the_model_that_it_was_made_from() {
    for (name, model, config) in TWINS {
        let (gguf, folder) = (gguf(name), folder(model, config));
        let found = gguf.info.decoder.clone().unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut expected = as_gguf_has_it(folder.info.decoder.clone().unwrap());

        // Rotary scaling that GGUF has as tensors is compared by what comes of it. Measured: 5e-8, the rounding of
        // divisors to f32.
        let ropes = |decoder: &DecoderConfig, tensors: &dyn TensorSource| {
            let local = decoder.local_rope.as_ref();
            [Some(&decoder.rope), local].map(|rope| rope.map(|rope| frequencies(rope, decoder, tensors)))
        };
        let (a, b) = (ropes(&found, &*gguf.tensors), ropes(&expected, &*folder.tensors));
        for (a, b) in a.iter().zip(&b) {
            match (a, b) {
                (Some(a), Some(b)) => {
                    let difference = difference(a, b);
                    assert!(difference < 1e-6, "{name}: {difference}");
                }
                (a, b) => assert_eq!(a.is_some(), b.is_some(), "{name}"),
            }
        }
        match &found.rope.scaling {
            RopeScaling::Divisors { .. } => assert_eq!(expected.rope.scaling.name(), "llama3", "{name}"),
            RopeScaling::LongRopeTensors { .. } => assert_eq!(expected.rope.scaling.name(), "longrope", "{name}"),
            other => assert_eq!(other, &expected.rope.scaling, "{name}"),
        }
        expected.rope.scaling = found.rope.scaling.clone();
        assert_eq!(rounded(found), rounded(expected), "{name}");
    }
}

#[test]
fn every_gguf_file_of_a_model_is_described() {
    let mut found: Vec<String> = std::fs::read_dir(fixtures().join("gguf"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".gguf").map(str::to_owned))
        .filter(|name| !name.contains("-lora-"))
        .collect();
    found.sort_unstable();
    // What llama.cpp quantized is of models that are there in no other form.
    let (mixed, twins): (Vec<_>, Vec<_>) = found.into_iter().partition(|name| name.starts_with("mixed-"));
    assert_eq!(twins, TWINS.map(|(name, ..)| name));
    assert!(!mixed.is_empty());
    for name in mixed {
        let checkpoint = gguf(&name);
        let decoder = checkpoint.info.decoder.clone().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((decoder.architecture, decoder.heads), (Architecture::Llama, 4), "{name}");
        for tensor in decoder.base_tensors(Layout::Gguf) {
            assert_eq!(checkpoint.tensors.entry(&tensor.name).map(|t| &t.shape), Some(&tensor.shape), "{name}");
        }
    }
}

#[test]
fn both_layouts_hold_the_tensors_that_their_descriptions_ask_for() {
    for (name, model, config) in TWINS {
        for (checkpoint, layout) in [(gguf(name), Layout::Gguf), (folder(model, config), Layout::HuggingFace)] {
            let decoder = checkpoint.info.decoder.clone().unwrap();
            let described = decoder.base_tensors(layout);
            for tensor in &described {
                let entry = checkpoint.tensors.entry(&tensor.name).unwrap_or_else(|| panic!("{name}: {}", tensor.name));
                assert_eq!(entry.shape, tensor.shape, "{name}: {}", tensor.name);
            }
            let is_rope = |name: &str| name.starts_with("rope_f");
            let held = checkpoint.tensors.entries().iter().filter(|t| !is_rope(&t.name)).count();
            assert_eq!(held, described.len(), "{name}");
        }
    }
}
