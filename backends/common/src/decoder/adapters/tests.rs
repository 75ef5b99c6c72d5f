//! Sets of adapters as plain data, against sums in f64.

use std::sync::Arc;

use llm_local_core::{
    AdapterSet, LoraAdapter, LoraModule,
    lora::{Floats, ReplacementTensor},
    model::ModuleRole as R,
};

use super::*;
use crate::decoder::tests::description;

const QKV: &str = "model.layers.1.self_attn.qkv_proj";

/// Fixed numbers in (-1, 1), others for each seed.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i + 977 * seed) as f64 * 12.9898).sin() * 43758.5453).fract() as f32).collect()
}

fn set(adapter: LoraAdapter, weight: f32) -> AdapterSet {
    AdapterSet::new().with(Arc::new(adapter), weight)
}

/// One pair of rank 3 beside all queries, keys and values of a layer of tiny-llama, which has them apart.
fn fused(name: &str) -> (LoraModule, usize, usize) {
    let c = description("tiny-llama", None);
    let (out, width) = ((c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden_size);
    (LoraModule::new(name, (3, width, out), numbers(3 * width, 1), numbers(3 * out, 2), 0.75), out, width)
}

fn of(parts: &[(usize, Changes<'_>)], out: usize, w: &[f32]) -> Pieces {
    let parts: Vec<_> = parts.iter().map(|(start, changes)| (*start, changes)).collect();
    let norms = |dora: &Dora<'_>| {
        // In tiles whose rows are no divisor of those there are.
        let (rows, width) = (dora.rows(), dora.width());
        let tiles = w[rows.start * width..rows.end * width].chunks(7 * width).enumerate();
        Ok(tiles.flat_map(|(i, w)| dora.norms(7 * i, w)).collect())
    };
    Pieces::new(&parts, out, norms).unwrap().unwrap()
}

#[test]
fn a_fused_pair_is_one_piece_beside_a_fused_matrix_and_three_beside_three() {
    let c = description("tiny-llama", None);
    let (module, out, _) = fused(QKV);
    let set = set(LoraAdapter::new("a", "a", vec![module]), 1.0);
    let mut plan = Plan::new(&set, &c, "test").unwrap();
    let parts = plan.take_all(&[R::QueryKeyValue], 1).unwrap();
    assert_eq!(parts.len(), 3);
    plan.finish(&c).unwrap();
    let whole = of(&parts, out, &[]);
    assert_eq!((whole.pieces.len(), whole.pieces[0].rows.clone()), (1, 0..out));
    // Each by itself has its own rows of B.
    let keys = (c.kv_heads * c.head_dim, c.heads * c.head_dim);
    let apart = of(&[(0, parts[1].1.clone())], keys.0, &[]);
    assert_eq!(apart.pieces[0].rows, 0..keys.0);
    for (k, row) in apart.pieces[0].b.all().chunks_exact(keys.0).enumerate() {
        assert_eq!(row, &whole.pieces[0].b.all()[k * out + keys.1..k * out + keys.1 + keys.0]);
    }
}

#[test]
fn what_nobody_takes_and_what_the_model_does_not_have_is_refused() {
    let c = description("tiny-llama", None);
    let (module, ..) = fused(QKV);
    let with = |module| set(LoraAdapter::new("a/ref", "a", vec![module]), 1.0);
    let taken = with(module.clone());
    let error = Plan::new(&taken, &c, "test").unwrap().finish(&c).unwrap_err().to_string();
    assert!(error.contains("a/ref") && error.contains("of layer 1"), "{error}");
    let other = with(fused("model.layers.99.self_attn.qkv_proj").0);
    let error = Plan::new(&other, &c, "test").unwrap_err().to_string();
    assert!(error.contains("model.layers.99") && error.contains("it is for another base"), "{error}");
    let (out, width) = (module.out_features, module.in_features);
    let transposed = LoraModule::new(QKV, (3, out, width), numbers(3 * out, 1), numbers(3 * width, 2), 1.0);
    let error = Plan::new(&with(transposed.with_transposed(true)), &c, "a backend").unwrap_err().to_string();
    assert!(error.contains("which a backend does not run beside the weights"), "{error}");
}

#[test]
fn dora_is_what_the_paper_says() {
    let c = description("tiny-llama", None);
    let (module, out, width) = fused(QKV);
    let (magnitude, weight) = (numbers(out, 3).iter().map(|m| 1.0 + m.abs()).collect::<Vec<_>>(), 0.5f32);
    let set = set(LoraAdapter::new("a", "a", vec![module.clone().with_magnitude(magnitude.clone())]), weight);
    let parts = Plan::new(&set, &c, "test").unwrap().take_all(&[R::QueryKeyValue], 1).unwrap();
    let w = numbers(out * width, 4);
    let made = of(&parts, out, &w);
    let (factors, one) = (made.factors.unwrap(), OnePair::new(&made.pieces, (out, width)));
    let (a, b) = (numbers(3 * width, 1), numbers(3 * out, 2));
    let mut worst = 0f64;
    for (row, magnitude) in magnitude.into_iter().enumerate() {
        let at = |v: &[f32], i: usize| f64::from(v[i]);
        let delta = |column| 0.75 * (0..3).map(|k| at(&b, 3 * row + k) * at(&a, k * width + column)).sum::<f64>();
        let changed: Vec<f64> = (0..width).map(|column| at(&w, row * width + column) + delta(column)).collect();
        let gain = f64::from(magnitude) / changed.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (column, changed) in changed.iter().enumerate() {
            let own = at(&w, row * width + column);
            let expected = own + f64::from(weight) * (gain * changed - own);
            let beside: f64 = (0..one.rank).map(|k| at(&one.b, k * out + row) * at(&one.a, k * width + column)).sum();
            worst = worst.max((at(&factors, row) * own + beside - expected).abs());
        }
    }
    assert!(worst < 1e-6, "{worst}");
}

#[test]
fn a_replacement_that_is_all_of_a_matrix_is_had_as_it_is_stored() {
    let c = description("tiny-llama", None);
    let (_, out, width) = fused(QKV);
    let values = |values: Floats| {
        let new = ReplacementTensor::new(format!("{QKV}.weight"), vec![out, width], values);
        LoraAdapter::new("a", "a", Vec::new()).with_replacements(vec![new])
    };
    let bits: Vec<u16> = (0..out * width).map(|i| (i % 0x3f80) as u16).collect();
    for (set, is_whole) in [
        (set(values(Floats::Bf16(bits.clone())), 1.0), true),
        (set(values(Floats::Bf16(bits.clone())), 0.5), false),
        (set(values(Floats::F32(vec![1.0; out * width])), 1.0), false),
    ] {
        let parts = Plan::new(&set, &c, "test").unwrap().take_all(&[R::QueryKeyValue], 1).unwrap();
        let parts: Vec<_> = parts.iter().map(|(start, changes)| (*start, changes)).collect();
        assert_eq!(whole_bf16(&parts, out), is_whole.then_some(&bits[..]));
        // Of the keys alone, those of them.
        let (rows, first) = (c.kv_heads * c.head_dim, c.heads * c.head_dim);
        let keys = whole_bf16(&[(0, parts[1].1)], rows);
        assert_eq!(keys, is_whole.then_some(&bits[first * width..(first + rows) * width]));
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_with_where_they_are() {
    let c = description("tiny-llama", None);
    let (mut module, out, width) = fused(QKV);
    let mut a = numbers(3 * width, 1);
    a[5] = f32::NAN;
    module.a = a.into();
    let set = set(LoraAdapter::new("a/ref", "a", vec![module]), 1.0);
    let parts = Plan::new(&set, &c, "test").unwrap().take_all(&[R::QueryKeyValue], 1).unwrap();
    let parts: Vec<_> = parts.iter().map(|(start, changes)| (*start, changes)).collect();
    let error = Pieces::new(&parts, out, |_| unreachable!("no pair has a magnitude")).unwrap_err().to_string();
    assert!(error.contains("a/ref") && error.contains(".lora_A` has the value NaN"), "{error}");
}
