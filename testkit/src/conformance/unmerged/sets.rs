//! Logits under every set.

use llm_local_core::AdapterSet;

use super::{Suite, near, unload};

impl Suite<'_> {
    /// One set, by each way in which a model comes to it.
    pub(super) async fn sets(&self) {
        let (base, one) = (AdapterSet::new(), self.one(1.0));
        let model = self.load(&base).await;
        let named = self.logits(&*model, Some(&one)).await;
        self.near(&named, &self.adapted, "the adapter of a request is not that of a load");
        let own = self.logits(&*model, None).await;
        self.near(&own, &self.plain, "a request's adapters were kept for a later request without any");
        self.set(&*model, one.clone()).await;
        let own = self.logits(&*model, None).await;
        self.near(&own, &self.adapted, "the adapter of set_adapters is not that of a load");
        let named = self.logits(&*model, Some(&base)).await;
        self.near(&named, &self.plain, "the empty set of a request is not the base, with an adapter of set_adapters");
        unload(&*model).await;

        let model = self.load(&one).await;
        let named = self.logits(&*model, Some(&base)).await;
        self.near(&named, &self.plain, "the empty set of a request is not the base, with an adapter of the load");
        let named = self.logits(&*model, Some(&one)).await;
        self.near(&named, &self.adapted, "the model's own set, named by a request, is another");
        self.set(&*model, base.clone()).await;
        let own = self.logits(&*model, None).await;
        self.near(&own, &self.plain, "the empty set of set_adapters is not the base");
        self.set(&*model, one).await;
        let own = self.logits(&*model, None).await;
        self.near(&own, &self.adapted, "an adapter that was taken away and set again is another");
        unload(&*model).await;
    }

    /// Twice the weight is twice the delta, and deltas add up: against a load of an adapter that is so scaled.
    pub(super) async fn weights(&self) {
        let model = self.load(&AdapterSet::new()).await;
        let opposite = self.scaled(-0.5);
        for (set, factor, what) in [
            (self.one(2.0), 2.0, "the weight 2 is not twice the delta"),
            (self.one(-0.5), -0.5, "the weight -0.5 is not half of the delta taken away"),
            (self.one(0.5).with(self.case.adapter.clone(), 0.5), 1.0, "half and half of an adapter are not the whole"),
            (self.one(1.0).with(opposite.clone(), 1.0), 0.5, "two adapters are not the sum of their deltas"),
            (self.one(1.0).with(opposite, 2.0), 0.0, "an adapter and its opposite are not the base"),
            (self.one(0.0), 0.0, "the weight 0 is not the base"),
        ] {
            let expected = if factor == 0.0 {
                self.plain.clone()
            } else {
                let other = self.load(&AdapterSet::new().with(self.scaled(factor), 1.0)).await;
                let logits = self.logits(&*other, None).await;
                unload(&*other).await;
                logits
            };
            self.near(&self.logits(&*model, Some(&set)).await, &expected, &format!("{what}, in a request"));
            self.set(&*model, set.clone()).await;
            self.near(&self.logits(&*model, None).await, &expected, &format!("{what}, in set_adapters"));
            let loaded = self.load(&set).await;
            self.near(&self.logits(&*loaded, None).await, &expected, &format!("{what}, in a load"));
            unload(&*loaded).await;
        }
        unload(&*model).await;
    }

    /// Beside the weights as merged into them, for prompts of several lengths.
    pub(super) async fn merged(&self) {
        let merged = self.backend.load((self.case.merged)(), self.options.clone()).await;
        let merged = merged.unwrap_or_else(|e| panic!("the load of the merged model failed: {e}"));
        let beside = self.load(&self.one(1.0)).await;
        for length in [1, 3, self.prompt.len()] {
            let tokens = || self.prompt[..length].to_vec();
            let expected = self.logits_after(&*merged, tokens(), None).await;
            let found = self.logits_after(&*beside, tokens(), None).await;
            let what = format!("beside the weights, {length} tokens are not as merged into them");
            near(&found, &expected, self.rounding(), &what);
        }
        unload(&*merged).await;
        unload(&*beside).await;
    }
}
