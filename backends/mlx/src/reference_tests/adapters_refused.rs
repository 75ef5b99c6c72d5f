//! Adapters that a model cannot run beside its weights: each is refused by its name, with what is wrong.

use llm_local_core::{
    AdapterSet, LoraAdapter, LoraModule,
    lora::{ReplacedRows, ReplacementTensor},
    model::Layout,
};

use super::*;

const QUERY: &str = "model.layers.0.self_attn.q_proj";

fn pair(name: &str, shape: (usize, usize, usize)) -> LoraModule {
    LoraModule::new(name, shape, vec![0.1; shape.0 * shape.1], vec![0.1; shape.0 * shape.2], 1.0)
}

fn query() -> LoraModule {
    pair(QUERY, (2, 128, 128))
}

fn of(module: LoraModule) -> LoraAdapter {
    LoraAdapter::new("hf:a/b", "digest", vec![module])
}

fn replacing(name: &str, shape: Vec<usize>, count: usize) -> LoraAdapter {
    let new = ReplacementTensor::new(name, shape, vec![0.1; count]);
    LoraAdapter::new("hf:a/b", "digest", Vec::new()).with_replacements(vec![new])
}

fn rows(name: &str, rows: Vec<usize>, count: usize) -> LoraAdapter {
    LoraAdapter::new("hf:a/b", "digest", Vec::new()).with_rows(vec![ReplacedRows::new(name, rows, vec![0.1; count])])
}

#[test]
fn what_a_model_cannot_run_is_refused_by_name() {
    on_thread(|| {
        let mut model = tiny(ComputeDtype::F32);
        let with = |change: &dyn Fn(&mut LoraModule)| {
            let mut module = query();
            change(&mut module);
            of(module)
        };
        let experts = LoraModule::of_experts("e", 2, (1, 2, 3), vec![0.0; 4], vec![0.0; 6], 1.0);
        let cases: Vec<(LoraAdapter, &[&str])> = vec![
            (
                of(pair("model.layers.9.self_attn.q_proj", (2, 128, 128))),
                &["model.layers.9.self_attn.q_proj.weight", "4 layers"],
            ),
            (of(pair("model.layers.0.self_attn.qkv_proj", (2, 128, 128))), &["qkv_proj", "(128, 128)", "(256, 128)"]),
            (of(pair("model.layers.0.self_attn.w_pack", (2, 128, 256))), &["w_pack.weight", "another base"]),
            (of(pair(QUERY, (2, 96, 128))), &[QUERY, "(128, 96)", "(128, 128)"]),
            (of(pair("model.norm", (2, 128, 128))), &["model.norm.weight", "no matrix", "[128]"]),
            (of(experts), &["`e`", "experts"]),
            (of(query().of_parameter()), &[QUERY, "another base"]),
            (
                of(pair("model.embed_tokens", (2, 896, 128)).with_transposed(true)),
                &["embed_tokens", "transposed", "merge it"],
            ),
            (of(query().with_magnitude(vec![1.0; 127])), &["magnitude", QUERY, "127", "128"]),
            (of(query().with_bias(vec![1.0; 3])), &["bias", QUERY, "3 numbers", "128"]),
            (
                of(pair("model.embed_tokens", (2, 128, 896)).with_bias(vec![1.0; 896])),
                &["model.embed_tokens", "no bias"],
            ),
            (of(pair("lm_head", (2, 128, 896)).with_bias(vec![1.0; 896])), &["lm_head", "no bias"]),
            (of(pair("lm_head", (2, 127, 896))), &["lm_head", "(896, 127)", "(896, 128)"]),
            (with(&|m| m.a = vec![f32::NAN; 256].into()), &["lora_A", QUERY, "NaN"]),
            (with(&|m| m.b = vec![f32::INFINITY; 256].into()), &["lora_B", QUERY, "inf"]),
            (of(query().with_magnitude(vec![f32::INFINITY; 128])), &["row 0", QUERY, "inf"]),
            (of(query().with_bias(vec![f32::NAN; 128])), &["bias", QUERY, "NaN"]),
            (of(query()).with_row_order(Layout::Gguf), &["order", "Gguf"]),
            (replacing("model.layers.0.nothing.weight", vec![1], 1), &["model.layers.0.nothing.weight"]),
            (replacing("model.layers.0.self_attn.q_proj.bias", vec![128], 128), &["q_proj.bias"]),
            (
                replacing("model.embed_tokens.weight", vec![900, 128], 900 * 128),
                &["[900, 128]", "[896, 128]", "does not grow; merge it"],
            ),
            (replacing("lm_head.weight", vec![896, 128], 7), &["lm_head.weight", "7 numbers"]),
            (rows("model.embed_tokens.weight", vec![3, 896], 256), &["row 896", "896 rows"]),
            (rows("model.embed_tokens.weight", vec![3, 4], 200), &["200 numbers", "128"]),
            (rows("model.norm.weight", vec![3], 1), &["model.norm.weight", "no matrix"]),
        ];
        for (adapter, parts) in cases {
            let error = model.prepare_adapters(&AdapterSet::new().with(adapter.into(), 1.0)).unwrap_err();
            assert_eq!(error.code(), "adapter_merge_failed", "{error}");
            assert!(error.to_string().starts_with("adapter hf:a/b cannot be used"), "{error}");
            for part in parts {
                assert!(error.to_string().contains(part), "lacks {part}: {error}");
            }
        }
        let error = model.prepare_adapters(&AdapterSet::new().with(of(query()).into(), f32::NAN)).unwrap_err();
        assert!(error.to_string().contains("weight is NaN"), "{error}");
        model.prepare_adapters(&AdapterSet::new().with(of(query()).into(), 1.0)).unwrap();
    });
}
