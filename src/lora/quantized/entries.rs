//! The tensors that a merged base says it has.

use std::collections::{HashMap, HashSet};

use llm_local_core::{Encoding, TensorEntry};

use super::Given;
use crate::lora::fit::TouchedTensor;

/// `base` with the tensors that are `touched` as they are given, and their parts; `None` if it is the same.
pub(in crate::lora) fn merged_entries(
    base: &[TensorEntry],
    touched: &[TouchedTensor],
    given: Given,
) -> Option<Vec<TensorEntry>> {
    let by_name: HashMap<_, _> = base.iter().enumerate().map(|(at, entry)| (entry.name.as_str(), at)).collect();
    let is_own = |touched: &TouchedTensor| {
        let own = by_name.get(touched.name.as_str()).map(|at| &base[*at]);
        own.is_some_and(|own| own.shape == touched.shape && own.encoding == given.of(touched, false))
    };
    if touched.iter().all(is_own) {
        return None;
    }
    let mut entries = base.to_vec();
    let mut gone = HashSet::new();
    for touched in touched {
        let Some(&at) = by_name.get(touched.name.as_str()) else {
            let encoding = given.of(touched, true);
            entries.push(TensorEntry::new(touched.name.clone(), touched.shape.clone(), encoding));
            continue;
        };
        let encoding = given.of(touched, false);
        (entries[at].shape, entries[at].encoding) = (touched.shape.clone(), encoding);
        if let Encoding::MlxAffine { group_size, .. } = encoding {
            let mut shape = touched.shape.clone();
            shape.iter_mut().last().into_iter().for_each(|columns| *columns /= group_size as usize);
            for part in base[at].parts.iter().filter_map(|part| by_name.get(part.as_str())) {
                entries[*part].shape.clone_from(&shape);
            }
        } else {
            gone.extend(std::mem::take(&mut entries[at].parts));
        }
    }
    entries.retain(|entry| !gone.contains(&entry.name));
    Some(entries)
}
