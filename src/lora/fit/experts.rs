//! Experts that a base stores one by one, as an adapter sees them: stacked.

use std::collections::{BTreeMap, BTreeSet};

use super::view::Seen;

/// How checkpoints call what modules of stacked experts call `gate_proj`, `up_proj` and `down_proj`, and where.
struct Naming {
    /// Between the layer and the expert's index.
    block: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
}

/// Qwen's, OLMoE's and DeepSeek's, and Mixtral's.
const NAMINGS: [Naming; 2] = [
    Naming { block: "mlp.experts", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    Naming { block: "block_sparse_moe.experts", gate: "w1", up: "w3", down: "w2" },
];

/// What Mixtral's checkpoints call the block that transformers calls `mlp`, and its router.
const ROUTERS: [&str; 2] = [".block_sparse_moe.gate.weight", ".mlp.gate.weight"];

/// Gives routers the name that they have in memory, where `adapter` has that of one.
pub(super) fn rename_routers(adapter: &BTreeSet<&str>, tensors: &mut BTreeMap<String, Seen>) {
    let [stored, in_memory] = ROUTERS;
    let is_router = |name: &&str| name.ends_with(in_memory) || format!("{name}.weight").ends_with(in_memory);
    if !adapter.iter().any(is_router) {
        return;
    }
    let names: Vec<_> = tensors.keys().filter_map(|name| name.strip_suffix(stored).map(str::to_owned)).collect();
    for layer in names {
        if let Some(router) = tensors.remove(&format!("{layer}{stored}")) {
            tensors.entry(format!("{layer}{in_memory}")).or_insert(router);
        }
    }
}

/// A module of one expert, as checkpoints name it.
pub(in crate::lora) struct Expert<'a> {
    layer: &'a str,
    block: &'static str,
    projection: &'static str,
    /// The expert's index.
    pub(in crate::lora) index: usize,
}

impl<'a> Expert<'a> {
    /// That of the module `name`, if it is one.
    pub(in crate::lora) fn of(name: &'a str) -> Option<Self> {
        NAMINGS.iter().find_map(|naming| {
            let (layer, rest) = name.split_once(naming.block)?;
            let (index, last) = rest.strip_prefix('.')?.split_once('.')?;
            let projections = [(naming.gate, "gate_proj"), (naming.up, "up_proj"), (naming.down, "down_proj")];
            let (_, projection) = projections.into_iter().find(|(own, _)| *own == last)?;
            Some(Self { layer, block: naming.block.strip_suffix("experts")?, projection, index: index.parse().ok()? })
        })
    }

    /// The name of the module that mlx-lm stacks it into.
    pub(in crate::lora) fn switch(&self) -> String {
        format!("{}{}switch_mlp.{}", self.layer, self.block, self.projection)
    }
}

/// The names that transformers gives, in memory, to the weights that the experts among `tensors` become.
pub(super) fn stacked_names<'a>(tensors: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let stacked = |name: &'a str| {
        let Expert { layer, projection, .. } = Expert::of(name.strip_suffix(".weight")?)?;
        let last = if projection == "down_proj" { projection } else { "gate_up_proj" };
        Some(format!("{layer}mlp.experts.{last}"))
    };
    tensors.filter_map(stacked).collect()
}

/// The experts of the stacked weight `name` that `tensors` has one by one: shape (experts, out, in). transformers
/// stacks them so when it loads a checkpoint (`conversion_mapping.py`), gate before up, and mlx-lm likewise (`sanitize`).
pub(super) fn stack(name: &str, tensors: &mut BTreeMap<String, Seen>) -> Option<Seen> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let (path, last) = module.rsplit_once('.')?;
    let block = ["experts", "switch_mlp"].iter().find_map(|block| path.strip_suffix(block))?;
    let layer = ["mlp.", "block_sparse_moe."].iter().find_map(|block_of| block.strip_suffix(block_of))?;
    NAMINGS.iter().find_map(|naming| {
        let projections: &[&str] = match last {
            "gate_proj" => &[naming.gate],
            "up_proj" => &[naming.up],
            "down_proj" => &[naming.down],
            "gate_up_proj" => &[naming.gate, naming.up],
            _ => return None,
        };
        let name = |expert, projection: &str| format!("{layer}{}.{expert}.{projection}.weight", naming.block);
        let count = (0..).take_while(|expert| tensors.contains_key(&name(*expert, projections[0]))).count();
        let names = || (0..count).flat_map(|expert| projections.iter().map(move |projection| name(expert, projection)));
        let pieces: Vec<_> = names().map(|name| tensors.get(&name)).collect::<Option<_>>()?;
        let (first, columns) = (pieces.first()?, *pieces.first()?.shape.get(1)?);
        let is_alike = pieces.iter().all(|piece| piece.shape == first.shape);
        let rows = first.shape[0] * projections.len();
        let stacked = Seen::stack(&pieces, vec![count, rows, columns], None).filter(|_| is_alike)?;
        names().for_each(|name| {
            tensors.remove(&name);
        });
        Some(stacked)
    })
}
