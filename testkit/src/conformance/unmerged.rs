//! The suite for adapters that run beside the weights.
//!
//! | module | what it checks |
//! |---|---|
//! | `sets` | logits under every set: of the load, of a request, of a swap |
//! | `running` | generations and sessions while sets change |
//! | `misfits` | adapters that do not fit, and models that run none |

mod misfits;
mod running;
mod sets;

use std::sync::Arc;

use llm_local_core::{
    AdapterSet, GenerateRequest, InferenceBackend, LoadOptions, LoadedModel, LogitsRequest, LoraAdapter, ModelWeights,
    Support, generate::Completion,
};

/// Tokens that the suite generates at a time.
const TOKENS: usize = 6;

/// How many times the tolerance the adapter must move a logit: so that no check passes by it.
const EFFECT: f32 = 10.0;

/// How many times what rounding costs the adapter must move a logit: so that the base is not as near to it as what is merged.
const EFFECT_OF_ROUNDING: f32 = 2.0;

/// What [`unmerged`] works with.
pub struct UnmergedCase<'a> {
    base: &'a dyn Fn() -> ModelWeights,
    merged: &'a dyn Fn() -> ModelWeights,
    adapter: Arc<LoraAdapter>,
    prompt: &'a str,
    tolerance: f32,
    rounding: Option<f32>,
    tokens: usize,
}

impl<'a> UnmergedCase<'a> {
    /// `base` gives the base without adapters, and `merged` the same base with `adapter` merged into its tensors with the
    /// weight 1; both are called several times. `adapter` is of plain pairs alone, in the names and the row order of the
    /// Hugging Face layout, and changes what the base says after `prompt`.
    pub fn new(
        base: &'a dyn Fn() -> ModelWeights,
        merged: &'a dyn Fn() -> ModelWeights,
        adapter: Arc<LoraAdapter>,
        prompt: &'a str,
    ) -> Self {
        Self { base, merged, adapter, prompt, tolerance: 1e-4, rounding: None, tokens: usize::MAX }
    }

    /// Sets how far apart two logits may be that are the same sum by other adapters and weights; without it 0.0001, which is
    /// enough for weights and activations in f32. Measure it.
    pub fn with_tolerance(mut self, tolerance: f32) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Sets how far apart two logits may be that are computed in other steps: beside the weights and merged into them, or the
    /// same prompt in other chunks; without it, the other tolerance. On a quantized base it is what rounding activations
    /// costs. The adapter must move a logit by twice as much.
    pub fn with_rounding(mut self, rounding: f32) -> Self {
        self.rounding = Some(rounding);
        self
    }

    /// Sets how many ids have a token; without it all that have a logit. Rows of a vocabulary beyond its tokens are padding,
    /// which a backend may never choose.
    pub fn with_tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }
}

/// Checks how a backend runs adapters beside the weights. It loads models by itself, one at a time but for a second one
/// that it compares with, and unloads them. The context of `options` must hold the prompt and 32 tokens.
///
/// Where it can ([`llm_local_core::Capabilities::unmerged`]):
/// - adapters of the load, of a request and of [`LoadedModel::set_adapters`] give the same logits, and those of the merged
///   model to within their tolerance; the empty set gives those of the base, whatever the model's own set is;
/// - twice the weight is twice the delta, weights and adapters add up, and a weight of 0 is the base;
/// - greedy tokens are the best of the logits under the set of their generation, also where the model's own set was
///   replaced while it ran or waited;
/// - a session finds nothing in its cache that another set has computed, be it another weight or another content by the
///   same name;
/// - an adapter that does not fit is [`llm_local_core::Error::AdapterMergeFailed`] with its name, at the load, at a swap and
///   in a request, and nothing has changed behind it;
/// - an unloaded model takes no set.
///
/// Where it cannot, a load, a request and a swap with adapters are [`llm_local_core::Error::Unsupported`].
///
/// # Panics
/// With what is wrong.
pub async fn unmerged(backend: &dyn InferenceBackend, options: &LoadOptions, case: &UnmergedCase<'_>) {
    let capabilities = match backend.supports(&(case.base)().info, options) {
        Support::Yes(capabilities) => capabilities,
        Support::No(why) => panic!("the backend does not support the model of the suite: {why}"),
        other => panic!("the suite does not know the answer {other:?} of `supports`"),
    };
    if !capabilities.unmerged {
        return misfits::none_run(backend, options, case).await;
    }
    let LoraAdapter { modules, replacements, rows, .. } = &*case.adapter;
    let is_plain = modules.iter().all(|m| m.magnitude.is_none() && m.bias.is_none() && m.experts.is_none());
    assert!(
        !modules.is_empty() && is_plain && replacements.is_empty() && rows.is_empty(),
        "give the suite an adapter of plain pairs: only their deltas are linear in the weight"
    );
    let suite = Suite::new(backend, options, case).await;
    suite.sets().await;
    suite.weights().await;
    suite.merged().await;
    suite.generations().await;
    if capabilities.sessions {
        suite.sessions().await;
    }
    suite.misfits().await;
    suite.unloading().await;
}

