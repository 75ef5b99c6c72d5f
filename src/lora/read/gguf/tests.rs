use std::{collections::BTreeMap, fs, path::Path};

use llm_local_core::{
    ArtifactRef, LoraAdapter, LoraModule, Result,
    lora::{AdapterFeature, BaseHint, Floats},
    model::{Architecture, Layout},
};
use llm_local_weights::Head;
use tempfile::TempDir;

use crate::lora::{
    AdapterOutline, ReadOptions, declare, read,
    testing::{f32_bytes, fit_unread, fixture, read_folder, tiny_llama_info},
};

/// Reads the adapter in the file at `path`.
fn read_file(path: &Path) -> Result<LoraAdapter> {
    let name = path.file_name().unwrap().to_str().unwrap();
    read(&ArtifactRef::file(path).unwrap(), &BTreeMap::from([(name.to_owned(), path.to_owned())]))
}

/// The outline of the adapter in the file at `path`, by as much of it as is wanted.
fn outline_file(path: &Path) -> Result<AdapterOutline> {
    let reference = ArtifactRef::file(path).unwrap();
    let declared = declare(&reference, [path.file_name().unwrap().to_str().unwrap()], None, &ReadOptions::new())?;
    let bytes = fs::read(path).unwrap();
    let mut head = Head::new(declared.weights(), &reference, bytes.len() as u64);
    while let Some(range) = head.wanted()? {
        head.extend(&bytes[range.start as usize..range.end as usize]);
    }
    declared.outline_by_head(&head)
}

#[derive(Clone)]
enum Meta {
    Text(&'static str),
    F32(f32),
    U32s(Vec<u32>),
}

/// A tensor of ggml: name, shape with the outermost dimension first, the number of its type, bytes.
type GgmlTensor = (String, Vec<u64>, u32, Vec<u8>);

/// A GGUF adapter of one tensor, with 3 inputs, rank 2 and 4 outputs, until it is changed.
struct TestGguf {
    metadata: Vec<(&'static str, Meta)>,
    tensors: Vec<GgmlTensor>,
}

const GATE: &str = "blk.1.ffn_gate.weight";

impl TestGguf {
    fn new() -> Self {
        let metadata = vec![
            ("general.type", Meta::Text("adapter")),
            ("general.architecture", Meta::Text("qwen2")),
            ("adapter.type", Meta::Text("lora")),
            ("adapter.lora.alpha", Meta::F32(6.0)),
        ];
        Self { metadata, tensors: Vec::new() }
            .with(&format!("{GATE}.lora_a"), &[2, 3])
            .with(&format!("{GATE}.lora_b"), &[4, 2])
    }

    /// Without tensors.
    fn empty() -> Self {
        Self { tensors: Vec::new(), ..Self::new() }
    }

    /// With a tensor in f32 whose values count up from 1.
    fn with(mut self, name: &str, shape: &[u64]) -> Self {
        let values: Vec<f32> = (1..=shape.iter().product()).map(|i| i as f32).collect();
        self.tensors.push((name.into(), shape.to_vec(), 0, f32_bytes(&values)));
        self
    }

    fn set(mut self, key: &'static str, value: Meta) -> Self {
        self.metadata.retain(|(k, _)| *k != key);
        self.metadata.push((key, value));
        self
    }

