//! Random adapters, within what a format can express, there and back.

use half::{bf16, f16};
use llm_local_core::lora::{BaseHint, Floats, ReplacedRows, ReplacementTensor};
use proptest::prelude::*;

use super::*;

/// Values that are seldom zero, in one of the three types.
fn floats(count: usize) -> impl Strategy<Value = Floats> {
    let values = prop::collection::vec((-64i32..64).prop_map(|v| (v as f32 + 0.3) / 37.0), count);
    (values, 0..3).prop_map(|(values, kind)| match kind {
        0 => Floats::F32(values),
        1 => Floats::F16(values.into_iter().map(|v| f16::from_f32(v).to_bits()).collect()),
        _ => Floats::Bf16(values.into_iter().map(|v| bf16::from_f32(v).to_bits()).collect()),
    })
}

/// alpha / r.
fn scale(rank: usize) -> impl Strategy<Value = f64> {
    prop_oneof![(1u32..64).prop_map(f64::from), (-40i32..-1).prop_map(|n| f64::from(n) / 8.0)]
        .prop_map(move |alpha| alpha / rank as f64)
}

fn pair(name: String, rank: usize, inputs: usize, outputs: usize, scale: f64) -> impl Strategy<Value = LoraModule> {
    (floats(rank * inputs), floats(outputs * rank))
        .prop_map(move |(a, b)| LoraModule::new(name.clone(), (rank, inputs, outputs), a, b, scale))
}

fn any_pair(name: String) -> impl Strategy<Value = LoraModule> {
    (1usize..6, 1usize..6, 1usize..6).prop_flat_map(move |(rank, inputs, outputs)| {
        let name = name.clone();
        scale(rank).prop_flat_map(move |scale| pair(name.clone(), rank, inputs, outputs, scale))
    })
}

/// Names of modules, of linear layers, an embedding and the head.
fn names() -> impl Strategy<Value = Vec<String>> {
    let layer =
        |n: usize| ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"].map(|m| format!("model.layers.{n}.{m}"));
    let mut all: Vec<_> = (0..3).flat_map(layer).collect();
    all.extend(["model.embed_tokens".to_owned(), "lm_head".to_owned()]);
    prop::sample::subsequence(all, 1..=11)
}

fn any_pairs() -> impl Strategy<Value = Vec<LoraModule>> {
    names().prop_flat_map(|names| names.into_iter().map(any_pair).collect::<Vec<_>>())
}

/// The pairs with what goes for all of them: DoRA of linear layers, or biases, or nothing.
fn variants() -> impl Strategy<Value = Vec<LoraModule>> {
    (any_pairs(), 0..3).prop_map(|(mut modules, variant)| {
        if variant > 0 {
            modules.retain(|module| module.name != "model.embed_tokens");
        }
        let values = |module: &LoraModule| (1..=module.out_features).map(|i| i as f32 / 3.0).collect::<Vec<_>>();
        let with = |module: LoraModule| match variant {
            1 => {
                let m = values(&module);
                module.with_magnitude(m)
            }
            2 => {
                let m = values(&module);
                module.with_bias(m)
            }
            _ => module,
        };
        modules.into_iter().map(with).collect()
    })
}

fn hint() -> impl Strategy<Value = BaseHint> {
    prop_oneof![Just(BaseHint::default()), Just(BaseHint::new(Some("org/base".into()), Some("main".into())))]
}

/// An adapter of PEFT: pairs, tensors saved in full, and rows.
fn of_peft() -> impl Strategy<Value = LoraAdapter> {
    let full = (1usize..4, 1usize..4)
        .prop_flat_map(|(rows, columns)| floats(rows * columns).prop_map(move |v| (vec![rows, columns], v)))
        .prop_map(|(shape, values)| ReplacementTensor::new("score.weight", shape, values));
    let rows = floats(6).prop_map(|values| ReplacedRows::new("model.embed_tokens.weight", vec![1, 5, 9], values));
    (variants(), prop::option::of(full), prop::option::of(rows), hint()).prop_filter_map(
        "there are pairs, and an embedding has one or rows",
        |(modules, full, rows, hint)| {
            let empty = modules.is_empty();
            let both = rows.is_some() && modules.iter().any(|module| module.name == "model.embed_tokens");
            (!empty && !both).then(|| {
                LoraAdapter::new("x", "", modules)
                    .with_replacements(full.into_iter().collect())
                    .with_rows(rows.into_iter().collect())
                    .with_base(hint)
            })
        },
    )
}

