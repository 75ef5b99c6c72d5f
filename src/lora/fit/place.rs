//! Where the parts of an adapter go in a base, and why one does not.

use std::collections::BTreeMap;

use llm_local_core::{
    Encoding, ModelInfo,
    model::{Layout, ModuleRole},
};

use super::{
    change::{Change, Placement, Term, TermKind},
    view::{Part, Seen, View, layout},
};
use crate::lora::{
    message::shape_text,
    outline::{AdapterOutline, ModuleOutline, ReplacementOutline, RowsOutline},
    targets::BaseModules,
};

/// One adapter on its way to the tensors of a base.
pub(super) struct Placing<'a> {
    pub(super) info: &'a ModelInfo,
    pub(super) view: &'a View,
    pub(super) adapter: &'a AdapterOutline,
    /// Its index, and its weight.
    pub(super) index: usize,
    pub(super) weight: f32,
    /// Rows of the embedding and the head once replaced, where those are more than the base's.
    pub(super) vocabulary: Option<usize>,
}

/// Terms by the name of their tensor.
pub(super) type Placed = Vec<(Part, Term)>;

/// Why a part of an adapter does not go into a base.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Misfit {
    pub(super) reason: String,
    pub(super) kind: MisfitKind,
}

/// What keeps it from there.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::lora) enum MisfitKind {
    /// The base has no tensor for it.
    Unused,
    /// Its tensors would have to have these shapes, by the last part of their names: `lora_A`, `lora_B`, or nothing for a
    /// tensor that has its own name.
    Misshaped(Vec<(&'static str, Vec<usize>)>),
    /// Something else.
    Other,
}

impl From<String> for Misfit {
    fn from(reason: String) -> Self {
        Self { reason, kind: MisfitKind::Other }
    }
}

impl Misfit {
    fn unused(reason: String) -> Self {
        Self { reason, kind: MisfitKind::Unused }
    }

    fn misshaped(reason: String, expected: Vec<(&'static str, Vec<usize>)>) -> Self {
        Self { reason, kind: MisfitKind::Misshaped(expected) }
    }
}

impl Placing<'_> {
    /// The terms of a module's pair, and of its bias.
    pub(super) fn module(&self, index: usize, module: &ModuleOutline) -> Result<Placed, Misfit> {
        let ModuleOutline { name, scale, .. } = module;
        if let Some(defect) = module.defect {
            return Err(format!("`{name}` {defect}").into());
        }
        if !scale.is_finite() || *scale == 0.0 {
            return Err(format!("`{name}` has the scale {scale}; expected a finite number other than 0").into());
        }
        if module.experts.is_some() && (module.has_magnitude || module.has_bias) {
            return Err(format!(
                "`{name}` has a magnitude (DoRA) or a bias of lora_B, which pairs of experts cannot have"
            )
            .into());
        }
        let weight = module.weight_name();
        let Some(seen) = self.view.tensor(&weight) else {
            let hint = if BaseModules::is_head(name) {
                ": neither it nor an embedding that it is known to be tied to"
            } else {
                "; was the adapter trained on another base?"
            };
            return Err(Misfit::unused(format!(
                "`{name}.lora_A` and `.lora_B` belong to the tensor `{weight}`, which `{}` does not have{hint}",
                self.info.id
            )));
        };
        floats(seen, &weight)?;
        let transposed = self.orientation(module, &weight, seen)?;
        let kind = TermKind::Pair { module: index, transposed };
        let mut placed = match (transposed, &seen.parts[..]) {
            (false, _) => self.place(seen, &weight, module.experts.unwrap_or(1) * module.out_features, kind)?,
            (true, [part]) if part.rows == seen.rows() && part.row == 0 => {
                let rows = Placement::whole(part.rows);
                vec![(part.clone(), Term { adapter: self.index, kind, rows })]
            }
            (true, _) => {
                return Err(format!("`{name}` is of a transposed weight that the base stores in pieces").into());
            }
        };
        if module.has_bias {
            placed.extend(self.bias(module, index)?);
        }
        Ok(placed)
    }

    fn bias(&self, module: &ModuleOutline, index: usize) -> Result<Placed, Misfit> {
        let (name, out) = (format!("{}.bias", module.name), module.out_features);
        let seen = self.view.tensor(&name).filter(|_| !module.is_parameter).ok_or_else(|| {
            format!(
                "`{}` has a bias of lora_B (`lora_bias`), which is merged into the tensor `{name}`, and `{}` does not \
                 have one",
                module.name, self.info.id
            )
        })?;
        floats(seen, &name)?;
        if seen.shape != [out] {
            let reason = format!(
                "`{}.lora_B.bias` has the shape ({out}); expected {}, since the base tensor `{name}` has it",
                module.name,
                shape_text(&seen.shape)
            );
            return Err(Misfit::misshaped(reason, vec![("lora_B.bias", seen.shape.clone())]));
        }
        self.place(seen, &name, out, TermKind::PairBias { module: index })
    }

    /// The terms of a replaced tensor.
    pub(super) fn replacement(&self, index: usize, replacement: &ReplacementOutline) -> Result<Placed, Misfit> {
        let ReplacementOutline { name, shape } = replacement;
        let seen = self.replaced(name)?;
        let grown = self.grown(name, seen);
        let expected = grown.as_ref().unwrap_or(&seen.shape);
        if shape != expected {
            let rows = match (self.role(name, seen), shape.first(), expected.first()) {
                (Some(_), Some(found), Some(rows)) if found < rows => {
                    "; rows of a vocabulary cannot be taken away, and the embedding and the head must have as many"
                }
                _ => "",
            };
            let reason = format!(
                "it replaces `{name}` by a tensor of the shape {}; expected {}, as the base has it{rows}",
                shape_text(shape),
                shape_text(expected),
            );
            return Err(Misfit::misshaped(reason, vec![("", expected.clone())]));
        }
        if grown.is_some() && self.weight != 1.0 {
            return Err(format!(
                "it gives `{name}` new rows, and its weight is {}; they have nothing to be mixed with, so that only 1 \
                 is possible",
                self.weight
            )
            .into());
        }
        let is_norm = |role: ModuleRole| {
            use ModuleRole as R;
            let before = matches!(role, R::AttentionNorm | R::MlpNorm | R::QueryNorm | R::KeyNorm);
            before || matches!(role, R::PostAttentionNorm | R::PostMlpNorm | R::FinalNorm)
        };
        let offset = match (&self.info.decoder, seen.role) {
            (Ok(decoder), Some(role)) if is_norm(role) => {
                let of = |layout| decoder.architecture.norm_offset(layout);
                (of(self.adapter.row_order) - of(layout(self.info))) as f32
            }
            _ => 0.0,
        };
        let rows = super::view::row_count(shape);
        self.place(seen, name, rows, TermKind::Replacement { index, offset })
    }

    /// The terms of replaced rows.
    pub(super) fn rows(&self, index: usize, replaced: &RowsOutline) -> Result<Placed, Misfit> {
        let RowsOutline { name, rows, columns } = replaced;
        let seen = self.replaced(name)?;
        let shape = self.grown(name, seen).unwrap_or_else(|| seen.shape.clone());
        let [available, width] = shape[..] else {
            return Err(format!(
                "it replaces rows of `{name}`, which has the shape {} and no rows",
                shape_text(&shape)
            )
            .into());
        };
        if width != *columns {
            let reason = format!("it replaces rows of `{name}` by rows of {columns} values; expected {width}");
            return Err(Misfit::misshaped(reason, vec![("", vec![rows.len(), width])]));
        }
        if let Some(row) = rows.iter().find(|row| **row >= available) {
            return Err(format!("it replaces row {row} of `{name}`, which has {available}").into());
        }
        let placed = self.place(seen, name, available, TermKind::Rows { index })?;
        let is_hit = |(_, term): &(Part, Term)| {
            let place = term.rows;
            rows.iter().any(|row| (place.source..place.source + place.rows).contains(row))
        };
        Ok(placed.into_iter().filter(is_hit).collect())
    }

    fn replaced(&self, name: &str) -> Result<&Seen, Misfit> {
        let seen = self.view.tensor(name).ok_or_else(|| {
            Misfit::unused(format!(
                "it replaces the tensor `{name}`, which `{}` does not have; was the adapter trained on another base, \
                 or for another task?",
                self.info.id
            ))
        })?;
        floats(seen, name)?;
        if self.info.decoder.is_err() && self.role(name, seen).is_some() && !self.ties_are_told() {
            return Err(format!(
                "it replaces `{name}`, and whether `{}` ties its head to its embedding cannot be told; \
                 `tie_word_embeddings` in its config.json would",
                self.info.id
            )
            .into());
        }
        Ok(seen)
    }

    /// Whether a base that is not described has two tensors, or says in a way that is understood that it has one.
    fn ties_are_told(&self) -> bool {
        use llm_local_core::ModelFormat::Safetensors;
        let told = match &self.info.format {
            Safetensors { config } => config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool),
            _ => None,
        };
        told == Some(false) || super::tie::Tied::of(self.info).is_some()
    }

    /// Whether the tensor is the embedding or the head.
    fn role(&self, name: &str, seen: &Seen) -> Option<ModuleRole> {
        let module = name.strip_suffix(".weight")?;
        match (&self.info.decoder, seen.role) {
            (Ok(_), role) => role.filter(|role| matches!(role, ModuleRole::Embedding | ModuleRole::Head)),
            (Err(_), _) if BaseModules::is_embedding(module) => Some(ModuleRole::Embedding),
            (Err(_), _) => BaseModules::is_head(module).then_some(ModuleRole::Head),
        }
    }

    /// The shape of the embedding or the head with its new rows.
    fn grown(&self, name: &str, seen: &Seen) -> Option<Vec<usize>> {
        let rows = self.vocabulary?;
        self.role(name, seen)?;
        let mut shape = seen.shape.clone();
        *shape.first_mut()? = rows;
        Some(shape)
    }

    /// Whether the base's tensor is transposed against the module; the error is that they do not fit.
    fn orientation(&self, module: &ModuleOutline, weight: &str, seen: &Seen) -> Result<bool, Misfit> {
        let ModuleOutline { name, rank, in_features, out_features, experts, .. } = module;
        let grown = self.grown(weight, seen);
        let shape = match &grown {
            // A pair trained on the base's own vocabulary leaves the new rows as they are.
            Some(grown) if grown[0] == *out_features => grown,
            _ => &seen.shape,
        };
        let (rows, columns) = match (experts, &shape[..]) {
            (None, [rows, columns]) => (*rows, *columns),
            (Some(experts), [found, rows, columns]) if experts == found => (*rows, *columns),
            (None, shape) => {
                return Err(format!(
                    "the base tensor `{weight}` has the shape {}; LoRA needs a matrix (out, in)",
                    shape_text(shape)
                )
                .into());
            }
            (Some(experts), shape) => {
                let reason = format!(
                    "the base tensor `{weight}` has the shape {}; the pairs of `{name}` need ({experts}, out, in)",
                    shape_text(shape)
                );
                let [found, rows, columns] = *shape else { return Err(reason.into()) };
                let (rows, columns) = if module.transposed { (columns, rows) } else { (rows, columns) };
                let expected = vec![("lora_A", vec![found, *rank, columns]), ("lora_B", vec![found, rows, *rank])];
                return Err(Misfit::misshaped(reason, expected));
            }
        };
        let direct = (*out_features, *in_features) == (rows, columns);
        let turned = (*in_features, *out_features) == (rows, columns);
        let plain_name = weight.strip_suffix(".weight").unwrap_or(weight);
        let is_turned = if experts.is_some() {
            turned && (module.transposed || !direct || stores_experts_transposed(self.info))
        } else if BaseModules::is_embedding(plain_name) {
            // `fan_in_fan_out` is not of embeddings; a reader sets it where the magnitude is of columns.
            turned && module.transposed
        } else if stores_transposed(self.info, plain_name) {
            // Inputs and outputs are the module's: the base alone says how its weight lies.
            if !turned {
                let factors = vec![("lora_A", vec![*rank, rows]), ("lora_B", vec![columns, *rank])];
                let reason = format!(
                    "`{name}` has {in_features} inputs and {out_features} outputs; the base tensor `{weight}`, which is \
                     stored as (in, out), has the shape {}",
                    shape_text(shape)
                );
                return Err(Misfit::misshaped(reason, factors));
            }
            true
        } else {
            // PEFT ignores `fan_in_fan_out` on `nn.Linear`, which every projection of a described decoder is, and every head.
            let can_be = module.transposed && self.info.decoder.is_err() && !BaseModules::is_head(plain_name);
            if can_be && turned && direct {
                return Err(format!(
                    "`{weight}` is square, and the adapter says that it is stored as (in, out) (`fan_in_fan_out`), which \
                     PEFT follows only where a model does that (Conv1D, as in GPT-2), and whether `{}` does is not known; \
                     if its layers are linear, set `fan_in_fan_out` to false",
                    self.info.id
                )
                .into());
            }
            can_be && turned
        };
        if direct || is_turned {
            return Ok(is_turned);
        }
        let hint = if turned { ", which would fit transposed: is it of a layout with (in, out) weights?" } else { "" };
        let (factor, found, expected) = if *in_features != columns {
            ("lora_A", [*rank, *in_features], [*rank, columns])
        } else {
            ("lora_B", [*out_features, *rank], [rows, *rank])
        };
        let reason = format!(
            "`{name}.{factor}` has the shape {}{hint}; expected {}, since the base tensor `{weight}` has the shape {}",
            shape_text(&found),
            shape_text(&expected),
            shape_text(shape)
        );
        let stacked = |shape: [usize; 2]| experts.iter().copied().chain(shape).collect::<Vec<_>>();
        let factors = vec![("lora_A", stacked([*rank, columns])), ("lora_B", stacked([rows, *rank]))];
        Err(Misfit::misshaped(reason, factors))
    }

    /// One term for each part of `seen`, for `rows` rows of the adapter.
    fn place(&self, seen: &Seen, name: &str, rows: usize, kind: TermKind) -> Result<Placed, Misfit> {
        let base = layout(self.info);
        if self.adapter.row_order == Layout::Gguf && self.info.decoder.is_err() {
            let last = name.rsplit('.').nth(1).unwrap_or(name);
            if ["q_proj", "k_proj"].contains(&last) {
                return Err(format!(
                    "the rows of `{name}` are in the order of GGUF files, and how many heads `{}` has is not known",
                    self.info.id
                )
                .into());
            }
        }
        let mut source = 0;
        let mut placed = Vec::with_capacity(seen.parts.len());
        for part in &seen.parts {
            // Where a vocabulary grows, the one part does.
            let rows = if seen.parts.len() == 1 { rows } else { part.rows };
            if let Some(order) = part.order
                && (0..rows).any(|row| order.original(row) >= rows || order.stored(row) >= rows)
            {
                return Err(
                    format!("the {rows} rows of `{name}` are not whole heads, as its description has them").into()
                );
            }
            let order =
                part.order.filter(|_| self.adapter.row_order != base).map(|order| (order, base == Layout::Gguf));
            let rows = Placement { first: part.row, rows, source, order };
            source += rows.rows;
            placed.push((part.clone(), Term { adapter: self.index, kind, rows }));
        }
        Ok(placed)
    }
}

