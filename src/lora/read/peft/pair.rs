//! The pair of one module or parameter, checked from the header alone.

use llm_local_core::TensorEntry;

use super::{config::PeftConfig, groups::Group, keys::Part};
use crate::lora::{message::shape_text, outline::ModuleOutline, targets::BaseModules};

/// A whole pair.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    /// The module's path, or the parameter's name.
    pub(super) name: String,
    pub(super) is_parameter: bool,
    pub(super) is_embedding: bool,
    pub(super) a: &'a TensorEntry,
    pub(super) b: &'a TensorEntry,
    pub(super) magnitude: Option<&'a TensorEntry>,
    pub(super) bias: Option<&'a TensorEntry>,
    pub(super) rank: usize,
    pub(super) scale: f64,
    pub(super) experts: Option<usize>,
    pub(super) transposed: bool,
}

/// What a pair belongs to.
#[derive(Debug)]
pub(super) enum Path {
    Module(String),
    Parameter(String),
}

impl<'a> Pair<'a> {
    /// The pair of `path`, if `group` is whole and as `config` says. The error names the tensor, what was expected and what
    /// was found.
    pub(super) fn new(path: Path, group: &Group<'a>, config: &PeftConfig) -> Result<Self, String> {
        let (name, is_parameter) = match path {
            Path::Module(name) => (name, false),
            Path::Parameter(name) => (name, true),
        };
        let is_embedding = [Part::EmbeddingA, Part::EmbeddingB].iter().any(|part| group.contains_key(part));
        let (a, b) = if is_embedding {
            factors(&name, group, Part::EmbeddingA, Part::EmbeddingB)?
        } else {
            factors(&name, group, Part::A, Part::B)?
        };
        if is_embedding && (is_parameter || group.contains_key(&Part::A) || group.contains_key(&Part::B)) {
            return Err(format!("`{}`: `{name}` has `lora_A` and `lora_B`, or is a bare parameter, too", a.name));
        }
        let (rank, scale) = config.rank_and_scale(&name)?;
        let experts = check_rank(&name, a, b, rank, is_parameter, config)?;
        let outputs = b.shape[0];
        let magnitude = vector(group, Part::Magnitude, config.dora, "use_dora", a, outputs)?;
        let bias = vector(group, Part::BiasOfB, config.lora_bias, "lora_bias", a, outputs)?;
        let transposed = if is_embedding {
            // A magnitude goes by the columns of an embedding: it stays as PEFT has it, with the vocabulary as inputs.
            magnitude.is_some()
        } else if experts.is_some() {
            config.experts_by_position
        } else {
            // Heads are linear layers even where the others are not.
            config.fan_in_fan_out && !is_parameter && !BaseModules::is_head(&name)
        };
        Ok(Self { name, is_parameter, is_embedding, a, b, magnitude, bias, rank, scale, experts, transposed })
    }

    /// Whether its factors are exchanged and transposed: an embedding's, unless it has a magnitude.
    pub(super) fn is_turned(&self) -> bool {
        self.is_embedding && !self.transposed
    }

    /// Inputs and outputs.
    pub(super) fn features(&self) -> (usize, usize) {
        let (inputs, outputs) = (self.a.shape[1], self.b.shape[0]);
        if self.is_turned() { (outputs, inputs) } else { (inputs, outputs) }
    }

    /// It without its values.
    pub(super) fn outline(&self) -> ModuleOutline {
        let (in_features, out_features) = self.features();
        ModuleOutline {
            name: self.name.clone(),
            rank: self.rank,
            in_features,
            out_features,
            experts: self.experts,
            transposed: self.transposed,
            is_parameter: self.is_parameter,
            has_magnitude: self.magnitude.is_some(),
            has_bias: self.bias.is_some(),
            scale: self.scale,
            defect: None,
        }
    }

    /// Bytes of memory that its tensors take: magnitude and bias are kept as f32.
    pub(super) fn bytes(&self) -> usize {
        let factors = [self.a, self.b].into_iter().filter_map(TensorEntry::stored_bytes).sum::<usize>();
        let vectors = [self.magnitude, self.bias].into_iter().flatten().map(|entry| entry.shape[0] * 4).sum::<usize>();
        factors + vectors
    }
}

