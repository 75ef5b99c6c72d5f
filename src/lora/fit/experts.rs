//! Experts that a base stores one by one, as an adapter sees them: stacked.

use std::collections::BTreeMap;

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

/// The `count` experts of the stacked weight `name` that `tensors` has one by one: shape (experts, out, in). transformers
/// stacks them so when it loads a checkpoint (`conversion_mapping.py`), gate before up, and mlx-lm likewise (`sanitize`).
pub(super) fn stack(name: &str, count: usize, tensors: &mut BTreeMap<String, Seen>) -> Option<Seen> {
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
        let names = || (0..count).flat_map(|expert| projections.iter().map(move |projection| name(expert, projection)));
        let pieces: Vec<_> = names().map(|name| tensors.get(&name)).collect::<Option<_>>()?;
        // One more would be left out.
        if tensors.contains_key(&name(count, projections[0])) {
            return None;
        }
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
