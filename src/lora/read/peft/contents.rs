//! What the tensors of a PEFT file are, told from its header and its config alone.

use std::collections::BTreeMap;

use llm_local_core::{TensorEntry, lora::AdapterFeature};

use super::{
    super::plan,
    config::PeftConfig,
    groups::Groups,
    keys::{self, What},
    pair::Pair,
    parameters,
    rows::{self, Rows},
    saved::{self, Full},
};
use crate::lora::targets::BaseModules;

/// The tensors of a file, each of which is accounted for.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// By the name of what they belong to.
    pub(super) pairs: Vec<Pair<'a>>,
    /// By the name of the base tensor that they replace.
    pub(super) replacements: BTreeMap<String, &'a TensorEntry>,
    /// By the name of the base tensor whose rows they replace.
    pub(super) rows: BTreeMap<String, Rows<'a>>,
    pub(super) features: Vec<AdapterFeature>,
}

impl<'a> Contents<'a> {
    /// Sorts `entries`, which must be what `config` asks for, of one adapter, and nothing else. The error names the tensor or
    /// field, what was expected and what was found.
    pub(super) fn new(entries: &'a [TensorEntry], config: &PeftConfig) -> Result<Self, String> {
        let mut groups = Groups::default();
        let (mut full, mut trained) = (Vec::new(), BTreeMap::new());
        let mut first = None;
        for entry in entries {
            let key = keys::parse(&entry.name).map_err(|reason| format!("the tensor `{}`: {reason}", entry.name))?;
            let (adapter, has_adapter) = (key.adapter, key.belongs_to_an_adapter());
            plan::floats_of(entry)?;
            match key.what {
                What::Part { module, depth, part } => groups.add(module, depth, part, entry)?,
                What::Full { tensor, saved } => full.push(Full { tensor, saved, entry }),
                What::Rows { module } => {
                    if let Some(other) = trained.insert(module, entry) {
                        return Err(format!("`{}` and `{}` are the same rows", other.name, entry.name));
                    }
                }
            }
            if has_adapter {
                check_adapter(&mut first, adapter, entry)?;
            }
        }
        if entries.is_empty() {
            return Err(
                "it holds no tensors; expected `lora_A.weight` and `lora_B.weight` of at least one module".into()
            );
        }
        let mut pairs = Vec::new();
        for (module, levels) in groups.by_module()? {
            for (path, group) in parameters::named(module, levels, config)? {
                pairs.push(Pair::new(path, &group, config)?);
            }
        }
        pairs.sort_by(|x, y| x.name.cmp(&y.name));
        let rows = rows::collect(trained, config)?;
        let replacements = saved::accepted(&full, &pairs, &rows, config)?;
        let features = features(config, &pairs, &full, &rows);
        Ok(Self { pairs, replacements, rows, features })
    }
}

/// Whether a tensor is of the adapter that the `first` of those is that say so.
fn check_adapter<'a>(
    first: &mut Option<(Option<&'a str>, &'a str)>,
    adapter: Option<&'a str>,
    entry: &'a TensorEntry,
) -> Result<(), String> {
    match first {
        None => *first = Some((adapter, &entry.name)),
        Some((other, _)) if *other == adapter => {}
        Some((_, other)) => {
            return Err(format!(
                "`{other}` and `{}` belong to different adapters; expected one adapter in one file",
                entry.name
            ));
        }
    }
    Ok(())
}

/// What the adapter uses beside plain pairs.
fn features(
    config: &PeftConfig,
    pairs: &[Pair<'_>],
    full: &[Full<'_>],
    rows: &BTreeMap<String, Rows<'_>>,
) -> Vec<AdapterFeature> {
    use AdapterFeature as F;
    let any = |is: fn(&Pair<'_>) -> bool| pairs.iter().any(is);
    let biases = full.iter().filter(|tensor| saved::is_trained_bias(tensor, config)).count();
    let layers = full.iter().filter(|tensor| tensor.saved == keys::Saved::BaseLayer && !tensor.is_bias()).count();
    let mut features: Vec<_> = [
        (config.rank_stabilized, F::RankStabilized),
        (config.patterns.has_ranks(), F::RankPattern),
        (config.patterns.has_alphas(), F::AlphaPattern),
        (any(|pair| pair.magnitude.is_some()), F::Dora),
        (any(|pair| pair.bias.is_some()), F::LoraBias),
        (biases > 0, F::TrainedBias),
        (full.len() > biases + layers, F::ModulesToSave),
        (any(|pair| pair.is_embedding), F::Embedding),
        (config.fan_in_fan_out, F::FanInFanOut),
        (any(|pair| pair.is_parameter), F::TargetParameters),
        (any(|pair| pair.experts.is_some()), F::Experts),
        (!rows.is_empty(), F::TrainableTokens),
        (config.ensure_weight_tying, F::WeightTying),
    ]
    .into_iter()
    .filter_map(|(uses, feature)| uses.then_some(feature))
    .collect();
    features.sort();
    features
}

/// Whether the module is one of those that PEFT saves in full when the vocabulary was resized: the embedding or the head.
pub(super) fn is_vocabulary(module: &str) -> bool {
    BaseModules::is_embedding(module) || BaseModules::is_head(module)
}