struct Suite<'a> {
    backend: &'a dyn InferenceBackend,
    options: &'a LoadOptions,
    case: &'a UnmergedCase<'a>,
    /// Tokens to make prompts of.
    prompt: Vec<u32>,
    /// The logits after them of the base, and of the base with the adapter.
    plain: Vec<f32>,
    adapted: Vec<f32>,
}

impl<'a> Suite<'a> {
    async fn new(backend: &'a dyn InferenceBackend, options: &'a LoadOptions, case: &'a UnmergedCase<'a>) -> Self {
        let mut suite = Self { backend, options, case, prompt: Vec::new(), plain: Vec::new(), adapted: Vec::new() };
        let model = suite.load(&AdapterSet::new()).await;
        let greedy = GenerateRequest::new(case.prompt).with_max_tokens(2 * TOKENS).with_ignore_eos(true);
        suite.prompt = suite.complete(&*model, greedy, "a greedy generation of the base").await.tokens;
        suite.plain = suite.logits(&*model, None).await;
        unload(&*model).await;
        let model = suite.load(&suite.one(1.0)).await;
        suite.adapted = suite.logits(&*model, None).await;
        unload(&*model).await;
        let effect = apart(&suite.plain, &suite.adapted);
        for (times, what, of) in
            [(EFFECT, "tolerance", case.tolerance), (EFFECT_OF_ROUNDING, "rounding", suite.rounding())]
        {
            assert!(
                effect >= times * of,
                "the adapter of the load moves no logit by more than {effect}; at least {times} times the {what} {of} is \
                 needed to tell it from the base"
            );
        }
        suite
    }

    /// The adapter alone.
    fn one(&self, weight: f32) -> AdapterSet {
        AdapterSet::new().with(self.case.adapter.clone(), weight)
    }

    /// Another adapter by the same name: its deltas are `factor` times those of the adapter.
    fn scaled(&self, factor: f64) -> Arc<LoraAdapter> {
        let mut scaled = LoraAdapter::clone(&self.case.adapter);
        scaled.digest = format!("{}, scaled by {factor}", scaled.digest);
        scaled.modules.iter_mut().for_each(|module| module.scale *= factor);
        Arc::new(scaled)
    }

    async fn load(&self, set: &AdapterSet) -> Arc<dyn LoadedModel> {
        let weights = (self.case.base)().with_adapters(set.adapters.clone());
        let loaded = self.backend.load(weights, self.options.clone()).await;
        loaded.unwrap_or_else(|e| panic!("a load with the adapters [{}] failed: {e}", names(set)))
    }

    async fn set(&self, model: &dyn LoadedModel, set: AdapterSet) {
        let named = names(&set);
        model.set_adapters(set).await.unwrap_or_else(|e| panic!("set_adapters with [{named}] failed: {e}"));
    }

    /// The logits after the prompt.
    async fn logits(&self, model: &dyn LoadedModel, set: Option<&AdapterSet>) -> Vec<f32> {
        self.logits_after(model, self.prompt.clone(), set).await
    }

    async fn logits_after(&self, model: &dyn LoadedModel, tokens: Vec<u32>, set: Option<&AdapterSet>) -> Vec<f32> {
        let request = LogitsRequest::new(tokens);
        let request = match set {
            Some(set) => request.with_adapters(set.clone()),
            None => request,
        };
        let named = set.map_or_else(|| "the model's own adapters".to_owned(), names);
        model.logits(request).await.unwrap_or_else(|e| panic!("logits under {named} failed: {e}"))
    }

    async fn complete(&self, model: &dyn LoadedModel, request: GenerateRequest, what: &str) -> Completion {
        model.generate(request).complete().await.unwrap_or_else(|e| panic!("{what} failed: {e}"))
    }

    /// How far apart logits may be that are computed in other steps.
    fn rounding(&self) -> f32 {
        self.case.rounding.unwrap_or(self.case.tolerance)
    }

    /// Checks that two ways of computing one thing agree.
    fn near(&self, found: &[f32], expected: &[f32], what: &str) {
        near(found, expected, self.case.tolerance, what);
    }
}

fn near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let apart = apart(found, expected);
    assert!(apart <= tolerance, "{what}: logits are up to {apart} apart; {tolerance} is the tolerance");
}

/// The largest difference; infinite where the numbers of logits differ, or one is NaN.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let differences = found.iter().zip(expected).map(|(x, y)| (x - y).abs());
    differences.fold(0.0, |largest: f32, d| if d.is_nan() { f32::INFINITY } else { largest.max(d) })
}

fn names(set: &AdapterSet) -> String {
    let one = |(adapter, weight): &(Arc<LoraAdapter>, f32)| format!("{} × {weight}", adapter.reference);
    set.adapters.iter().map(one).collect::<Vec<_>>().join(", ")
}

async fn unload(model: &dyn LoadedModel) {
    model.unload().await.unwrap_or_else(|e| panic!("unload failed: {e}"));
}

#[cfg(test)]
mod tests;