    fn unset(mut self, key: &str) -> Self {
        self.metadata.retain(|(k, _)| *k != key);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, s: &str| {
            out.extend((s.len() as u64).to_le_bytes());
            out.extend(s.as_bytes());
        };
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            match value {
                Meta::Text(s) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, s);
                }
                Meta::F32(x) => {
                    out.extend(6u32.to_le_bytes());
                    out.extend(x.to_le_bytes());
                }
                Meta::U32s(values) => {
                    out.extend(9u32.to_le_bytes());
                    out.extend(4u32.to_le_bytes());
                    out.extend((values.len() as u64).to_le_bytes());
                    values.iter().for_each(|v| out.extend(v.to_le_bytes()));
                }
            }
        }
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    /// Reads it, and checks that its outline says the same.
    fn read(&self) -> Result<LoraAdapter> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("adapter.gguf");
        fs::write(&path, self.bytes()).unwrap();
        let read = read_file(&path);
        if let Ok(adapter) = &read {
            assert_eq!(outline_file(&path).unwrap(), AdapterOutline::from(adapter));
        }
        read
    }

    fn refused(&self, words: &[&str]) {
        let error = self.read().unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{error}");
        for word in words.iter().chain(&["adapter.gguf"]) {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

fn f32s(values: &Floats) -> Vec<f32> {
    crate::lora::floats::widened(values)
}

/// B (out, r) with its rows in the order of the Hugging Face layout, where llama.cpp has those of each of `heads` in
/// another: `W.reshape(heads, out / heads / 2, 2, r).swapaxes(1, 2)`.
fn unpermuted(b: &[f32], rank: usize, heads: usize) -> Vec<f32> {
    let rows = b.len() / rank;
    let half = rows / heads / 2;
    let order = (0..heads).flat_map(|h| (0..2).flat_map(move |s| (0..half).map(move |i| h * 2 * half + 2 * i + s)));
    order.flat_map(|row| b[row * rank..(row + 1) * rank].to_vec()).collect()
}

/// The rows of B in the Hugging Face layout of tiny-llama, with 4 heads and 2 of keys.
fn b_of_tiny_llama(module: &LoraModule) -> Vec<f32> {
    let b = f32s(&module.b);
    match module.name.rsplit('.').next().unwrap() {
        "q_proj" => unpermuted(&b, module.rank, 4),
        "k_proj" => unpermuted(&b, module.rank, 2),
        _ => b,
    }
}

#[test]
fn a_converted_adapter_is_the_same_as_the_one_it_was_made_from_but_for_the_order_of_rows() {
    // The second as `convert_lora_to_gguf.py --outtype f16` rounds it.
    for (file, peft, is_rounded) in [
        ("tiny-llama-lora-peft-f32", "tiny-llama-lora-peft", false),
        ("tiny-llama-lora-peft-f16", "tiny-llama-lora-peft", true),
        ("tiny-llama-lora-qv-last2-f16", "tiny-llama-lora-qv-last2", true),
    ] {
        let path = fixture("gguf").join(format!("{file}.gguf"));
        let (adapter, twin) = (read_file(&path).unwrap(), read_folder(&fixture("adapters").join(peft)).unwrap());
        assert_eq!(outline_file(&path).unwrap(), AdapterOutline::from(&adapter), "{file}");
        assert_eq!((&*adapter.format, adapter.row_order), ("gguf", Layout::Gguf));
        assert_eq!((adapter.targets.as_ref(), adapter.digest.len()), (None, 64));
        assert_eq!(adapter.modules.len(), twin.modules.len());
        let stored = |values: &Floats| {
            let values = f32s(values);
            if is_rounded { values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect() } else { values }
        };
        let mut permuted = 0;
        for (module, twin) in adapter.modules.iter().zip(&twin.modules) {
            assert_eq!(module.name, twin.name, "{file}");
            assert_eq!((module.rank, module.scale), (twin.rank, twin.scale), "{}", module.name);
            assert_eq!((module.in_features, module.out_features), (twin.in_features, twin.out_features));
            assert_eq!(f32s(&module.a), stored(&twin.a), "{file} {}", module.name);
            assert_eq!(b_of_tiny_llama(module), stored(&twin.b), "{file} {}", module.name);
            permuted += usize::from(f32s(&module.b) != stored(&twin.b));
        }
        assert!(permuted > 0, "{file}: nothing is permuted, so its order is not tested");
        let report = fit_unread(adapter, &tiny_llama_info(|_| {})).unwrap();
        assert_eq!(report.touched.len(), twin.modules.len(), "{file}");
    }
}

#[test]
fn alpha_is_divided_by_the_rank_of_each_pair() {
    // Ranks 4, 8 and 16 with alpha 8, and the rest of the scales folded into B.
    let adapter = read_file(&fixture("gguf/tiny-llama-lora-patterns-folded-f32.gguf")).unwrap();
    assert!(adapter.modules.iter().any(|m| m.rank != adapter.modules[0].rank));
    for module in &adapter.modules {
        assert_eq!(module.scale, 8.0 / module.rank as f64, "{}", module.name);
    }
    // Without alpha, and with 0, llama.cpp multiplies by what its user gives alone.
    assert_eq!(TestGguf::new().read().unwrap().modules[0].scale, 3.0);
    let scale = |test: TestGguf| test.read().unwrap().modules[0].scale;
    assert_eq!(scale(TestGguf::new().unset("adapter.lora.alpha")), 1.0);
    assert_eq!(scale(TestGguf::new().set("adapter.lora.alpha", Meta::F32(0.0))), 1.0);
}

#[test]
fn tensors_get_the_names_of_their_architecture() {
    for (architecture, tensor, module) in [
        ("qwen2", "blk.12.ffn_gate.weight", "model.layers.12.mlp.gate_proj"),
        ("llama", "blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj"),
        ("phi3", "blk.3.ffn_up.weight", "model.layers.3.mlp.gate_up_proj"),
        ("phi3", "blk.3.attn_qkv.weight", "model.layers.3.self_attn.qkv_proj"),
        ("gemma3", "output.weight", "lm_head"),
    ] {
        let test = TestGguf::empty()
            .set("general.architecture", Meta::Text(architecture))
            .with(&format!("{tensor}.lora_a"), &[2, 3])
            .with(&format!("{tensor}.lora_b"), &[4, 2]);
        let adapter = test.read().unwrap();
        let [read] = &adapter.modules[..] else { panic!() };
        assert_eq!(read.name, module, "{architecture}");
        assert_eq!((read.rank, read.in_features, read.out_features), (2, 3, 4));
    }
}

#[test]
fn the_embeddings_pair_is_exchanged_and_one_of_its_factors_turned() {
    // llama.cpp: rows of A (vocab, r) are looked up and multiplied by B (dim, r): delta = A @ B^T.
    let test = TestGguf::empty().with("token_embd.weight.lora_a", &[5, 2]).with("token_embd.weight.lora_b", &[3, 2]);
    let adapter = test.read().unwrap();
    assert_eq!(adapter.features, [AdapterFeature::Embedding]);
    let module = adapter.module("model.embed_tokens").unwrap();
    assert_eq!((module.rank, module.in_features, module.out_features, module.scale), (2, 3, 5, 3.0));
    let (a, b) = (f32s(&module.a), f32s(&module.b));
    for vocab in 0..5 {
        for dim in 0..3 {
            let delta: f32 = (0..2).map(|k| b[vocab * 2 + k] * a[k * 3 + dim]).sum();
            let expected = (2 * vocab + 1) * (2 * dim + 1) + (2 * vocab + 2) * (2 * dim + 2);
            assert_eq!(delta, expected as f32, "({vocab}, {dim})");
        }
    }
}

#[test]
fn a_factor_of_rank_1_may_lack_its_outermost_dimension() {
    let test = TestGguf::empty().with(&format!("{GATE}.lora_a"), &[3]).with(&format!("{GATE}.lora_b"), &[4, 1]);
    let module = &test.read().unwrap().modules[0];
    assert_eq!((module.rank, module.in_features, module.out_features, module.scale), (1, 3, 4, 6.0));
}

#[test]
fn the_base_is_known_by_its_repository_or_else_by_its_name() {
    let named = || TestGguf::new().set("general.base_model.0.name", Meta::Text("Base"));
    let base = |test: TestGguf| test.read().unwrap().base;
    let hint = |name: &str, revision: Option<&str>| {
        BaseHint::new(Some(name.to_owned()), revision.map(str::to_owned)).with_architecture(Architecture::Qwen2)
    };
    assert_eq!(base(named()), hint("Base", None));
    let repository = Meta::Text("https://huggingface.co/org/base");
    let version = Meta::Text("abc");
    let test = named().set("general.base_model.0.repo_url", repository).set("general.base_model.0.version", version);
    assert_eq!(base(test), hint("org/base", Some("abc")));
    assert_eq!(base(TestGguf::new()), BaseHint::default().with_architecture(Architecture::Qwen2));
    let prefix = TestGguf::new().set("adapter.lora.prompt_prefix", Meta::Text("Arr: ")).read().unwrap();
    assert!(prefix.notes[0].contains("prompt_prefix") && prefix.notes[0].contains("Arr: "), "{:?}", prefix.notes);
}

#[test]
fn metadata_that_would_make_another_adapter_is_refused() {
    for (key, value, words) in [
        ("general.type", Meta::Text("model"), &["general.type", "\"model\"", "expected \"adapter\""][..]),
        ("adapter.type", Meta::Text("control"), &["adapter.type", "\"control\"", "LoRA"]),
        ("general.architecture", Meta::Text("mamba"), &["general.architecture", "\"mamba\"", "qwen2"]),
        ("adapter.lora.alpha", Meta::F32(f32::INFINITY), &["adapter.lora.alpha", "finite"]),
        ("adapter.lora.alpha", Meta::Text("16"), &["adapter.lora.alpha", "a finite number"]),
        ("adapter.alora.invocation_tokens", Meta::U32s(vec![1, 2]), &["invocation_tokens", "aLoRA"]),
        ("adapter.lora.rslora", Meta::F32(1.0), &["adapter.lora.rslora", "not known"]),
    ] {
        TestGguf::new().set(key, value).refused(words);
    }
    TestGguf::new().unset("adapter.type").refused(&["`adapter.type` is missing"]);
    TestGguf::new().unset("general.architecture").refused(&["`general.architecture` is missing"]);
    // An empty array of tokens switches nothing on.
    assert!(TestGguf::new().set("adapter.alora.invocation_tokens", Meta::U32s(Vec::new())).read().is_ok());
}

#[test]
fn tensors_that_make_no_pair_are_refused_by_name() {
    let (a, b) = (&*format!("{GATE}.lora_a"), &*format!("{GATE}.lora_b"));
    for (test, words) in [
        (TestGguf::empty(), &["no tensors"][..]),
        (TestGguf::empty().with(a, &[2, 3]), &["ffn_gate.weight.lora_b` is missing", "only lora_a"]),
        (TestGguf::empty().with(b, &[4, 2]), &["ffn_gate.weight.lora_a` is missing", "only lora_b"]),
        (TestGguf::empty().with(a, &[2, 3]).with(b, &[4, 3]), &["(2, 3), so rank 2", "(4, 3), so rank 3"]),
        (TestGguf::empty().with(a, &[2, 2, 3]).with(b, &[2, 4, 2]), &["(2, 2, 3)", "expected (r, in) and (out, r)"]),
        (TestGguf::new().with("blk.0.attn_norm.weight", &[3]), &["`blk.0.attn_norm.weight`", "llama.cpp leaves out"]),
        (TestGguf::new().with("blk.0.attn_q.bias", &[3]), &["`blk.0.attn_q.bias`", "neither"]),
        (
            TestGguf::new()
                .with("blk.0.ffn_gate_exps.weight.lora_a", &[2, 3])
                .with("blk.0.ffn_gate_exps.weight.lora_b", &[4, 2]),
            &["`blk.0.ffn_gate_exps.weight`", "\"qwen2\""],
        ),
        (
            TestGguf::new().with("blk.0.attn_q.bias.lora_a", &[2, 3]).with("blk.0.attn_q.bias.lora_b", &[4, 2]),
            &["`blk.0.attn_q.bias`", "no weight"],
        ),
    ] {
        test.refused(words);
    }
}

#[test]
fn values_that_are_quantized_not_finite_or_without_effect_are_refused() {
    let with = |change: fn(&mut GgmlTensor), index: usize| {
        let mut test = TestGguf::new();
        change(&mut test.tensors[index]);
        test
    };
    // Q8_0: a block of 32 values in 34 bytes.
    with(|t| (t.1, t.2, t.3) = (vec![2, 32], 8, vec![0; 68]), 0)
        .refused(&["ffn_gate.weight.lora_a` is quantized", "Q8_0"]);
    with(|t| t.2 = 26, 1).refused(&["ffn_gate.weight.lora_b` is stored as i32", "expected floats"]);
    with(|t| t.3[20..24].copy_from_slice(&f32::NAN.to_le_bytes()), 0).refused(&["lora_a` has NaN at (1, 2)"]);
    with(|t| t.3.fill(0), 1).refused(&["`B @ A` is zero in its one module"]);
}

#[test]
fn half_precision_factors_stay_as_they_are_stored() {
    for (kind, a, expected) in
        [(1, 0x3c00u16, Floats::F16(vec![0x3c00; 6])), (30, 0x3f80, Floats::Bf16(vec![0x3f80; 6]))]
    {
        let mut test = TestGguf::new();
        (test.tensors[0].2, test.tensors[0].3) = (kind, a.to_le_bytes().repeat(6));
        assert_eq!(test.read().unwrap().modules[0].a, expected);
    }
}

#[test]
fn a_model_and_a_file_that_is_cut_off_are_named_for_what_they_are() {
    let error = read_file(&fixture("gguf/tiny-llama-q4_0.gguf")).unwrap_err().to_string();
    assert!(error.contains("general.type") && error.contains("\"adapter\""), "{error}");
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.gguf");
    let bytes = TestGguf::new().bytes();
    for length in [bytes.len() - 40, 100, 12] {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = read_file(&path).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        assert!(error.to_string().contains("a.gguf") && error.to_string().contains("cut off"), "{length}: {error}");
    }
}
