use llm_local_core::{
    ModelInfo,
    lora::{AdapterFeature, Floats, ReplacedRows, ReplacementTensor},
    model::Layout,
};

use super::*;

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";

/// A pair as tiny-llama's queries are shaped.
fn pair(name: &str) -> LoraModule {
    LoraModule::new(name, (1, 128, 128), vec![0.5; 128], vec![0.5; 128], 2.0)
}

fn keys() -> LoraModule {
    LoraModule::new(K, (1, 128, 64), vec![0.5; 128], vec![0.5; 64], 2.0)
}

fn of(modules: Vec<LoraModule>) -> LoraAdapter {
    LoraAdapter::new("file:adapter", "", modules)
}

fn expert(name: &str) -> LoraModule {
    LoraModule::of_experts(name, 2, (1, 2, 3), vec![1.0; 4], vec![1.0; 6], 2.0)
}

#[track_caller]
fn refused(adapter: &LoraAdapter, format: WriteFormat, base: Option<&ModelInfo>, words: &[&str]) {
    let folder = TempDir::new().unwrap();
    let error = write(adapter, format, base, &folder.path().join("into")).unwrap_err();
    assert_eq!(error.code(), "adapter_merge_failed", "{error}");
    for word in words.iter().chain(&["file:adapter"]) {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was left");
}

#[test]
fn what_mlx_lm_and_gguf_cannot_express_is_refused_by_module_and_feature() {
    let info = base("tiny-llama");
    let with = |change: fn(LoraAdapter) -> LoraAdapter| change(of(vec![pair(Q)]));
    let full = |name: &str| ReplacementTensor::new(name, vec![1], Floats::F32(vec![1.0]));
    for (adapter, words) in [
        (of(vec![pair(Q).with_bias(vec![0.5; 128])]), &[Q, "lora_bias"][..]),
        (of(vec![pair(Q).with_transposed(true)]), &[Q, "fan_in_fan_out"]),
        (of(vec![pair(Q).of_parameter()]), &[Q, "target_parameters"]),
        (
            of(vec![pair(Q)]).with_replacements(vec![full("model.norm.weight")]),
            &["`model.norm.weight`", "modules_to_save"],
        ),
        (of(vec![pair(Q)]).with_replacements(vec![full("model.norm.bias")]), &["`model.norm.bias`", "(bias)"]),
        (
            of(vec![pair(Q)]).with_rows(vec![ReplacedRows::new("model.embed_tokens.weight", vec![1], vec![1.0])]),
            &["`model.embed_tokens.weight`", "trainable_token_indices"],
        ),
        (with(|adapter| adapter.with_features([AdapterFeature::WeightTying])), &["ensure_weight_tying"]),
    ] {
        for (format, name) in [(WriteFormat::MlxLm, "as mlx-lm"), (WriteFormat::Gguf, "as gguf")] {
            refused(&adapter, format, Some(&info), &[words, &[name]].concat());
        }
    }
    let gguf = |module: LoraModule, words: &[&str]| refused(&of(vec![module]), WriteFormat::Gguf, Some(&info), words);
    gguf(pair(Q).with_magnitude(vec![1.0; 128]), &[Q, "DoRA"]);
    gguf(expert("model.layers.0.mlp.switch_mlp.up_proj"), &["switch_mlp.up_proj", "experts"]);
    gguf(pair("model.layers.0.self_attn.rotary"), &["self_attn.rotary", "no module", "llama"]);
    for format in WriteFormat::ALL {
        refused(&of(vec![pair(K)]), format, Some(&info), &[K, "(64, 128)", "another base"]);
    }
    let mlx = |modules: Vec<LoraModule>, words: &[&str]| refused(&of(modules), WriteFormat::MlxLm, None, words);
    mlx(vec![pair(Q).with_magnitude(vec![1.0; 128]), keys()], &[Q, K, "DoRA"]);
    let head = of(vec![LoraModule::new("lm_head", (1, 128, 896), vec![0.5; 128], vec![0.5; 896], 2.0)]);
    refused(&head, WriteFormat::MlxLm, Some(&info), &["`lm_head`", "tied to the embedding"]);
    refused(&head, WriteFormat::Gguf, Some(&info), &["`lm_head`", "no module of the base"]);
    mlx(vec![expert("a.switch_mlp.up_proj").with_magnitude(vec![1.0; 3])], &["up_proj", "DoRA"]);
    refused(
        &of(vec![
            {
                let mut huge = pair(Q);
                huge.scale = 1e60;
                huge
            },
            pair("model.layers.1.self_attn.q_proj"),
            pair("model.layers.2.self_attn.q_proj"),
        ]),
        WriteFormat::MlxLm,
        None,
        &[Q, "beyond f32"],
    );
}

#[test]
fn an_embedding_saved_in_full_beside_its_pair_is_told_why() {
    let mut embedding = adapter("tiny-llama-lora-embed");
    embedding.reference = "file:adapter".into();
    refused(&embedding, WriteFormat::MlxLm, None, &["model.embed_tokens.weight", "save_embedding_layers=False"]);
    let mut dora = adapter("peft-dora-embedding");
    dora.reference = "file:adapter".into();
    dora.replacements.clear();
    refused(&dora, WriteFormat::MlxLm, None, &["model.embed_tokens", "DoRA", "columns"]);
}

#[test]
fn gguf_needs_a_base_that_is_understood() {
    let adapter = of(vec![pair(Q)]);
    refused(&adapter, WriteFormat::Gguf, None, &["give the base model"]);
    refused(&adapter, WriteFormat::Gguf, Some(&base("arch-phi")), &["not understood", "phi"]);
    for format in WriteFormat::ALL {
        let gguf = adapter.clone().with_row_order(Layout::Gguf);
        refused(&gguf, format, None, &["GGUF's order", "give the base model"]);
    }
    let replaced = ReplacementTensor::new("model.norm.weight", vec![1], Floats::F32(vec![1.0]));
    let gguf = adapter.with_row_order(Layout::Gguf).with_replacements(vec![replaced]);
    refused(&gguf, WriteFormat::Peft, Some(&base("tiny-llama")), &["`model.norm.weight`", "order of a GGUF file"]);
}

#[test]
fn what_peft_cannot_express_is_refused_by_module_and_feature() {
    let peft = |adapter: LoraAdapter, words: &[&str]| refused(&adapter, WriteFormat::Peft, None, words);
    let magnitude = || pair(Q).with_magnitude(vec![1.0; 128]);
    peft(of(vec![magnitude(), keys()]), &[Q, K, "DoRA", "all pairs or for none"]);
    peft(of(vec![pair(Q).with_bias(vec![1.0; 128]), keys()]), &[Q, K, "lora_bias"]);
    peft(of(vec![pair(Q).with_transposed(true), keys()]), &[Q, K, "fan_in_fan_out"]);
    peft(of(vec![magnitude().with_bias(vec![1.0; 128])]), &[Q, "DoRA and lora_bias"]);
    peft(of(vec![expert("a.switch_mlp.up_proj")]), &["a.switch_mlp.up_proj", "target_parameters"]);
    peft(of(vec![pair("lm_head").with_transposed(true)]), &["lm_head", "fan_in_fan_out"]);
    peft(of(vec![pair("w").of_parameter()]), &["`w`", "target_parameters"]);
    peft(of(vec![pair("a.x").of_parameter(), pair("a.y").of_parameter()]), &["`a`", "x, y", "target_parameters"]);
    peft(of(vec![pair("a"), pair("a.x").of_parameter()]), &["`a`", "too"]);
    let embedding = |module: LoraModule| of(vec![module.with_magnitude(vec![1.0; 128])]);
    peft(embedding(pair("model.embed_tokens")), &["model.embed_tokens", "DoRA by rows"]);
    let mixed = vec![expert("a.gate_proj").of_parameter(), expert("b.gate_proj").of_parameter().with_transposed(true)];
    peft(of(mixed), &["a.gate_proj", "b.gate_proj", "(in, out)"]);
    let full = ReplacementTensor::new(format!("{Q}.weight"), vec![1], Floats::F32(vec![1.0]));
    peft(of(vec![pair(Q)]).with_replacements(vec![full]), &[Q, "has a pair", "modules_to_save"]);
    let bare = ReplacementTensor::new("w", vec![1], Floats::F32(vec![1.0]));
    peft(of(vec![pair(Q)]).with_replacements(vec![bare]), &["`w`", "modules_to_save"]);
}

#[test]
fn adapters_that_are_not_whole_are_refused() {
    let peft = |adapter: LoraAdapter, words: &[&str]| refused(&adapter, WriteFormat::Peft, None, words);
    let broken = |change: fn(&mut LoraModule)| {
        let mut module = pair(Q);
        change(&mut module);
        of(vec![module])
    };
    peft(of(Vec::new()), &["nothing to write"]);
    peft(broken(|m| m.rank = 2), &[Q, "factors whose lengths"]);
    peft(broken(|m| m.scale = 0.0), &[Q, "scale 0"]);
    peft(broken(|m| m.scale = f64::NAN), &[Q, "scale NaN"]);
    peft(broken(|m| m.b = Floats::F32(vec![f32::INFINITY; 128])), &["the B of", Q, "not finite"]);
    peft(broken(|m| m.bias = Some(vec![f32::NAN; 128])), &["the bias of", Q, "not finite"]);
    let whole = ReplacementTensor::new("a.weight", vec![1], Floats::F32(vec![1.0]));
    peft(of(Vec::new()).with_replacements(vec![whole]), &["as peft", "no pairs"]);
    let mut tensor = ReplacementTensor::new("a.weight", vec![2, 3], Floats::F32(vec![1.0; 5]));
    peft(of(Vec::new()).with_replacements(vec![tensor.clone()]), &["`a.weight`", "(2, 3)", "5 values"]);
    (tensor.shape, tensor.values) = (vec![1], Floats::F16(vec![0x7c00]));
    peft(of(Vec::new()).with_replacements(vec![tensor]), &["`a.weight`", "not finite"]);
}
