//! The adapters of a spec together, as far as they are known: those that are here, and the outlines of the others.

use std::{collections::BTreeSet, sync::Arc};

use llm_local_core::{Allowance, Error, LoraAdapter, ModelInfo, Result, lora::Combination};

use super::sets::AdapterLimits;
use crate::{
    blocking::blocking,
    lora::{self, AdapterOutline, FitReport},
};

/// An adapter of a spec.
pub(super) struct Known {
    pub(super) outline: AdapterOutline,
    /// The adapter itself, if it is here.
    pub(super) adapter: Option<Arc<LoraAdapter>>,
    pub(super) weight: f32,
    /// What is let pass of it.
    pub(super) allow: BTreeSet<Allowance>,
}

/// The adapters of a spec, in its order.
pub(super) struct Together {
    pub(super) known: Vec<Known>,
    /// How many the spec has: of some nothing can be told before they are here.
    pub(super) asked: usize,
    pub(super) combination: Combination,
}

/// Adapters as they go into a model, each with what its delta is multiplied by, and what is let pass of each.
pub(super) type Weighted = (Vec<(Arc<LoraAdapter>, f32)>, Vec<BTreeSet<Allowance>>);

impl Together {
    /// What goes into the model that `info` describes, and what it changes there, if all adapters fit it and what they are
    /// combined into does, within `limits`.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the adapter and what keeps it from being used.
    pub(super) fn fit(
        &self,
        info: &ModelInfo,
        limits: &AdapterLimits,
    ) -> Result<(Vec<(AdapterOutline, f32)>, FitReport)> {
        // What one adapter has for the vocabulary may fit only with what another one has, of which nothing is known yet.
        let can_be_told = |known: &&Known| self.is_complete() || !known.outline.touches_vocabulary();
        let told: Vec<_> = self.known.iter().filter(can_be_told).collect();
        let outlines: Vec<_> = told.iter().map(|known| (known.outline.clone(), known.weight)).collect();
        let allow: Vec<_> = told.iter().map(|known| known.allow.clone()).collect();
        let report = lora::fit_outlines_allowing(&outlines, &allow, info)?;
        for (Known { adapter, weight, allow, .. }, fitted) in told.into_iter().zip(&report.adapters) {
            if let Some(adapter) = adapter {
                lora::check_values(adapter, *weight, &fitted.unused, allow)?;
            }
        }
        limits.check(&report.adapters)?;
        if !self.is_combined() || outlines.is_empty() {
            return Ok((outlines, report));
        }
        let order = self.order(info)?;
        let fitted = outlines.iter().zip(&report.adapters);
        let used = fitted.map(|((outline, weight), fitted)| (outline.clone().without(&fitted.unused), *weight));
        // One that may do nothing has nothing to combine.
        let used: Vec<_> = used.filter(|(outline, _)| outline.tensors() > 0).collect();
        if used.is_empty() {
            return Ok((outlines, report));
        }
        if self.combination.seed().is_some() {
            lora::check_order(&used, &order)?;
        }
        let combined = [(lora::combined_outline(&used, self.asked, &self.combination)?, 1.0)];
        let report = lora::fit_outlines_allowing(&combined, &[self.allow_of_combined()], info)?;
        limits.check(&report.adapters)?;
        Ok((combined.into(), report))
    }

    /// What goes into the model that `info` describes, all of which are here and fit.
    ///
    /// # Errors
    /// Those of [`lora::combine()`].
    pub(super) async fn into_model(self, info: &Arc<ModelInfo>) -> Result<Weighted> {
        let is_combined = self.is_combined();
        let (order, allow_of_combined) = (self.order(info)?, self.allow_of_combined());
        let (asked, combination) = (self.asked, self.combination);
        let here = |known: Known| Some(((known.adapter?, known.weight), known.allow));
        let (adapters, allow): Weighted = self.known.into_iter().filter_map(here).unzip();
        if !is_combined || adapters.is_empty() {
            return Ok((adapters, allow));
        }
        let info = info.clone();
        blocking("adapters", move || {
            let report = lora::fit_allowing(&adapters, &allow, &info)?;
            report.warn(&info.id);
            let fitted = adapters.iter().zip(&report.adapters);
            let used = fitted.map(|((adapter, weight), fitted)| (lora::without(adapter, &fitted.unused), *weight));
            let used: Vec<_> = used.filter(|(adapter, _)| AdapterOutline::from(&**adapter).tensors() > 0).collect();
            if used.is_empty() {
                return Ok((adapters, allow));
            }
            let combined = lora::combine_left(&used, asked, &combination, &order)?;
            Ok((vec![(Arc::new(combined), 1.0)], vec![allow_of_combined]))
        })
        .await
    }

    /// Whether something is known of each adapter of the spec.
    fn is_complete(&self) -> bool {
        self.known.len() == self.asked
    }

    fn is_combined(&self) -> bool {
        self.combination != Combination::Sum
    }

