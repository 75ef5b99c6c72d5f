use std::sync::Arc;

use llm_local_core::{
    Encoding, FloatType, ModelFormat, ModelInfo, TensorEntry,
    lora::{DeclaredTargets, ModuleSelector},
};
use serde_json::json;

use super::{BaseModules, Targets, Verdict};
use crate::lora::testing::tiny_llama_info;

fn names(names: &[&str]) -> ModuleSelector {
    ModuleSelector::Names(names.iter().map(|n| (*n).into()).collect())
}

fn pattern(text: &str) -> ModuleSelector {
    ModuleSelector::Pattern(text.into())
}

/// The modules of `info` that `declared` covers.
fn covered(info: &ModelInfo, declared: &DeclaredTargets) -> Vec<String> {
    let base = BaseModules::new(info);
    let targets = Targets::new(declared, &base).unwrap();
    targets.covered(&base, &[].into()).unwrap().into_iter().map(String::from).collect()
}

/// A base with these modules, all of them matrices.
fn base_of(model_type: &str, modules: &[&str]) -> ModelInfo {
    let entry = |m: &&str| TensorEntry::new(format!("{m}.weight"), vec![4, 4], Encoding::Float(FloatType::F32));
    let config = Arc::new(json!({"model_type": model_type}));
    ModelInfo::new("base", ModelFormat::Safetensors { config }, modules.iter().map(entry).collect::<Vec<_>>())
}

#[test]
fn names_match_whole_segments_at_the_end_of_a_path() {
    let info = base_of("llama", &["model.layers.0.q_proj", "model.layers.0.my_q_proj", "q_proj", "q_proj.x"]);
    assert_eq!(covered(&info, &DeclaredTargets::new(names(&["q_proj"]))), ["model.layers.0.q_proj", "q_proj"]);
    assert_eq!(covered(&info, &DeclaredTargets::new(names(&["0.q_proj"]))), ["model.layers.0.q_proj"]);
    assert!(covered(&info, &DeclaredTargets::new(names(&["Q_PROJ", ".q_proj", "proj"]))).is_empty());
}

#[test]
fn a_pattern_must_match_the_whole_path() {
    let info = tiny_llama_info(|_| {});
    let of = |text: &str| covered(&info, &DeclaredTargets::new(pattern(text)));
    assert_eq!(of(r".*\.layers\.[01]\.self_attn\.(q|k)_proj").len(), 4);
    assert_eq!(of(r".*\.(?P<layer>3)\..*(?i:V_PROJ)"), ["model.layers.3.self_attn.v_proj"]);
    assert_eq!(of("q_proj"), [""; 0]);
    assert_eq!(of(r"model\.layers\.0\.self_attn\.q|.*\.0\.self_attn\.k_proj"), ["model.layers.0.self_attn.k_proj"]);
}

#[test]
fn a_pattern_may_look_around_and_refer_back_as_in_python() {
    let info = tiny_llama_info(|_| {});
    let of = |text: &str| covered(&info, &DeclaredTargets::new(pattern(text)));
    // Counted with Python's re.fullmatch over the names of tiny-llama's modules.
    assert_eq!(of(r"^(?!.*(?:lm_head|embed)).*\.(?:q|v)_proj$").len(), 8);
    assert_eq!(of(r"model\.layers\.(?![01]\.)\d+\.self_attn\.q_proj").len(), 2);
    assert_eq!(of(r".*(?<=self_attn\.)[kv]_proj").len(), 8);
    assert_eq!(of(r".*(?<!k)_proj\Z").len(), 24);
    assert_eq!(of(r"(?P<m>m).*(?P=m)lp\.up_proj").len(), 4);
    // A look-ahead takes nothing: the whole path must still be matched by what follows.
    assert_eq!(of(r"model(?=.*q_proj)"), [""; 0]);
    // Alternatives are tried until the whole path is matched.
    assert_eq!(of(r"(?=m)(?:model|model\.layers\.0\.mlp\.up_proj)"), ["model.layers.0.mlp.up_proj"]);
}

