//! A base as an adapter sees it: in the names of the Hugging Face layout, with projections split or fused, and experts
//! stacked, as the adapter has them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use llm_local_core::{
    Encoding, ModelFormat, ModelInfo, TensorEntry,
    model::{BaseTensor, DecoderConfig, Layout, ModuleRole, RowOrder},
};
use serde_json::json;

use super::{experts, tie::Tied};
use crate::lora::outline::AdapterOutline;

/// A base as an adapter sees it.
pub(super) struct View {
    /// The base's description with these tensors, for matching names.
    pub(super) info: ModelInfo,
    tensors: BTreeMap<String, Seen>,
}

/// A tensor that an adapter sees.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) shape: Vec<usize>,
    /// Where its rows are, in their order.
    pub(super) parts: Vec<Part>,
    pub(super) role: Option<ModuleRole>,
}

/// A tensor of the base, or some rows of one, that holds rows of a [`Seen`].
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The tensor's name in the base.
    pub(super) tensor: String,
    pub(super) encoding: Encoding,
    /// Its first row there.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// The order that rows have in GGUF files, where that is another.
    pub(super) order: Option<RowOrder>,
}

impl View {
    /// `info` as `adapter` sees it.
    pub(super) fn new(info: &ModelInfo, tied: Option<&Tied>, adapter: &AdapterOutline) -> Self {
        let roles = Roles::new(info);
        let mut tensors: BTreeMap<String, Seen> =
            info.tensors.iter().map(|entry| roles.seen(entry, &entry.name)).collect();
        if let (Some(tied), Some(entry)) = (tied, tied.and_then(|tied| info.tensor(&tied.embedding))) {
            let (head, mut seen) = (roles.hugging_face(&tied.head), roles.seen(entry, &entry.name).1);
            seen.parts[0].tensor = tied.head.clone();
            seen.role = Some(ModuleRole::Head);
            tensors.entry(head).or_insert(seen);
        }
        if let Ok(decoder) = &info.decoder {
            resplit(&mut tensors, decoder, &adapter_names(adapter));
        }
        experts::rename_routers(&adapter_names(adapter), &mut tensors);
        for module in adapter.modules.iter().filter(|m| m.experts.is_some()) {
            let name = module.weight_name();
            if !tensors.contains_key(&name)
                && let Some(stacked) = experts::stack(&name, &mut tensors)
            {
                tensors.insert(name, stacked);
            }
        }
        let entries: Vec<_> = tensors.iter().map(|(name, seen)| seen.entry(name)).collect();
        let format = match (&info.format, &info.decoder) {
            (ModelFormat::Safetensors { .. }, _) => info.format.clone(),
            // What is asked of a config is the architecture alone.
            (_, Ok(decoder)) => {
                ModelFormat::Safetensors { config: Arc::new(json!({"model_type": decoder.architecture.name()})) }
            }
            _ => info.format.clone(),
        };
        let mut seen = info.clone();
        (seen.format, seen.tensors) = (format, entries.into());
        Self { info: seen, tensors }
    }

    /// The tensor `name`, in the names of the Hugging Face layout.
    pub(super) fn tensor(&self, name: &str) -> Option<&Seen> {
        self.tensors.get(name)
    }
}

impl Seen {
    fn entry(&self, name: &str) -> TensorEntry {
        TensorEntry::new(name, self.shape.clone(), self.parts[0].encoding)
    }

    /// How many rows it has, counted through all dimensions but the last.
    pub(super) fn rows(&self) -> usize {
        row_count(&self.shape)
    }

    /// `rows` rows of it from `first` on, which are in its first part.
    fn slice(&self, first: usize, rows: usize, role: ModuleRole, order: Option<RowOrder>) -> Self {
        let mut part = self.parts[0].clone();
        (part.row, part.rows, part.order) = (part.row + first, rows, order);
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Self { shape, parts: vec![part], role: Some(role) }
    }

    /// Tensors one below another, if they have one width.
    pub(super) fn stack(pieces: &[&Self], shape: Vec<usize>, role: Option<ModuleRole>) -> Option<Self> {
        let is_alike = pieces.iter().all(|piece| piece.shape.get(1..) == pieces[0].shape.get(1..));
        let parts = pieces.iter().flat_map(|piece| piece.parts.clone()).collect();
        is_alike.then_some(Self { shape, parts, role })
    }
}

/// Rows of a tensor of this shape; a vector's are its elements.
pub(super) fn row_count(shape: &[usize]) -> usize {
    match shape {
        [] => 1,
        [elements] => *elements,
        [rows @ .., _] => rows.iter().product(),
    }
}

/// What the description says of the base's tensors.
struct Roles<'a> {
    decoder: Option<&'a DecoderConfig>,
    /// By the name in the base: the name in the Hugging Face layout, and what it is.
    by_name: HashMap<String, (String, BaseTensor)>,
}