/// Pairs of one rank and one scale.
fn of_mlx() -> impl Strategy<Value = LoraAdapter> {
    (names(), 1usize..6, any::<bool>()).prop_flat_map(|(names, rank, dora)| {
        scale(rank).prop_flat_map(move |scale| {
            let pairs = names.clone().into_iter().map(move |name| {
                (1usize..6, 1usize..6).prop_flat_map(move |(i, o)| pair(name.clone(), rank, i, o, scale))
            });
            pairs.collect::<Vec<_>>().prop_map(move |modules| {
                let magnitude = |module: &LoraModule| vec![1.5; module.out_features];
                let with = |module: LoraModule| {
                    if dora {
                        let m = magnitude(&module);
                        module.with_magnitude(m)
                    } else {
                        module
                    }
                };
                let base = BaseHint::new(Some("base".into()), None);
                LoraAdapter::new("x", "", modules.into_iter().map(with).collect()).with_base(base)
            })
        })
    })
}

/// Pairs of some of tiny-llama's modules, as its tensors are shaped, all with one alpha, or each with its own.
fn of_gguf(alphas: std::ops::Range<u32>) -> impl Strategy<Value = LoraAdapter> {
    let shapes = [
        ("model.layers.0.self_attn.q_proj", 128, 128),
        ("model.layers.1.self_attn.k_proj", 128, 64),
        ("model.layers.1.self_attn.v_proj", 128, 64),
        ("model.layers.3.mlp.down_proj", 384, 128),
        ("model.embed_tokens", 128, 896),
    ];
    prop::sample::subsequence(shapes.to_vec(), 1..=5).prop_flat_map(move |chosen| {
        let one = |(name, inputs, outputs): (&'static str, usize, usize), alphas: std::ops::Range<u32>| {
            (1usize..5, alphas).prop_flat_map(move |(rank, alpha)| {
                pair(name.to_owned(), rank, inputs, outputs, f64::from(alpha) / rank as f64)
            })
        };
        let pairs: Vec<_> = chosen.into_iter().map(|shape| one(shape, alphas.clone())).collect();
        (pairs, hint()).prop_map(|(modules, hint)| LoraAdapter::new("x", "", modules).with_base(hint))
    })
}

/// All that would do nothing is not read.
fn has_effect(adapter: &LoraAdapter) -> bool {
    let zero = |m: &LoraModule| delta(m).iter().all(|(_, size)| *size == 0.0);
    !adapter.replacements.is_empty() || !adapter.rows.is_empty() || adapter.modules.iter().any(|m| !zero(m))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_adapter_of_peft_is_the_same_there_and_back(adapter in of_peft()) {
        prop_assume!(has_effect(&adapter));
        let (back, _) = there_and_back(&adapter, WriteFormat::Peft, None).unwrap();
        assert_same_values(&back, &adapter, "peft");
    }

    #[test]
    fn any_adapter_of_one_rank_and_scale_is_the_same_in_mlx_and_back(adapter in of_mlx()) {
        prop_assume!(has_effect(&adapter));
        let (back, _) = there_and_back(&adapter, WriteFormat::MlxLm, None).unwrap();
        assert_same_values(&back, &adapter, "mlx");
    }

    #[test]
    fn ranks_and_scales_of_any_adapter_become_one_in_mlx(modules in any_pairs()) {
        let adapter = LoraAdapter::new("x", "", modules);
        prop_assume!(has_effect(&adapter));
        let (back, _) = there_and_back(&adapter, WriteFormat::MlxLm, None).unwrap();
        assert_same_deltas(&back, &adapter, "mlx");
    }

    #[test]
    fn any_adapter_of_one_alpha_is_the_same_in_gguf_and_back(adapter in (1u32..64).prop_flat_map(|alpha| of_gguf(alpha..alpha + 1))) {
        let (back, _) = there_and_back(&adapter, WriteFormat::Gguf, Some(&base("tiny-llama"))).unwrap();
        assert_same_values(&back, &adapter, "gguf");
    }

    #[test]
    fn alphas_of_any_adapter_become_one_in_gguf(adapter in of_gguf(1..64)) {
        let (back, _) = there_and_back(&adapter, WriteFormat::Gguf, Some(&base("tiny-llama"))).unwrap();
        assert_same_deltas(&back, &adapter, "gguf");
    }
}
