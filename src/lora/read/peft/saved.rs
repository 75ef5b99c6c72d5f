//! Tensors that are saved in full: `modules_to_save`, trained biases, and embeddings and heads beside what was trained of
//! them, or whose vocabulary was resized.
//!
//! Source: PEFT `src/peft/utils/save_and_load.py`, `get_peft_model_state_dict`, and `src/peft/tuners/tuners_utils.py`,
//! `_get_learnable_bias_state_dict`.

use std::{borrow::Cow, collections::BTreeMap};

use llm_local_core::TensorEntry;

use super::{
    config::{PeftConfig, TrainedBias},
    contents::is_vocabulary,
    keys::{FULL, Saved},
    pair::Pair,
    rows::Rows,
};
use crate::lora::message::some_of;

/// Names that PEFT adds to `modules_to_save` for tasks with a new head, whether the model has them or not.
const ADDED_HEADS: &[&str] = &["classifier", "score"];

/// A tensor that is saved in full.
#[derive(Debug)]
pub(super) struct Full<'a> {
    /// The base tensor's name.
    pub(super) tensor: Cow<'a, str>,
    pub(super) saved: Saved,
    pub(super) entry: &'a TensorEntry,
}

impl Full<'_> {
    /// The path of the module and the name of the tensor in it.
    fn split(&self) -> (&str, &str) {
        self.tensor.rsplit_once('.').unwrap_or(("", &self.tensor))
    }

    /// Whether it is a bias, as far as its name tells.
    pub(super) fn is_bias(&self) -> bool {
        self.split().1 == "bias"
    }

    /// Whether it belongs to a module of `modules_to_save`, whose end PEFT compares without regard to segments.
    fn is_of(&self, name: &str) -> bool {
        match self.saved {
            Saved::BaseLayer => false,
            Saved::ModulesToSave(length) => self.tensor[..length].ends_with(name),
            Saved::Plain => self.tensor.match_indices('.').any(|(end, _)| self.tensor[..end].ends_with(name)),
        }
    }
}

/// Whether the tensor is a bias that was trained on its own.
pub(super) fn is_trained_bias(tensor: &Full<'_>, config: &PeftConfig) -> bool {
    config.bias != TrainedBias::None
        && tensor.is_bias()
        && !config.modules_to_save.iter().any(|name| tensor.is_of(name))
}

/// The tensors of `full` by the name of the base tensor, if `config` accounts for each, and each of `modules_to_save` is
/// there. The error names the tensor or field.
pub(super) fn accepted<'a>(
    full: &[Full<'a>],
    pairs: &[Pair<'_>],
    rows: &BTreeMap<String, Rows<'_>>,
    config: &PeftConfig,
) -> Result<BTreeMap<String, &'a TensorEntry>, String> {
    let mut accepted = BTreeMap::new();
    for tensor in full {
        if let Some(reason) = unaccounted(tensor, pairs, rows, config) {
            return Err(format!("the tensor `{}`: {reason}", tensor.entry.name));
        }
        if let Some(other) = accepted.insert(tensor.tensor.clone().into_owned(), tensor.entry) {
            return Err(format!("`{}` and `{}` are the same tensor of the base", other.name, tensor.entry.name));
        }
    }
    let lacking = config.modules_to_save.iter().filter(|name| {
        let need_not = config.adds_heads && ADDED_HEADS.contains(&name.as_str());
        !need_not && !full.iter().any(|tensor| tensor.is_of(name))
    });
    let lacking: Vec<_> = lacking.collect();
    if !lacking.is_empty() {
        return Err(format!("`modules_to_save` names {}, and there is no tensor of it", some_of(&lacking)));
    }
    Ok(accepted)
}

/// Why nothing in `config` accounts for the tensor, if that is so.
fn unaccounted(
    tensor: &Full<'_>,
    pairs: &[Pair<'_>],
    rows: &BTreeMap<String, Rows<'_>>,
    config: &PeftConfig,
) -> Option<String> {
    let (module, name) = tensor.split();
    let pair = pairs.iter().find(|pair| pair.name == module && !pair.is_parameter);
    let declared = config.modules_to_save.iter().any(|name| tensor.is_of(name));
    let trained = match config.bias {
        TrainedBias::None => false,
        TrainedBias::All => tensor.is_bias(),
        TrainedBias::OfPairs => tensor.is_bias() && pair.is_some(),
    };
    let is_vocabulary = is_vocabulary(module) && matches!(name, "weight" | "bias");
    let accounted = match tensor.saved {
        Saved::ModulesToSave(_) => declared,
        Saved::Plain => declared || trained || is_vocabulary,
        Saved::BaseLayer => {
            let beside = pair.is_some_and(|pair| pair.is_embedding || is_vocabulary)
                || rows.values().any(|rows| rows.module == module);
            trained || beside && matches!(name, "weight" | "bias")
        }
    };
    if accounted {
        return None;
    }
    Some(match tensor.saved {
        Saved::ModulesToSave(length) => format!(
            "it is a full weight of `{}`, which `modules_to_save` does not name; it names {}",
            &tensor.tensor[..length],
            if config.modules_to_save.is_empty() { "nothing".into() } else { some_of(&config.modules_to_save) }
        ),
        Saved::BaseLayer => format!(
            "it is a tensor of the base layer of `{module}`; expected one only of an embedding or a head that is trained in \
             part, or a bias where `bias` is not \"none\""
        ),
        Saved::Plain if tensor.is_bias() => {
            "it is a bias, and neither `bias` nor `modules_to_save` in the config accounts for it".into()
        }
        Saved::Plain if name == "weight" => {
            format!("it is {FULL}; expected one only where `modules_to_save` names its module")
        }
        Saved::Plain => {
            "it is neither `lora_A.weight` nor `lora_B.weight` of a module, nor does `modules_to_save` name \
                         its module"
                .into()
        }
    })
}