impl<'a> Roles<'a> {
    fn new(info: &'a ModelInfo) -> Self {
        let Ok(decoder) = &info.decoder else { return Self { decoder: None, by_name: HashMap::new() } };
        let mut all = decoder.clone();
        // A head that is stored although it is tied has a name too.
        all.tied_embeddings = false;
        let layout = layout(info);
        let (theirs, own) = (all.base_tensors(layout), all.base_tensors(Layout::HuggingFace));
        Self {
            decoder: Some(decoder),
            by_name: theirs.into_iter().zip(own).map(|(t, o)| (t.name, (o.name.clone(), o))).collect(),
        }
    }

    fn hugging_face(&self, name: &str) -> String {
        self.by_name.get(name).map_or_else(|| name.to_owned(), |(name, _)| name.clone())
    }

    fn seen(&self, entry: &TensorEntry, name: &str) -> (String, Seen) {
        let role = self.by_name.get(name).map(|(_, tensor)| tensor.role);
        let order = role.zip(self.decoder).and_then(|(role, decoder)| decoder.gguf_row_order(role));
        let rows = row_count(&entry.shape);
        let part = Part { tensor: name.to_owned(), encoding: entry.encoding, row: 0, rows, order };
        (self.hugging_face(name), Seen { shape: entry.shape.clone(), parts: vec![part], role })
    }
}

/// The layout that `info` names its tensors in.
pub(super) fn layout(info: &ModelInfo) -> Layout {
    if matches!(info.format, ModelFormat::Gguf { .. }) { Layout::Gguf } else { Layout::HuggingFace }
}

/// The modules that `adapter` has parts for.
fn adapter_names(adapter: &AdapterOutline) -> BTreeSet<&str> {
    let tensors = adapter.replacements.iter().map(|r| &r.name).chain(adapter.rows.iter().map(|r| &r.name));
    let module = |name: &'_ String| -> usize { name.rfind('.').unwrap_or(name.len()) };
    adapter.modules.iter().map(|m| m.name.as_str()).chain(tensors.map(|name| &name[..module(name)])).collect()
}

/// The end of a module's name, its role and its rows.
type Projection = (&'static str, ModuleRole, usize);

/// Splits the fused projections of a base whose adapter has split ones, and the other way round.
fn resplit(tensors: &mut BTreeMap<String, Seen>, decoder: &DecoderConfig, adapter: &BTreeSet<&str>) {
    use ModuleRole::{Gate, GateUp, Key, Query, QueryKeyValue, Up, Value};
    let (queries, keys) = (decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim);
    let ffn = decoder.intermediate_size;
    let groups: [(&str, ModuleRole, &[Projection]); 2] = [
        (
            "self_attn.qkv_proj",
            QueryKeyValue,
            &[("self_attn.q_proj", Query, queries), ("self_attn.k_proj", Key, keys), ("self_attn.v_proj", Value, keys)],
        ),
        ("mlp.gate_up_proj", GateUp, &[("mlp.gate_proj", Gate, ffn), ("mlp.up_proj", Up, ffn)]),
    ];
    let has = |last: &str| adapter.iter().any(|name| name.strip_suffix(last).is_some_and(|rest| rest.ends_with('.')));
    for (fused, fused_role, split) in groups {
        let wants_split = split.iter().any(|(name, ..)| has(name)) && !has(fused);
        let wants_fused = has(fused) && !split.iter().any(|(name, ..)| has(name));
        for layer in 0..decoder.layers {
            for suffix in ["weight", "bias"] {
                let name = |module: &str| format!("model.layers.{layer}.{module}.{suffix}");
                if decoder.fused_projections && wants_split {
                    let all: usize = split.iter().map(|(.., rows)| rows).sum();
                    let is_whole = |whole: &Seen| whole.shape.first() == Some(&all);
                    if !tensors.get(&name(fused)).is_some_and(is_whole) {
                        continue;
                    }
                    let Some(whole) = tensors.remove(&name(fused)) else { continue };
                    let mut first = 0;
                    for (module, role, rows) in split {
                        let order = decoder.gguf_row_order(*role);
                        tensors.insert(name(module), whole.slice(first, *rows, *role, order));
                        first += rows;
                    }
                } else if !decoder.fused_projections && wants_fused {
                    let pieces: Option<Vec<_>> = split.iter().map(|(module, ..)| tensors.get(&name(module))).collect();
                    let Some(pieces) = pieces else { continue };
                    let Some(rows) = pieces.iter().map(|piece| piece.shape.first().copied()).sum::<Option<usize>>()
                    else {
                        continue;
                    };
                    let mut shape = pieces[0].shape.clone();
                    shape[0] = rows;
                    let Some(stacked) = Seen::stack(&pieces, shape, Some(fused_role)) else { continue };
                    split.iter().for_each(|(module, ..)| {
                        tensors.remove(&name(module));
                    });
                    tensors.insert(name(fused), stacked);
                }
            }
        }
    }
}
