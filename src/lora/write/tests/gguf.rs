use llm_local_core::{
    TensorSource,
    lora::{BaseHint, Floats},
    model::{Architecture, Layout},
};
use llm_local_weights::GgufSource;

use super::*;

#[test]
fn what_is_written_is_what_llama_cpps_converter_writes() {
    let folder = TempDir::new().unwrap();
    let into = folder.path().join("made/adapter.gguf");
    let written = write(&adapter("tiny-llama-lora-peft"), WriteFormat::Gguf, Some(&base("tiny-llama")), &into).unwrap();
    assert_eq!((&written.files[..], written.notes.len()), (&[into.clone()][..], 0));
    let (ours, theirs) =
        (GgufSource::open(&into).unwrap(), GgufSource::open(&fixture("gguf/tiny-llama-lora-peft-f32.gguf")).unwrap());
    for key in ["general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"] {
        assert_eq!(ours.metadata().get(key), theirs.metadata().get(key), "{key}");
    }
    assert_eq!(ours.entries().len(), theirs.entries().len());
    for entry in theirs.entries() {
        assert_eq!(ours.entry(&entry.name), Some(entry));
        let bytes = |source: &GgufSource| format!("{:?}", source.read(&entry.name, None).unwrap());
        assert_eq!(bytes(&ours), bytes(&theirs), "{}", entry.name);
    }
}

#[test]
fn adapters_of_every_architecture_are_the_same_there_and_back() {
    for (name, model, architecture) in [
        ("tiny-llama-lora-peft", "tiny-llama", Architecture::Llama),
        ("tiny-llama-lora-mlx-trained", "tiny-llama", Architecture::Llama),
        // As llama.cpp has it.
        ("arch-mistral-lora", "arch-mistral", Architecture::Llama),
        ("arch-qwen2-lora", "arch-qwen2", Architecture::Qwen2),
        ("arch-qwen3-lora", "arch-qwen3", Architecture::Qwen3),
        ("arch-gemma2-lora", "arch-gemma2", Architecture::Gemma2),
        ("arch-gemma3-lora", "arch-gemma3", Architecture::Gemma3),
        ("arch-llama3rope-lora", "arch-llama3rope", Architecture::Llama),
        ("arch-phi3-lora", "arch-phi3", Architecture::Phi3),
    ] {
        let adapter = adapter(name);
        let (back, notes) = there_and_back(&adapter, WriteFormat::Gguf, Some(&base(model))).unwrap();
        assert_same_values(&back, &adapter, name);
        assert_eq!(back.base, adapter.base.with_architecture(architecture), "{name}");
        assert_eq!((back.targets, notes), (None, Vec::new()), "{name}");
    }
}

#[test]
fn an_adapter_of_gguf_stays_as_it_is_in_gguf() {
    for name in ["tiny-llama-lora-peft-f16", "tiny-llama-lora-patterns-folded-f32", "tiny-llama-lora-qv-last2-f16"] {
        let adapter = read_files(&[fixture("gguf").join(format!("{name}.gguf"))]).unwrap();
        let folder = TempDir::new().unwrap();
        let written = write(&adapter, WriteFormat::Gguf, Some(&base("tiny-llama")), &folder.path().join("x")).unwrap();
        let back = read_files(&written.files).unwrap();
        assert_eq!(back.row_order, Layout::Gguf);
        assert_same_values(&back, &adapter, name);
        assert_eq!(back.base, adapter.base, "{name}");
    }
}

#[test]
fn scales_that_one_alpha_cannot_give_are_folded_into_b() {
    let info = base("tiny-llama");
    let patterns = adapter("tiny-llama-lora-patterns");
    let (back, notes) = there_and_back(&patterns, WriteFormat::Gguf, Some(&info)).unwrap();
    assert_same_deltas(&back, &patterns, "patterns");
    // Stored as bf16, and alpha 12 instead of 8; alpha 32 is four times as much, which leaves bf16 exact.
    assert!(
        notes.len() == 1 && notes[0].contains("layers.1.self_attn.v_proj") && !notes[0].contains("down"),
        "{notes:?}"
    );
    // Ranks 4, 8 and 2, each with alpha 8 over its own rank.
    assert!(back.modules.iter().all(|module| module.scale == 8.0 / module.rank as f64));
    // What a script has folded, of the same adapter.
    let folded = read_files(&[fixture("gguf/tiny-llama-lora-patterns-folded-f32.gguf")]).unwrap();
    let folded = order::as_hugging_face(&folded, &Some(order::Described::of(&info))).unwrap().into_owned();
    assert_same_deltas(&back, &folded, "folded");
    // rsLoRA: alpha * sqrt(r) is no f32.
    let stabilized = adapter("tiny-llama-lora-rslora");
    let (back, notes) = there_and_back(&stabilized, WriteFormat::Gguf, Some(&info)).unwrap();
    assert_same_deltas(&back, &stabilized, "rslora");
    let exact = back.modules[0].scale == stabilized.modules[0].scale;
    assert!(exact || notes[0].contains("rounded"), "{notes:?}");
}

#[test]
fn an_embedding_and_its_base_are_written_as_llama_cpp_has_them() {
    let mut embedding = adapter("tiny-llama-lora-embed");
    embedding.replacements.clear();
    embedding.base = BaseHint::new(Some("org/base".into()), Some("abc".into()));
    let folder = TempDir::new().unwrap();
    let into = folder.path().join("x.GGUF");
    write(&embedding, WriteFormat::Gguf, Some(&base("tiny-llama")), &into).unwrap();
    let source = GgufSource::open(&into).unwrap();
    let shape = |name: &str| source.entry(name).unwrap().shape.clone();
    assert_eq!((shape("token_embd.weight.lora_a"), shape("token_embd.weight.lora_b")), (vec![896, 4], vec![128, 4]));
    assert_eq!(source.metadata().string("general.base_model.0.repo_url"), Some("https://huggingface.co/org/base"));
    let (back, _) = there_and_back(&embedding, WriteFormat::Gguf, Some(&base("tiny-llama"))).unwrap();
    assert_same_values(&back, &embedding, "embedding");
    assert_eq!(back.base, embedding.base.with_architecture(Architecture::Llama));
}

#[test]
fn the_same_adapter_is_the_same_file_each_time() {
    let folder = TempDir::new().unwrap();
    let bytes = |name: &str, format| {
        let written =
            write(&adapter("tiny-llama-lora-qv-last2"), format, Some(&base("tiny-llama")), &folder.path().join(name));
        written.unwrap().files.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>()
    };
    for format in WriteFormat::ALL {
        assert_eq!(bytes(&format!("{format}-1"), format), bytes(&format!("{format}-2"), format));
    }
}

#[test]
fn half_precision_is_written_as_it_is() {
    let (a, b) = (Floats::Bf16(vec![0x3f80; 128]), Floats::F16(vec![0x3c00; 128]));
    let module = LoraModule::new("model.layers.0.self_attn.q_proj", (1, 128, 128), a, b, 0.5);
    let adapter = LoraAdapter::new("x", "", vec![module]);
    let (back, _) = there_and_back(&adapter, WriteFormat::Gguf, Some(&base("tiny-llama"))).unwrap();
    assert_same_values(&back, &adapter, "halves");
}
