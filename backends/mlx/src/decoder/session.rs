//! Caches that are saved and restored.

use std::collections::BTreeMap;

use llm_local_backend_common::decoder::{SavedLayer, SavedRows, SessionForm};
use llm_local_core::{Error, Result, SessionState, SessionTensor, TensorData};

use super::{
    Decoder,
    cache::{Cache, KvForm, LayerCache},
};
use crate::{
    arrays::{float_type, from_data, to_bytes},
    errors::generation_error,
};

/// What is written: this backend's name and the version of the form.
const FORMAT: &str = "mlx 1";

impl Decoder {
    /// The rows of every layer that are worth saving, with what [`Decoder::import`] checks.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a quantized cache; else MLX's.
    pub(super) fn export(&self, cache: &Cache) -> Result<(BTreeMap<String, String>, Vec<SessionTensor>)> {
        let failed = |e| generation_error("MLX could not read a KV cache", e);
        let layers = cache.layers.iter().map(|layer| {
            let (first, rows) = layer.saved().map_err(failed)?;
            let Some((keys, values)) = rows else { return Ok(SavedRows { first, rows: 0, data: None }) };
            let data = [to_bytes(&keys).map_err(failed)?, to_bytes(&values).map_err(failed)?];
            Ok(SavedRows { first, rows: cache.tokens - first, data: Some(data) })
        });
        self.form()?.write(cache.tokens, cache.long, layers)
    }

    /// What [`Decoder::export`] gave, after everything in it was compared with what this model would have written.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that says what does not fit; else as [`Decoder::export`].
    pub(super) fn import(&self, state: &SessionState) -> Result<Cache> {
        let form = self.form()?;
        let saved = form.check(state)?;
        let layers = saved.layers.iter().zip(&self.windows).map(|(layer, window)| self.restored(&form, layer, *window));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Cache { layers, tokens: saved.tokens, expected: 0, long: saved.long })
    }

    fn restored(&self, form: &SessionForm<'_>, saved: &SavedLayer<'_>, window: Option<usize>) -> Result<LayerCache> {
        let rows = saved.tensors.map(|tensors| -> Result<_> {
            let [keys, values] = tensors.map(|tensor| {
                // A crafted state may have any number of rows, of which the newest are enough.
                let skipped = saved.from - saved.first;
                let row = form.head_dim * form.dtype.size();
                let head = tensor.shape[1] * row;
                let newest = tensor.data.chunks_exact(head).flat_map(|head| &head[skipped * row..]);
                let shape = [form.kv_heads, tensor.shape[1] - skipped, form.head_dim];
                from_data(&tensor.name, TensorData::Bytes(newest.copied().collect()), &shape, form.dtype)
            });
            Ok((keys?, values?))
        });
        LayerCache::from_rows(window, saved.from, rows.transpose()?)
            .map_err(|e| generation_error("MLX could not restore a KV cache", e))
    }

    fn form(&self) -> Result<SessionForm<'_>> {
        let of = &self.dimensions;
        if let KvForm::Affine { bits, .. } = of.kv {
            return Err(Error::unsupported(
                "saving a session",
                format!(
                    "keys and values of `{}` are kept in {bits} bits, which a saved session has no type for; load it \
                     with kv_cache auto, f32, f16 or bf16",
                    self.supported.id
                ),
            ));
        }
        Ok(SessionForm {
            format: FORMAT,
            windows: &self.windows,
            kv_heads: of.kv_heads,
            head_dim: of.head_dim,
            dtype: float_type(of.kv.dtype(of.activations)),
            context_length: of.context_length,
            vocab_size: self.vocab_size,
            changes: self.rotary.changes(),
        })
    }
}