/// Adds `placed` to `changes`. `seen_as` gives the base tensor's shape.
pub(super) fn collect(
    changes: &mut BTreeMap<String, Change>,
    placed: Placed,
    shape_of: impl Fn(&str) -> Option<Vec<usize>>,
    grown: impl Fn(&str) -> Option<usize>,
) {
    for (part, term) in placed {
        let Some(base_shape) = shape_of(&part.tensor) else { continue };
        let fresh = || {
            let mut shape = base_shape.clone();
            if let Some(rows) = grown(&part.tensor) {
                shape[0] = rows;
            }
            let name = part.tensor.clone();
            Change { from: name.clone(), name, base_shape, shape, stored: part.encoding, terms: Vec::new() }
        };
        changes.entry(part.tensor.clone()).or_insert_with(fresh).terms.push(term);
    }
}

/// Checks that the tensor stands for floats, stored as such or quantized.
fn floats(seen: &Seen, name: &str) -> Result<(), String> {
    if seen.parts.is_empty() {
        return Err(format!("the base tensor `{name}` is empty"));
    }
    match seen.parts.iter().find(|part| matches!(part.encoding, Encoding::Int(_))) {
        Some(Part { tensor, encoding, .. }) => {
            Err(format!("the base stores `{tensor}` as {encoding}; adapters are of floats"))
        }
        None => Ok(()),
    }
}

/// Models whose experts' weights are (experts, in, out): `is_transposed` in transformers' `modeling_*.py`, and Llama 4's.
const EXPERTS_IN_OUT: &[&str] = &["gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter"];

/// Models whose linear layers are transformers' `Conv1D`, and the last segments of those layers' paths.
const CONV1D: (&[&str], &[&str]) =
    (&["gpt2", "openai-gpt", "decision_transformer", "imagegpt"], &["c_attn", "q_attn", "c_proj", "c_fc"]);

fn is_of_type(info: &ModelInfo, types: &[&str]) -> bool {
    let llm_local_core::ModelFormat::Safetensors { config } = &info.format else { return false };
    config.get("model_type").and_then(serde_json::Value::as_str).is_some_and(|own| types.contains(&own))
}

fn stores_experts_transposed(info: &ModelInfo) -> bool {
    is_of_type(info, EXPERTS_IN_OUT)
}

/// Whether the weight of the module is (in, out).
fn stores_transposed(info: &ModelInfo, module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    is_of_type(info, CONV1D.0) && CONV1D.1.contains(&last)
}
