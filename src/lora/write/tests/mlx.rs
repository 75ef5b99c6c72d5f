use llm_local_core::lora::{Floats, ReplacementTensor};
use serde_json::{Value, json};

use super::*;

fn config(adapter: &LoraAdapter, base: Option<&ModelInfo>) -> Value {
    let folder = TempDir::new().unwrap();
    let written = write(adapter, WriteFormat::MlxLm, base, &folder.path().join("into")).unwrap();
    serde_json::from_slice(&fs::read(&written.files[0]).unwrap()).unwrap()
}

#[test]
fn every_adapter_of_mlx_is_the_same_there_and_back() {
    for name in ["tiny-llama-lora-mlx", "tiny-llama-lora-dora-mlx", "tiny-llama-lora-mlx-trained"] {
        let adapter = adapter(name);
        let (back, notes) = there_and_back(&adapter, WriteFormat::MlxLm, None).unwrap();
        assert_same_values(&back, &adapter, name);
        assert_eq!((&back.targets, &back.features), (&adapter.targets, &adapter.features), "{name}");
        assert_eq!(notes, Vec::<String>::new());
        let written = config(&adapter, None);
        let own = fs::read(fixture("adapters").join(name).join("adapter_config.json")).unwrap();
        let own: Value = serde_json::from_slice(&own).unwrap();
        for key in ["fine_tune_type", "num_layers", "model"] {
            assert_eq!(written[key], own[key], "{name} {key}");
        }
        for key in ["rank", "scale"] {
            let number = |config: &Value| config["lora_parameters"][key].as_f64().unwrap();
            assert_eq!(number(&written), number(&own), "{name} {key}");
        }
    }
}

#[test]
fn ranks_and_scales_that_differ_become_one_rank_and_one_scale() {
    let adapter = adapter("tiny-llama-lora-patterns");
    let (back, notes) = there_and_back(&adapter, WriteFormat::MlxLm, Some(&base("tiny-llama"))).unwrap();
    assert!(back.modules.iter().all(|module| (module.rank, module.scale) == (8, 2.0)));
    assert_same_deltas(&back, &adapter, "patterns");
    assert!(notes.iter().any(|note| note.contains("padded with zeros to 8")), "{notes:?}");
    // A's rows are as they were, and what is behind them is 0.
    let (short, long) =
        (adapter.module("model.layers.3.self_attn.q_proj"), back.module("model.layers.3.self_attn.q_proj"));
    let (short, long) = (short.unwrap(), long.unwrap());
    let (a, padded) = (widened(&short.a), widened(&long.a));
    assert_eq!((short.rank, &padded[..a.len()]), (2, &a[..]));
    assert!(padded[a.len()..].iter().all(|v| *v == 0.0));
}

#[test]
fn half_precision_stays_where_the_ratio_of_scales_is_a_power_of_two() {
    let pair = |name: &str, scale| {
        let bits = vec![0x3c01u16, 0x3c02];
        LoraModule::new(name, (1, 2, 2), Floats::F16(bits.clone()), Floats::F16(bits), scale)
    };
    let adapter = LoraAdapter::new(
        "x",
        "",
        vec![pair("l.0.q", 2.0), pair("l.1.q", 2.0), pair("l.2.q", -0.5), pair("l.3.q", 6.0)],
    );
    let (back, notes) = there_and_back(&adapter, WriteFormat::MlxLm, None).unwrap();
    assert_eq!(back.modules[0], adapter.modules[0]);
    assert_eq!(back.modules[2].b, Floats::F16(vec![0xb401, 0xb402]));
    assert!(matches!(&back.modules[3].b, Floats::F32(_)) && back.modules[3].a == adapter.modules[3].a);
    assert_same_deltas(&back, &adapter, "halves");
    let widened: Vec<_> = notes.iter().filter(|note| note.contains("f32")).collect();
    assert!(widened.len() == 1 && widened[0].contains("`l.3.q`") && !widened[0].contains("l.2.q"), "{notes:?}");
}

#[test]
fn keys_are_relative_to_the_last_layers_of_the_base_where_they_can_be() {
    let info = base("tiny-llama");
    let keys = |adapter: &LoraAdapter, base| {
        let config = config(adapter, base);
        (config["num_layers"].clone(), config["lora_parameters"]["keys"].clone())
    };
    let peft = adapter("tiny-llama-lora-qv-last2");
    assert_eq!(keys(&peft, Some(&info)), (json!(2), json!(["self_attn.q_proj", "self_attn.v_proj"])));
    let whole: Vec<_> = peft.modules.iter().map(|module| &module.name).collect();
    assert_eq!(keys(&peft, None), (json!(-1), json!(whole)));
    let mut holes = peft.clone();
    holes.modules.remove(0);
    assert_eq!(keys(&holes, Some(&info)).0, json!(-1));
    let (back, notes) = there_and_back(&holes, WriteFormat::MlxLm, Some(&info)).unwrap();
    assert!(notes[0].contains("mlx-swift-lm"), "{notes:?}");
    // Whole names of modules are covered in whichever layer they are.
    crate::lora::testing::fit_unread(back, &crate::lora::testing::tiny_llama_info(|_| {})).unwrap();
}

#[test]
fn an_embedding_and_stacked_experts_are_laid_out_as_mlx_has_them() {
    let mut embedding = adapter("tiny-llama-lora-embed");
    embedding.replacements.clear();
    let (back, _) = there_and_back(&embedding, WriteFormat::MlxLm, Some(&base("tiny-llama"))).unwrap();
    assert_same_values(&back, &embedding, "embedding");
    let count = |n: u8| (1..=n).map(f32::from).collect::<Vec<_>>();
    let expert = |name: &str, rank: u8| {
        let shape = (rank.into(), 3, 4);
        LoraModule::of_experts(
            format!("model.layers.0.mlp.switch_mlp.{name}"),
            2,
            shape,
            count(2 * rank * 3),
            count(2 * 4 * rank),
            2.0,
        )
    };
    let experts = LoraAdapter::new("x", "", vec![expert("gate_proj", 2), expert("up_proj", 2)]);
    let (back, _) = there_and_back(&experts, WriteFormat::MlxLm, None).unwrap();
    assert_same_values(&back, &experts, "experts");
    let padded = LoraAdapter::new("x", "", vec![expert("gate_proj", 2), expert("up_proj", 3)]);
    let (back, _) = there_and_back(&padded, WriteFormat::MlxLm, None).unwrap();
    assert_eq!(back.modules[0].rank, 3);
    assert_same_deltas(&back, &padded, "padded experts");
}

#[test]
fn full_tensors_alone_are_a_full_fine_tune() {
    let tensor = ReplacementTensor::new("model.norm.weight", vec![3], Floats::Bf16(vec![1, 2, 3]));
    let adapter = LoraAdapter::new("x", "", Vec::new()).with_replacements(vec![tensor]);
    assert_eq!(config(&adapter, None)["fine_tune_type"], json!("full"));
    let (back, _) = there_and_back(&adapter, WriteFormat::MlxLm, None).unwrap();
    assert_same_values(&back, &adapter, "full");
}