/// Both factors, if they are there and are matrices.
fn factors<'a>(
    module: &str,
    group: &Group<'a>,
    first: Part,
    second: Part,
) -> Result<(&'a TensorEntry, &'a TensorEntry), String> {
    let (a, b) = match (group.get(&first), group.get(&second)) {
        (Some(a), Some(b)) => (*a, *b),
        (Some(one), None) => return Err(missing(module, one, first, second)),
        (None, Some(one)) => return Err(missing(module, one, second, first)),
        (None, None) => {
            let found = group.values().next().map_or("", |entry| &entry.name);
            return Err(format!("`{found}` belongs to the module `{module}`, which has no `lora_A` and `lora_B`"));
        }
    };
    for entry in [a, b] {
        let found = shape_text(&entry.shape);
        match entry.shape.len() {
            2 => {}
            3..=5 => {
                return Err(format!(
                    "`{}` has the shape {found}: LoRA on a convolution is not supported; expected 2 dimensions",
                    entry.name
                ));
            }
            _ => return Err(format!("`{}` has the shape {found}; expected 2 dimensions", entry.name)),
        }
    }
    Ok((a, b))
}

fn missing(module: &str, one: &TensorEntry, has: Part, lacks: Part) -> String {
    let word = |part: Part| part.spelling().split_once('.').map_or(part.spelling(), |(word, _)| word);
    let (has, lacks) = (word(has), word(lacks));
    let missing = one.name.replace(&format!(".{has}"), &format!(".{lacks}"));
    format!("`{missing}` is missing: the module `{module}` has only {has}")
}

/// How many experts the factors are of, if they are of a bare parameter and of several. The error is that they are not of
/// rank `rank`.
///
/// Source: PEFT `src/peft/tuners/lora/layer.py`, `ParamWrapper.update_layer`: A is (experts * r, in) and B is
/// (out, r * experts).
fn check_rank(
    name: &str,
    a: &TensorEntry,
    b: &TensorEntry,
    rank: usize,
    is_parameter: bool,
    config: &PeftConfig,
) -> Result<Option<usize>, String> {
    let found = (a.shape[0], b.shape[1]);
    if found == (rank, rank) {
        return Ok(None);
    }
    if is_parameter && found.0 == found.1 && found.0.is_multiple_of(rank) {
        return Ok(Some(found.0 / rank));
    }
    let said = if config.patterns.rank(name)?.is_some() { "rank_pattern" } else { "r" };
    let (entry, other, found, wanted) = if found.0 == rank || is_parameter && found.0.is_multiple_of(rank) {
        (b, a, found.1, format!("(out, {})", found.0))
    } else {
        (a, b, found.0, format!("({rank}, in)"))
    };
    Err(format!(
        "`{}` has the shape {}, so rank {found}; expected {wanted}, rank {rank}{}, as the config's `{said}` says (`{}` has \
         the shape {})",
        entry.name,
        shape_text(&entry.shape),
        if is_parameter { " times the number of experts" } else { "" },
        other.name,
        shape_text(&other.shape)
    ))
}

/// The vector `part`, which must be there if `field` is set, and only then.
fn vector<'a>(
    group: &Group<'a>,
    part: Part,
    set: bool,
    field: &str,
    a: &TensorEntry,
    outputs: usize,
) -> Result<Option<&'a TensorEntry>, String> {
    let what = part.spelling();
    match (group.get(&part), set) {
        (None, false) => Ok(None),
        (None, true) => Err(format!("`{field}` is set, but there is no `{what}` beside `{}`", a.name)),
        (Some(entry), false) => Err(format!("`{}` is there, but `{field}` is not set in the config", entry.name)),
        (Some(entry), true) if entry.shape == [outputs] => Ok(Some(*entry)),
        (Some(entry), true) => Err(format!(
            "`{}` has the shape {}; expected ({outputs}), one value for each row of B",
            entry.name,
            shape_text(&entry.shape)
        )),
    }
}
