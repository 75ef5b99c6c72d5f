//! Other adapters in the weights of a loaded model: what the ones before touched and the new ones touch is read anew from the
//! base, with the new ones merged in. Nothing is subtracted, so nothing drifts.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::FutureExt;
use llm_local_core::{AdapterSet, Allowance, Error, LoadedModel, ModelInfo, Result, TensorSource};
use llm_local_weights::Checkpoint;

use super::{Free, OwnSet, Sets, lock, names, room};
use crate::{blocking::blocking, engine::identity::Identity, lora::MergedSource};

/// The base with a set of adapters merged in, of which no weight was read yet.
#[derive(Clone)]
struct Merged {
    tensors: Arc<dyn TensorSource>,
    info: Arc<ModelInfo>,
    /// The names of the tensors that the adapters touch.
    touched: Vec<String>,
    /// The first of these that the base has quantized.
    quantized: Option<String>,
}

impl Sets {
    /// Merges `set` into the weights of `loaded` in place of what is merged there; `allow` is what is let pass of each
    /// adapter, and `new` says what the set is.
    ///
    /// # Errors
    /// [`Error::AdapterMergeFailed`] with nothing changed; [`Error::ModelNotLoaded`].
    pub(super) async fn merge(
        &self,
        loaded: &Arc<dyn LoadedModel>,
        base: &Arc<Identity>,
        (set, allow): (AdapterSet, Vec<BTreeSet<Allowance>>),
        new: &OwnSet,
        free: &Free<'_>,
    ) -> Result<()> {
        let of_set = names(set.adapters.iter().map(|(adapter, _)| &adapter.reference));
        let of_adapters = |error: Error, of_set: &str| match error {
            error @ Error::ModelNotLoaded { .. } => error,
            error => error.into_adapter(of_set),
        };
        let merged = open(base.clone(), set, allow).await.map_err(|error| of_adapters(error, &of_set))?;
        loop {
            let line = self.own();
            // What it was before is settled first: of a change that failed nothing was touched.
            let before = line.settled().await;
            if before.is_of(new) {
                let mut own = lock(&self.own);
                if Arc::ptr_eq(&own, &line) {
                    *own = Arc::new(new.as_is(&before));
                    return Ok(());
                }
                continue;
            }
            let mut touched: BTreeSet<String> = before.touched().iter().cloned().collect();
            touched.extend(merged.touched.iter().cloned());
            self.way.check_merged(merged.quantized.as_deref(), || of_set.clone())?;
            room::check(&merged.info, &touched, &loaded.info(), free, &of_set)?;
            let (loaded, of_set, Merged { tensors, info, touched: of_new, .. }) =
                (loaded.clone(), of_set.clone(), merged.clone());
            let change = async move {
                let replaced = loaded.replace_tensors(tensors, info, touched.into_iter().collect()).await;
                replaced.map_err(|error| of_adapters(error, &of_set))
            };
            let change = change.boxed().shared();
            {
                let mut own = lock(&self.own);
                if !Arc::ptr_eq(&own, &line) {
                    // Another change came before this one.
                    continue;
                }
                // The first poll puts it in line, at the place where requests see the new set from now on.
                let _ = change.clone().now_or_never();
                *own = Arc::new(new.touching(of_new).after(change.clone(), &own));
            }
            // The source goes with the change, before the heap is given back behind it.
            drop(merged);
            return change.await;
        }
    }
}

/// Opens the files of `base` anew, with `set` merged in. They were mapped only while they were read: what is mapped counts as
/// memory of the process.
async fn open(base: Arc<Identity>, set: AdapterSet, allow: Vec<BTreeSet<Allowance>>) -> Result<Merged> {
    blocking("merge", move || {
        let Checkpoint { tensors, info, .. } = base.open_again()?;
        if set.is_empty() {
            return Ok(Merged { tensors, info, touched: Vec::new(), quantized: None });
        }
        let merged = MergedSource::allowing(tensors, set.adapters, &allow, &info)?;
        let touched = merged.report().touched.iter().map(|touched| touched.name.clone()).collect();
        let quantized = merged.report().quantized().map(|touched| touched.name.clone());
        Ok(Merged { info: merged.info().clone(), tensors: Arc::new(merged), touched, quantized })
    })
    .await
}
