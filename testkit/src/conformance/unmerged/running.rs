//! Generations and sessions while sets change.

use llm_local_core::{AdapterSet, GenerateRequest, GenerationEvent, LoadedModel, SessionId};

use super::{Suite, TOKENS, unload};

impl Suite<'_> {
    fn request(&self) -> GenerateRequest {
        GenerateRequest::new(self.prompt.clone()).with_max_tokens(TOKENS).with_ignore_eos(true)
    }

    /// Checks that each token is the best by the logits under `set`, to within the tolerance.
    async fn is_best(&self, model: &dyn LoadedModel, set: &AdapterSet, tokens: &[u32], what: &str) {
        assert_eq!(tokens.len(), TOKENS, "{what}: number of tokens generated");
        let mut sequence = self.prompt.clone();
        for (place, token) in tokens.iter().enumerate() {
            let logits = self.logits_after(model, sequence.clone(), Some(set)).await;
            let best = logits.iter().take(self.case.tokens).copied().fold(f32::NEG_INFINITY, f32::max);
            let of_token = logits.get(*token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            assert!(
                of_token >= best - self.rounding(),
                "{what}: token {place} is {token}, whose logit under the generation's set is {of_token}; the best is {best}"
            );
            sequence.push(*token);
        }
    }

    pub(super) async fn generations(&self) {
        let (base, one) = (AdapterSet::new(), self.one(1.0));
        let model = self.load(&one).await;
        let own = self.complete(&*model, self.request(), "a generation with the adapter of the load").await.tokens;
        self.is_best(&*model, &one, &own, "a generation with the adapter of the load").await;
        let plain = self.request().with_adapters(base.clone());
        let plain = self.complete(&*model, plain, "a generation with the empty set").await.tokens;
        self.is_best(&*model, &base, &plain, "a generation with the empty set").await;
        assert_ne!(own, plain, "the adapter changes none of {TOKENS} greedy tokens; choose another prompt");

        // One runs, and one has not begun.
        let mut running = model.generate(self.request());
        let mut tokens = vec![];
        while tokens.is_empty() {
            match running.next().await {
                Some(Ok(GenerationEvent::Token { id, .. })) => tokens.push(id),
                Some(Ok(GenerationEvent::Text(_))) => {}
                other => panic!("expected a token, found {other:?}"),
            }
        }
        let waiting = model.generate(self.request());
        let named = model.generate(self.request().with_adapters(self.one(0.5)));
        self.set(&*model, base.clone()).await;
        let later = model.generate(self.request());
        let finish = async |generation: llm_local_core::Generation, what: &str| {
            generation.complete().await.unwrap_or_else(|e| panic!("{what} failed: {e}")).tokens
        };
        let what = "a generation that ran when set_adapters replaced the model's own";
        tokens.extend(finish(running, what).await);
        self.is_best(&*model, &one, &tokens, what).await;
        let what = "a generation asked for before set_adapters";
        self.is_best(&*model, &one, &finish(waiting, what).await, what).await;
        let what = "a generation with a set of its own, asked for before set_adapters";
        self.is_best(&*model, &self.one(0.5), &finish(named, what).await, what).await;
        let what = "a generation asked for after set_adapters";
        self.is_best(&*model, &base, &finish(later, what).await, what).await;
        unload(&*model).await;
    }

    /// A cache is of one set.
    pub(super) async fn sessions(&self) {
        let base = AdapterSet::new();
        let renamed = || AdapterSet::new().with(self.scaled(0.5), 1.0);
        let model = self.load(&base).await;
        let session = SessionId::new("conformance");
        let turn = async |named: Option<AdapterSet>, is: &AdapterSet, what: &str| {
            let request = self.request().with_session(session.clone());
            let request = match named {
                Some(set) => request.with_adapters(set),
                None => request,
            };
            let done = self.complete(&*model, request, what).await;
            self.is_best(&*model, is, &done.tokens, what).await;
            done.usage.cached_tokens
        };
        let first = async |named: Option<AdapterSet>, is: &AdapterSet, what: &str| {
            let cached = turn(named, is, what).await;
            assert_eq!(cached, 0, "{what} found {cached} tokens in the cache, which another set has computed");
        };
        first(None, &base, "the first turn of a session").await;
        first(Some(self.one(1.0)), &self.one(1.0), "a turn with an adapter after one of the base").await;
        first(Some(self.one(2.0)), &self.one(2.0), "a turn with another weight").await;
        first(Some(renamed()), &renamed(), "a turn with another adapter by the same name").await;
        let both = self.one(1.0).with(self.scaled(0.5), 1.0);
        first(Some(both.clone()), &both, "a turn with one adapter more").await;
        // What is found now, if anything, is of the same set.
        turn(Some(self.one(1.0)), &self.one(1.0), "a turn with an adapter that was there before").await;
        turn(Some(base.clone()), &base, "a turn with the empty set after adapters").await;
        self.set(&*model, self.one(-1.0)).await;
        first(None, &self.one(-1.0), "a turn after set_adapters").await;
        self.set(&*model, self.one(0.25)).await;
        first(None, &self.one(0.25), "a turn after set_adapters with another weight").await;
        turn(None, &self.one(0.25), "a second turn after set_adapters").await;
        self.set(&*model, base.clone()).await;
        turn(None, &base, "a turn after set_adapters took the adapters away").await;
        turn(Some(self.one(1.0)), &self.one(1.0), "the last turn of a session").await;
        model.end_session(session.clone()).await.unwrap_or_else(|e| panic!("end_session failed: {e}"));
        let held = model.memory().kv_cache;
        assert_eq!(held, 0, "bytes of KV caches after the session was ended, with those of every set");
        unload(&*model).await;
    }
}