#[test]
fn a_pattern_that_takes_too_many_steps_is_refused_with_the_field() {
    let info = tiny_llama_info(|_| {});
    let base = BaseModules::new(&info);
    let hostile = r"(?=m)(?:(?:[a-z0-9_.]|[a-z0-9_.](?=.|$))+)+!";
    let module = "model.layers.0.self_attn.q_proj";
    for (declared, field) in [
        (DeclaredTargets::new(pattern(hostile)), "`target_modules`"),
        (DeclaredTargets::new(names(&["q_proj"])).with_exclude(pattern(hostile)), "`exclude_modules`"),
        (DeclaredTargets::new(names(&["q_proj"])).with_layers(vec![0], vec![hostile.into()]), "`layers_pattern`"),
    ] {
        let targets = Targets::new(&declared, &base).unwrap();
        let reason = targets.verdict(module).unwrap_err();
        assert!(reason.contains(field) && reason.contains("too many steps") && reason.contains(module), "{reason}");
        assert!(targets.covered(&base, &[].into()).is_err());
        if field == "`target_modules`" {
            assert!(targets.unmatched(&base).unwrap_err().contains("too many steps"));
        }
        assert_eq!(targets.absent_layers(&base).is_err(), field == "`layers_pattern`");
    }
}

#[test]
fn a_pattern_that_is_broken_is_refused_with_the_field() {
    let info = tiny_llama_info(|_| {});
    let base = BaseModules::new(&info);
    for text in ["(", "a)|(?:b", "(?=a)|b)|(?:c", r"(?P=none)q", "[a", "*q"] {
        let declared = DeclaredTargets::new(pattern(text));
        let reason = Targets::new(&declared, &base).err().unwrap_or_else(|| panic!("{text} passed"));
        assert!(reason.contains("`target_modules`") && reason.contains(text), "{reason}");
        let declared = DeclaredTargets::new(names(&["q_proj"])).with_exclude(pattern(text));
        assert!(Targets::new(&declared, &base).err().unwrap().contains("`exclude_modules`"));
        let declared = DeclaredTargets::new(names(&["q_proj"])).with_layers(vec![0], vec![text.into()]);
        assert!(Targets::new(&declared, &base).err().unwrap().contains("`layers_pattern`"));
    }
}

#[test]
fn all_linear_is_every_matrix_but_embeddings_and_the_head() {
    let declared = DeclaredTargets::new(ModuleSelector::AllLinear);
    let all = covered(&tiny_llama_info(|_| {}), &declared);
    assert_eq!(all.len(), 4 * 7);
    assert!(all.iter().all(|name| name.ends_with("_proj")));
    let info = base_of("llama", &["lm_head", "model.embed_tokens", "model.layers.0.mlp.up_proj"]);
    assert_eq!(covered(&info, &declared), ["model.layers.0.mlp.up_proj"]);
}

#[test]
fn without_targets_the_architecture_decides() {
    let declared = DeclaredTargets::new(ModuleSelector::ArchitectureDefault);
    let all = covered(&tiny_llama_info(|_| {}), &declared);
    assert_eq!(all.len(), 8);
    assert!(all.iter().all(|name| name.ends_with(".q_proj") || name.ends_with(".v_proj")));
    let info = base_of("phi3", &["model.layers.0.self_attn.qkv_proj"]);
    let reason = Targets::new(&declared, &BaseModules::new(&info)).err().unwrap();
    assert!(reason.contains("`target_modules` is null") && reason.contains("phi3"), "{reason}");
}

#[test]
fn excluded_modules_win() {
    let info = tiny_llama_info(|_| {});
    for exclude in [names(&["layers.0.self_attn.q_proj", "v_proj"]), pattern(r".*\.0\.self_attn\.q_proj|.*v_proj")] {
        let declared = DeclaredTargets::new(names(&["q_proj", "v_proj"])).with_exclude(exclude);
        assert_eq!(covered(&info, &declared), [1, 2, 3].map(|l| format!("model.layers.{l}.self_attn.q_proj")));
        let base = BaseModules::new(&info);
        let verdict = Targets::new(&declared, &base).unwrap().verdict("model.layers.0.self_attn.q_proj").unwrap();
        assert_eq!(verdict, Verdict::Excluded);
    }
}