    /// The modules of the base in the order in which random values are drawn for them; none for what is not random.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] for a base that is not described.
    fn order(&self, info: &ModelInfo) -> Result<Vec<String>> {
        if self.combination.seed().is_none() || self.known.is_empty() {
            return Ok(Vec::new());
        }
        let decoder = info.decoder.as_ref().map_err(|error| {
            let names: Vec<_> = self.known.iter().map(|known| known.outline.reference()).collect();
            let reason = format!(
                "the combination {} draws random values in the order of the base's modules, which is not known of `{}`: \
                 {error}; choose a combination without a seed",
                self.combination.name(),
                info.id
            );
            Error::adapter(names.join(" + "), reason)
        })?;
        Ok(lora::module_order(decoder))
    }

    /// What is let pass of what they are combined into. Each was held to its own; that all do nothing together is let pass
    /// if it is of each.
    fn allow_of_combined(&self) -> BTreeSet<Allowance> {
        let all = self.known.iter().all(|known| known.allow.contains(&Allowance::NoEffect));
        all.then_some(Allowance::NoEffect).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use llm_local_core::{LoraModule, ModelFormat, TensorEntry};
    use pollster::block_on;

    use super::*;

    /// An adapter of one pair of `module` (rank 1, 2 features in and out) with this B.
    fn known(name: &str, module: &str, b: [f32; 2]) -> Known {
        let module = LoraModule::new(module, (1, 2, 2), vec![1.0, 2.0], b.to_vec(), 1.0);
        let adapter = LoraAdapter::new(name, name, vec![module]);
        let outline = AdapterOutline::from(&adapter);
        Known { outline, adapter: Some(Arc::new(adapter)), weight: 1.0, allow: BTreeSet::new() }
    }

    /// A base that is not described, with one linear module and an embedding.
    fn info() -> Arc<ModelInfo> {
        let float = llm_local_core::Encoding::Float(llm_local_core::FloatType::F32);
        let entry = |name: &str| TensorEntry::new(name, vec![2, 2], float);
        let entries = vec![entry("m.q.weight"), entry("m.embed_tokens.weight")];
        Arc::new(ModelInfo::new("base", ModelFormat::Remote, entries))
    }

    fn together(known: Vec<Known>, combination: &str) -> Together {
        Together { asked: known.len(), known, combination: combination.parse().unwrap() }
    }

    fn fit(together: &Together) -> Result<(Vec<(AdapterOutline, f32)>, FitReport)> {
        together.fit(&info(), &AdapterLimits::none())
    }

    #[test]
    fn random_values_need_the_order_of_the_base() {
        let of =
            |combination| together(vec![known("a", "m.q", [1.0, 0.0]), known("b", "m.q", [0.0, 1.0])], combination);
        let error = fit(&of("dare-linear:density=0.5,seed=1")).unwrap_err().to_string();
        for part in ["adapter a + b", "dare-linear draws random values", "`base`", "without a seed"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(fit(&of("cat")).unwrap().0[0].0.ranks(), [2]);
        let (adapters, _) = block_on(of("cat").into_model(&info())).unwrap();
        assert_eq!((adapters.len(), adapters[0].0.modules[0].rank), (1, 2));
        assert_eq!(block_on(of("sum").into_model(&info())).unwrap().0.len(), 2);
    }

    #[test]
    fn what_one_may_leave_out_is_left_out_of_the_combination() {
        let mut other = known("b", "m.other", [0.0, 1.0]);
        let error = fit(&together(vec![known("a", "m.q", [1.0, 0.0]), other], "cat")).unwrap_err().to_string();
        assert!(error.contains("m.other"), "{error}");
        other = known("b", "m.other", [0.0, 1.0]);
        let second = LoraModule::new("m.q", (1, 2, 2), vec![1.0, 2.0], vec![0.0, 1.0], 1.0);
        let modules = [&other.adapter.as_ref().unwrap().modules[..], &[second]].concat();
        let adapter = LoraAdapter::new("b", "b", modules);
        other.outline = AdapterOutline::from(&adapter);
        other.adapter = Some(Arc::new(adapter));
        other.allow.insert(Allowance::UnusedTensors);
        let both = together(vec![known("a", "m.q", [1.0, 0.0]), other], "cat");
        let (outlines, report) = fit(&both).unwrap();
        assert_eq!((outlines[0].0.modules(), report.touched.len()), (1, 1));
        let (adapters, _) = block_on(both.into_model(&info())).unwrap();
        assert!(adapters[0].0.module("m.other").is_none() && adapters[0].0.module("m.q").is_some());
    }

    #[test]
    fn one_of_which_nothing_is_left_is_no_part_of_the_combination() {
        let nothing = || {
            let mut nothing = known("nothing", "m.other", [0.0, 1.0]);
            nothing.allow.extend([Allowance::UnusedTensors, Allowance::NoEffect]);
            nothing
        };
        let both = together(vec![nothing(), known("a", "m.q", [1.0, 0.0])], "linear");
        assert_eq!(fit(&both).unwrap().0[0].0.modules(), 1);
        let (adapters, _) = block_on(both.into_model(&info())).unwrap();
        assert_eq!((adapters.len(), adapters[0].0.modules[0].name.as_str()), (1, "m.q"));
        let none = together(vec![nothing(), nothing()], "linear");
        assert!(fit(&none).unwrap().1.touched.is_empty());
        let (adapters, allow) = block_on(none.into_model(&info())).unwrap();
        assert_eq!((adapters.len(), allow.len()), (2, 2), "as they are, to do nothing");
    }

    #[test]
    fn one_that_is_left_of_several_is_combined_as_was_asked() {
        let mut nothing = known("nothing", "m.other", [0.0, 1.0]);
        nothing.allow.extend([Allowance::UnusedTensors, Allowance::NoEffect]);
        let module = LoraModule::new("m.q", (2, 2, 2), vec![3.0, 0.0, 0.0, 1.0], vec![1.0, 0.0, 0.0, 1.0], 1.0);
        let adapter = LoraAdapter::new("a", "a", vec![module]);
        let outline = AdapterOutline::from(&adapter);
        let left = Known { outline, adapter: Some(Arc::new(adapter)), weight: 1.0, allow: BTreeSet::new() };
        let mut both = together(vec![left], "svd:rank=1");
        assert_eq!(fit(&both).unwrap().0[0].0.ranks(), [2], "one alone is as it is");
        both.asked = 2;
        assert_eq!(fit(&both).unwrap().0[0].0.ranks(), [1], "nothing is known of the other one yet");
        both.known.push(nothing);
        assert_eq!(fit(&both).unwrap().0[0].0.ranks(), [1]);
        let (adapters, _) = block_on(both.into_model(&info())).unwrap();
        assert_eq!(adapters[0].0.modules[0].rank, 1);
    }

    #[test]
    fn random_values_are_drawn_for_a_tied_head_and_for_nothing_the_base_does_not_order() {
        let info = |name: &str| {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
            let files = ["config.json", "model.safetensors"].map(|name| (name.to_owned(), folder.join(name)));
            ModelInfo::clone(&llm_local_weights::Checkpoint::open(name, &files.into()).unwrap().info)
        };
        let mut info_of_tied = info("tiny-llama");
        let fused = info("arch-phi3");
        let decoder = info_of_tied.decoder.as_ref().unwrap().clone();
        let (hidden, vocab) = (decoder.hidden_size, decoder.vocab_size);
        let pair = |name: &str, inputs: usize, outputs: usize| {
            let module = LoraModule::new(name, (1, inputs, outputs), vec![1.0; inputs], vec![1.0; outputs], 1.0);
            let adapter = LoraAdapter::new("a", "a", vec![module]);
            let outline = AdapterOutline::from(&adapter);
            Known { outline, adapter: Some(Arc::new(adapter)), weight: 1.0, allow: BTreeSet::new() }
        };
        let random = "dare-linear:density=0.5,seed=1";
        let head = together(vec![pair("lm_head", hidden, vocab)], random);
        let mut tied = decoder.clone();
        tied.tied_embeddings = true;
        info_of_tied.decoder = Ok(tied);
        head.fit(&info_of_tied, &AdapterLimits::none()).unwrap();
        assert!(block_on(head.into_model(&Arc::new(info_of_tied))).is_ok());
        // A part of a fused projection fits, and has no place in the order.
        let decoder = fused.decoder.as_ref().unwrap();
        let query = pair("model.layers.0.self_attn.q_proj", decoder.hidden_size, decoder.heads * decoder.head_dim);
        let error = together(vec![query], random).fit(&fused, &AdapterLimits::none()).unwrap_err().to_string();
        assert!(error.contains("lacks `model.layers.0.self_attn.q_proj`"), "{error}");
    }

    #[test]
    fn an_adapter_for_the_vocabulary_is_judged_once_all_others_are_known() {
        let wide = || {
            let mut wide = known("wide", "m.embed_tokens", [1.0, 0.0]);
            let module = LoraModule::new("m.embed_tokens", (1, 2, 3), vec![1.0, 2.0], vec![1.0; 3], 1.0);
            let adapter = LoraAdapter::new("wide", "wide", vec![module]);
            wide.outline = AdapterOutline::from(&adapter);
            wide.adapter = Some(Arc::new(adapter));
            wide
        };
        let mut both = together(vec![wide(), known("a", "m.q", [1.0, 0.0])], "sum");
        both.asked = 3;
        let (outlines, _) = fit(&both).unwrap();
        assert_eq!(outlines.len(), 1, "the other one alone");
        both.asked = 2;
        assert!(fit(&both).unwrap_err().to_string().contains("(3, 1)"), "it does not fit what is there");
    }

    #[test]
    fn values_of_what_is_here_are_looked_at_beside_outlines_of_the_others() {
        let mut elsewhere = known("b", "m.q", [0.0, 1.0]);
        elsewhere.adapter = None;
        let zeros = known("zeros", "m.q", [0.0, 0.0]);
        let error = fit(&together(vec![elsewhere, zeros], "sum")).unwrap_err().to_string();
        assert!(error.starts_with("adapter zeros") && error.contains("do nothing"), "{error}");
    }
}
