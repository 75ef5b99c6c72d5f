//! Adapters that do not fit, and models that run none.

use std::sync::Arc;

use llm_local_core::{
    AdapterSet, Error, GenerateRequest, InferenceBackend, LoadOptions, LoadedModel, LogitsRequest, LoraAdapter,
    LoraModule, lora::Floats,
};

use super::{Suite, TOKENS, UnmergedCase, unload};

impl Suite<'_> {
    /// Nothing of an adapter that does not fit is used, and nothing else is touched.
    pub(super) async fn misfits(&self) {
        let model = self.load(&self.one(1.0)).await;
        let held = model.memory().weights;
        for (what, adapter) in misfits(&self.case.adapter) {
            // Beside one that fits, which must not be used either.
            let set = || self.one(1.0).with(adapter.clone(), 1.0);
            let weights = (self.case.base)().with_adapters(set().adapters);
            let loaded = self.backend.load(weights, self.options.clone()).await.map(drop);
            refused(loaded, &adapter, &format!("a load with {what}"));
            refused(model.set_adapters(set()).await, &adapter, &format!("set_adapters with {what}"));
            let logits = model.logits(LogitsRequest::new(self.prompt.clone()).with_adapters(set())).await;
            refused(logits.map(drop), &adapter, &format!("logits with {what}"));
            let request = GenerateRequest::new(self.prompt.clone()).with_max_tokens(TOKENS).with_adapters(set());
            let generation = first_item(&*model, request).await;
            refused(generation, &adapter, &format!("a generation with {what}"));
            let after = format!("the model's own adapters, after {what} was refused");
            self.near(&self.logits(&*model, None).await, &self.adapted, &after);
            let now = model.memory().weights;
            assert_eq!(now, held, "bytes of weights after {what} was refused");
        }
        unload(&*model).await;
    }

    /// What an unloaded model says of sets.
    pub(super) async fn unloading(&self) {
        let model = self.load(&self.one(1.0)).await;
        unload(&*model).await;
        let logits = LogitsRequest::new(self.prompt.clone()).with_adapters(self.one(1.0));
        for (what, outcome) in [
            ("set_adapters", model.set_adapters(AdapterSet::new()).await),
            ("logits with a set", model.logits(logits).await.map(drop)),
        ] {
            match outcome {
                Ok(()) => panic!("{what} after unload must be an error"),
                Err(e) => assert_eq!(e.code(), "model_not_loaded", "the error of {what} after unload: {e}"),
            }
        }
        let held = model.memory().weights;
        assert_eq!(held, 0, "bytes of weights, adapters included, that an unloaded model still holds");
    }
}

/// What a backend says that runs no adapters beside the weights, and what its models say: it is asked for what it cannot do,
/// which is no fault of the adapter (`adapter_merge_failed`) nor of the files (`load_failed`).
pub(super) async fn none_run(backend: &dyn InferenceBackend, options: &LoadOptions, case: &UnmergedCase<'_>) {
    let set = AdapterSet::new().with(case.adapter.clone(), 1.0);
    let adapted = backend.load((case.base)().with_adapters(set.adapters.clone()), options.clone()).await;
    unsupported(adapted.map(drop), "a load with adapters");
    let model = backend.load((case.base)(), options.clone()).await;
    let model = model.unwrap_or_else(|e| panic!("a load without adapters failed: {e}"));
    let request = GenerateRequest::new(case.prompt).with_max_tokens(TOKENS).with_adapters(set.clone());
    unsupported(first_item(&*model, request).await, "a generation with adapters");
    let logits = model.logits(LogitsRequest::new(case.prompt).with_adapters(set.clone())).await;
    unsupported(logits.map(drop), "logits with adapters");
    unsupported(model.set_adapters(set).await, "set_adapters");
    unload(&*model).await;
}

fn unsupported(outcome: Result<(), Error>, what: &str) {
    match outcome {
        Ok(()) => panic!("the backend says that it runs no adapters beside the weights, but {what} works"),
        Err(e) => assert_eq!(e.code(), "unsupported", "{what}, where no adapters run beside the weights: {e}"),
    }
}

/// Whether a generation begins; what is wrong is its first item.
async fn first_item(model: &dyn LoadedModel, request: GenerateRequest) -> Result<(), Error> {
    match model.generate(request).next().await {
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Adapters made from one that fits, each with one thing wrong.
fn misfits(fits: &LoraAdapter) -> Vec<(&'static str, Arc<LoraAdapter>)> {
    let with = |name: &str, change: &dyn Fn(&LoraModule) -> LoraModule| {
        let mut wrong = fits.clone();
        wrong.reference = format!("conformance:{name}");
        wrong.digest = name.to_owned();
        // The last one, when the others have been taken in.
        if let Some(last) = wrong.modules.last_mut() {
            *last = change(last);
        }
        Arc::new(wrong)
    };
    let other = |name: &str, m: &LoraModule, shape: (usize, usize, usize)| {
        let (a, b) = (vec![0.1f32; shape.0 * shape.1], vec![0.1f32; shape.0 * shape.2]);
        LoraModule::new(name, shape, a, b, m.scale)
    };
    vec![
        (
            "an adapter for a module that the base does not have",
            with("module", &|m| other("model.conformance.no_such_module", m, (m.rank, m.in_features, m.out_features))),
        ),
        (
            "an adapter for fewer inputs",
            with("inputs", &|m| other(&m.name, m, (m.rank, m.in_features - 1, m.out_features))),
        ),
        (
            "an adapter for more outputs",
            with("outputs", &|m| other(&m.name, m, (m.rank, m.in_features, m.out_features + 1))),
        ),
        (
            "an adapter that is not finite",
            with("finite", &|m| {
                let mut wrong = other(&m.name, m, (m.rank, m.in_features, m.out_features));
                let mut b = vec![0.1f32; m.rank * m.out_features];
                b[m.rank] = f32::NAN;
                wrong.b = Floats::from(b);
                wrong
            }),
        ),
    ]
}

fn refused(outcome: Result<(), Error>, adapter: &LoraAdapter, what: &str) {
    match outcome {
        Ok(()) => panic!("{what} must be an error"),
        Err(e) => {
            assert_eq!(e.code(), "adapter_merge_failed", "{what} gave another error: {e}");
            let named = e.to_string().contains(&adapter.reference);
            assert!(named, "the error of {what} does not name `{}`: {e}", adapter.reference);
        }
    }
}