#[test]
fn layers_are_the_first_number_after_a_segment_that_fits() {
    let info = base_of(
        "x",
        &["enc.layers.1.mlp.experts.0.up", "dec.h.1.mlp.experts.2.up", "layers.1.up", "dec.h.2.up", "layers.10.up"],
    );
    let of = |layers: &[usize], patterns: &[&str]| {
        let patterns = patterns.iter().map(|p| (*p).into()).collect();
        covered(&info, &DeclaredTargets::new(names(&["up"])).with_layers(layers.to_vec(), patterns))
    };
    // Without a pattern PEFT wants a segment before the one in front of the number: `layers.1.up` is in no layer.
    assert_eq!(of(&[1], &[]), ["dec.h.1.mlp.experts.2.up", "enc.layers.1.mlp.experts.0.up"]);
    assert_eq!(of(&[1], &["layers"]), ["enc.layers.1.mlp.experts.0.up", "layers.1.up"]);
    assert_eq!(of(&[2], &["layers", "h"]), ["dec.h.2.up"]);
    assert_eq!(of(&[0, 2], &["experts"]), ["dec.h.1.mlp.experts.2.up", "enc.layers.1.mlp.experts.0.up"]);
    assert_eq!(of(&[10], &["lay.*"]), ["layers.10.up"]);
}

#[test]
fn a_whole_path_in_the_list_counts_in_whichever_layer_it_is() {
    let whole = "model.layers.0.self_attn.q_proj";
    let declared = DeclaredTargets::new(names(&[whole, "v_proj"])).with_layers(vec![3], vec![]);
    assert_eq!(covered(&tiny_llama_info(|_| {}), &declared), [whole, "model.layers.3.self_attn.v_proj"]);
}

#[test]
fn declarations_that_match_nothing_are_named() {
    let info = tiny_llama_info(|_| {});
    let base = BaseModules::new(&info);
    let targets = |declared: DeclaredTargets| Targets::new(&declared, &base).unwrap();
    let unmatched = |selector| targets(DeclaredTargets::new(selector)).unmatched(&base);
    assert_eq!(unmatched(names(&["q_proj"])).unwrap(), [""; 0]);
    assert_eq!(unmatched(names(&["q_proj", "c_attn"])).unwrap(), ["c_attn"]);
    let reason = unmatched(names(&["c_proj", "c_attn"])).unwrap_err();
    assert!(reason.contains("`c_proj`, `c_attn`"), "{reason}");
    assert!(unmatched(pattern("h.*")).unwrap_err().contains("`h.*`"));
    let absent = |layers| targets(DeclaredTargets::new(names(&["q_proj"])).with_layers(layers, vec![]));
    let absent = |layers| absent(layers).absent_layers(&base).unwrap();
    assert_eq!(absent(vec![3]), None);
    let reason = absent(vec![3, 4, 9]).unwrap();
    assert!(reason.contains("`layers_to_transform` names the layers [4, 9]"), "{reason}");
    let bare = base_of("llama", &["lm_head"]);
    let all = DeclaredTargets::new(ModuleSelector::AllLinear);
    let bare = BaseModules::new(&bare);
    assert!(Targets::new(&all, &bare).unwrap().unmatched(&bare).unwrap_err().contains("no linear modules"));
}

#[test]
fn what_only_names_parameters_needs_no_modules() {
    let info = tiny_llama_info(|_| {});
    let base = BaseModules::new(&info);
    let declared = DeclaredTargets::new(names(&[])).with_parameters(vec!["experts.down_proj".into()]);
    let targets = Targets::new(&declared, &base).unwrap();
    assert_eq!(targets.unmatched(&base).unwrap(), [""; 0]);
    assert!(targets.covered(&base, &[].into()).unwrap().is_empty());
    // PEFT takes an architecture's default beside them, if there is one.
    let info = base_of("phi3", &["model.layers.0.self_attn.qkv_proj"]);
    let declared = DeclaredTargets::new(ModuleSelector::ArchitectureDefault).with_parameters(vec!["x.y".into()]);
    let base = BaseModules::new(&info);
    assert_eq!(Targets::new(&declared, &base).unwrap().unmatched(&base).unwrap(), [""; 0]);
}

#[test]
fn the_last_layers_are_those_of_the_base() {
    let of = |count| {
        let declared = DeclaredTargets::new(names(&["q_proj", "model.layers.0.self_attn.v_proj"]));
        covered(&tiny_llama_info(|_| {}), &declared.with_last_layers(count))
    };
    assert_eq!(
        of(1),
        ["model.layers.0.self_attn.v_proj", "model.layers.3.self_attn.q_proj"],
        "a whole path counts in whichever layer it is"
    );
    assert_eq!(of(16).len(), 5);
}
