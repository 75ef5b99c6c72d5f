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

/// Pairs of `count` experts of a layer, one by one, as checkpoints of Mixtral and of Qwen name them.
fn one_by_one(block: &str, projection: &str, count: usize) -> Vec<LoraModule> {
    let one = |expert: usize| {
        let values = |first: usize| (0..2 * 3).map(|i| (first + expert * 7 + i) as f32).collect::<Vec<_>>();
        let name = format!("model.layers.1.{block}.experts.{expert}.{projection}");
        LoraModule::new(name, (2, 3, 3), values(1), values(50), 0.5)
    };
    (0..count).map(one).collect()
}

#[test]
fn experts_that_have_pairs_one_by_one_are_stacked_as_mlx_lm_names_them() {
    for (block, names) in [
        ("block_sparse_moe", [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")]),
        ("mlp", [("gate_proj", "gate_proj"), ("up_proj", "up_proj"), ("down_proj", "down_proj")]),
    ] {
        for (stored, stacked) in names {
            // Twelve, of which names sort otherwise than numbers.
            let experts = one_by_one(block, stored, 12);
            let router =
                LoraModule::new(format!("model.layers.1.{block}.gate"), (2, 3, 2), vec![1.0; 6], vec![1.0; 4], 0.5);
            let adapter = LoraAdapter::new("x", "", experts.iter().cloned().chain([router.clone()]).collect());
            let (back, _) = there_and_back(&adapter, WriteFormat::MlxLm, None).unwrap();
            assert_eq!(back.modules.len(), 2);
            assert_eq!(back.module(&router.name), Some(&router));
            let switch = back.module(&format!("model.layers.1.{block}.switch_mlp.{stacked}")).unwrap();
            assert_eq!((switch.experts, switch.rank, switch.scale), (Some(12), 2, 0.5));
            assert_eq!(delta(switch), experts.iter().flat_map(delta).collect::<Vec<_>>());
        }
    }
}

#[test]
fn experts_that_mlx_lm_cannot_stack_are_refused_with_the_module() {
    let refused = |change: &dyn Fn(&mut Vec<LoraModule>), words: &[&str]| {
        let mut experts = one_by_one("mlp", "up_proj", 3);
        change(&mut experts);
        let error =
            there_and_back(&LoraAdapter::new("x", "", experts), WriteFormat::MlxLm, None).unwrap_err().to_string();
        for word in words.iter().chain(&["cannot be written as mlx-lm", "`model.layers.1.mlp.switch_mlp.up_proj`"]) {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
    };
    refused(&|all| drop(all.remove(1)), &["`model.layers.1.mlp.experts.2.up_proj`", "no pair of expert 1"]);
    refused(&|all| all[2].scale = 1.0, &["experts.2.up_proj`", "one scale"]);
    refused(&|all| all[1] = all[1].clone().with_magnitude(vec![1.0; 3]), &["experts.1.up_proj`", "DoRA"]);
    refused(&|all| all[1] = all[1].clone().with_bias(vec![1.0; 3]), &["experts.1.up_proj`", "lora_bias"]);
    refused(&|all| all[1].a = Floats::Bf16(vec![1; 6]), &["experts.1.up_proj`", "one type"]);
}

/// tiny-llama with these tensors.
fn base_of(tensors: &[String]) -> ModelInfo {
    let mut info = base("tiny-llama");
    let float = llm_local_core::Encoding::Float(llm_local_core::FloatType::F32);
    info.tensors = tensors
        .iter()
        .map(|name| llm_local_core::TensorEntry::new(name.as_str(), vec![128, 128], float))
        .collect::<Vec<_>>()
        .into();
    info
}

/// What `adapter` becomes for `info`: the adapter, the names of its tensors, and its config.
fn written_for(
    adapter: &LoraAdapter,
    format: WriteFormat,
    info: &ModelInfo,
) -> Result<(LoraAdapter, Vec<String>, Value)> {
    let folder = TempDir::new().unwrap();
    let written = write(adapter, format, Some(info), &folder.path().join("into"))?;
    let config: Value = serde_json::from_slice(&fs::read(&written.files[0]).unwrap()).unwrap();
    let source = llm_local_weights::SafetensorsSource::open(&written.files[1]).unwrap();
    let names = llm_local_core::TensorSource::entries(&source).iter().map(|entry| entry.name.clone()).collect();
    Ok((read_files(&written.files).unwrap(), names, config))
}

#[test]
fn experts_that_are_missing_at_the_end_are_refused_by_the_base_and_noted_without() {
    let experts = LoraAdapter::new("x", "", one_by_one("mlp", "up_proj", 3));
    let names = |count| one_by_one("mlp", "up_proj", count).iter().map(LoraModule::weight_name).collect::<Vec<_>>();
    let error = written_for(&experts, WriteFormat::MlxLm, &base_of(&names(4))).unwrap_err().to_string();
    assert!(error.contains("no pair of expert 3") && error.contains("has 4"), "{error}");
    let error = written_for(&experts, WriteFormat::MlxLm, &base_of(&names(2))).unwrap_err().to_string();
    assert!(error.contains("another base"), "{error}");
    let (_, notes) = there_and_back(&experts, WriteFormat::MlxLm, Some(&base_of(&names(3)))).unwrap();
    assert!(notes.iter().all(|note| !note.contains("experts")), "{notes:?}");
    let (_, notes) = there_and_back(&experts, WriteFormat::MlxLm, None).unwrap();
    assert!(notes.iter().any(|note| note.contains("pairs of 3 experts")), "{notes:?}");
}

#[test]
fn modules_have_the_names_of_a_base_whose_decoder_is_a_part_of_it() {
    let mlx = adapter("tiny-llama-lora-mlx");
    let plain: Vec<_> = mlx.modules.iter().map(LoraModule::weight_name).collect();
    let parts: Vec<_> = plain.iter().map(|name| format!("language_model.{name}")).collect();
    let info = base_of(&parts);
    // Keys within a layer are relative to it; whole paths are not.
    let (back, names, config) = written_for(&mlx, WriteFormat::MlxLm, &info).unwrap();
    assert_same_values(&back, &mlx, "prefix");
    assert!(!names.is_empty() && names.iter().all(|name| name.starts_with("language_model.model.layers.")));
    let keys = config["lora_parameters"]["keys"].as_array().unwrap();
    assert!(keys.iter().all(|key| !key.as_str().unwrap().contains("language_model")), "{keys:?}");
    let mut holes = mlx.clone();
    (holes.targets, holes.modules) = (None, vec![holes.modules[0].clone()]);
    let name = format!("language_model.{}", holes.modules[0].name);
    let (_, names, config) = written_for(&holes, WriteFormat::MlxLm, &info).unwrap();
    assert_eq!((names[0].clone(), &config["lora_parameters"]["keys"]), (format!("{name}.lora_a"), &json!([name])));
    // What has the whole name already gets no second one, and what a base has without it none.
    let mut whole = holes.clone();
    whole.modules[0].name = name.clone();
    let (_, names, _) = written_for(&whole, WriteFormat::MlxLm, &info).unwrap();
    assert_eq!(names[0], format!("{name}.lora_a"));
    let vision = "language_model.visual.weight".to_owned();
    let both = base_of(&[plain, vec![vision]].concat());
    let (_, names, _) = written_for(&mlx, WriteFormat::MlxLm, &both).unwrap();
    assert!(names.iter().all(|name| name.starts_with("model.layers.")), "{names:?}");
    // PEFT passes over what it does not find as well.
    let (_, names, config) = written_for(&mlx, WriteFormat::Peft, &info).unwrap();
    assert!(names.iter().all(|name| name.starts_with("base_model.model.language_model.model.layers.")), "{names:?}");
    assert!(!config["target_modules"].is_null());
}

#[test]
fn a_module_that_the_base_has_under_no_name_is_refused() {
    let mlx = adapter("tiny-llama-lora-mlx");
    let mut tensors: Vec<_> = mlx.modules.iter().map(|m| format!("language_model.{}", m.weight_name())).collect();
    let missing = tensors.remove(0);
    for format in [WriteFormat::MlxLm, WriteFormat::Peft] {
        let error = written_for(&mlx, format, &base_of(&tensors)).unwrap_err().to_string();
        let words = [missing.as_str(), &mlx.modules[0].weight_name(), "tiny-llama", "give the base"];
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
    }
}
