//! Caches that are cut, copied, saved and restored.

use std::collections::BTreeMap;

use candle_core::Tensor;
use llm_local_backend_common::decoder::{SavedCache, SavedLayer, SavedRows, SessionForm};
use llm_local_core::{Result, SessionState, SessionTensor};

use super::{
    Decoder,
    cache::{Cache, LayerCache},
};
use crate::{
    elements::{float_type, little_endian},
    errors::generation_error,
};

/// What is written: this backend's name and the version of the form.
const FORMAT: &str = "candle 1";

impl Cache {
    /// Forgets all but the first `tokens` tokens. `false`, with nothing changed, if a window has left behind what the
    /// next token sees.
    pub(super) fn truncate(&mut self, tokens: usize) -> bool {
        if tokens >= self.tokens {
            return tokens == self.tokens;
        }
        if !self.layers.iter().all(|layer| layer.reaches(tokens)) {
            return false;
        }
        self.layers.iter_mut().for_each(|layer| layer.truncate(tokens));
        self.tokens = tokens;
        self.expected = 0;
        true
    }

    /// One of its own with the same content.
    pub(super) fn copied(&self) -> candle_core::Result<Self> {
        Ok(Self {
            layers: self.layers.iter().map(LayerCache::copied).collect::<candle_core::Result<_>>()?,
            tokens: self.tokens,
            expected: self.expected,
            long: self.long,
        })
    }
}

impl Decoder {
    fn session_form(&self) -> SessionForm<'_> {
        SessionForm {
            format: FORMAT,
            windows: &self.windows,
            kv_heads: self.dimensions.kv_heads,
            head_dim: self.dimensions.head_dim,
            dtype: float_type(self.dtype()),
            context_length: self.dimensions.context_length,
            vocab_size: self.vocab_size,
            changes: self.rotary.changes(),
        }
    }

    /// The rows of every layer that are worth saving, with what [`Decoder::import`] checks.
    pub(super) fn export(&self, cache: &Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        let rows = |layer: &LayerCache| -> candle_core::Result<_> {
            let (first, rows) = layer.saved()?;
            Ok(match rows {
                Some((keys, values)) => {
                    let data = Some([little_endian(&keys)?, little_endian(&values)?]);
                    SavedRows { first, rows: keys.dim(1)?, data }
                }
                None => SavedRows { first, rows: 0, data: None },
            })
        };
        let failed = |e| generation_error("candle could not read a KV cache", e);
        let layers = cache.layers.iter().map(|layer| rows(layer).map_err(failed));
        self.session_form().write(cache.tokens, cache.long, layers)
    }

    /// What [`Decoder::export`] gave, after everything in it was compared with what this model would have written.
    pub(super) fn import(&self, state: &SessionState) -> Result<Cache> {
        let SavedCache { tokens, long, layers } = self.session_form().check(state)?;
        let failed = |e| generation_error("candle could not restore a KV cache", e);
        let restored =
            |(layer, window): (&SavedLayer<'_>, &Option<usize>)| self.restored(layer, *window, tokens).map_err(failed);
        let layers = layers.iter().zip(&self.windows).map(restored).collect::<Result<_>>()?;
        Ok(Cache { layers, tokens, expected: 0, long })
    }

    fn restored(
        &self,
        layer: &SavedLayer<'_>,
        window: Option<usize>,
        tokens: usize,
    ) -> candle_core::Result<LayerCache> {
        let rows = |t: &SessionTensor| {
            let all = Tensor::from_raw_buffer(&t.data, self.dtype(), &t.shape, self.device())?;
            all.narrow(1, layer.from - layer.first, tokens - layer.from)
        };
        let rows = layer.tensors.map(|[keys, values]| candle_core::Result::Ok((rows(keys)?, rows(values)?)));
        LayerCache::from_rows(window, layer.from, rows.transpose()?.as_ref())
    }
}
