//! How much memory a merge takes, told before a weight is read.

use std::thread;

use llm_local_core::{Encoding, ModelInfo, TensorEntry};

use super::{
    factors,
    kernel::{COLUMNS, ROWS},
    product::PANEL,
};
use crate::lora::fit::{FitReport, TouchedTensor};

/// Tensors that a backend reads at a time at most.
const MOST_READERS: usize = 8;

/// Tiles in f32 that a thread has at most: a tile, two spare ones, and five that quantizing takes.
const TILES: usize = 8;

const F32: u64 = 4;

/// Bytes that merging adapters, which change what `report` says, into the model that `merged` then describes takes at most
/// beside what a backend holds and what its own loading takes: the adapters as they were read; for as many tensors as are
/// read at a time, what each takes beside what it becomes ([`beside`]); and the tiles of all threads, as no tensor is ever
/// whole in f32 unless it was asked for so. What it becomes is the backend's from the start.
pub(crate) fn merge_peak(report: &FitReport, merged: &ModelInfo) -> u64 {
    peak(report, merged, thread::available_parallelism().map_or(1, usize::from))
}

/// [`merge_peak`], on `threads` threads.
fn peak(report: &FitReport, merged: &ModelInfo, threads: usize) -> u64 {
    if report.adapters.is_empty() {
        return 0;
    }
    let adapters: u64 = report.adapters.iter().map(|adapter| adapter.bytes).sum();
    let changed = report.touched.iter().filter(|touched| !touched.adapters.is_empty());
    let mut making: Vec<_> = changed.map(|touched| beside(touched, merged)).collect();
    making.sort_unstable_by(|a, b| b.cmp(a));
    let readers = threads.min(MOST_READERS);
    // Small tensors are computed by the thread that reads them, and large ones by all.
    let tiles = ((threads + readers) * TILES * ROWS * COLUMNS) as u64 * F32;
    adapters + making.iter().take(readers).sum::<u64>() + tiles
}

/// Bytes that are there beside the result while the tensor `touched` of `merged` is computed: the factors of its pairs in f32,
/// what is known of each row, the scales and biases of what MLX packed, and blocks that it is given in, which a backend copies.
fn beside(touched: &TouchedTensor, merged: &ModelInfo) -> u64 {
    let (count, rows, _) = factors::matrices(&touched.shape);
    let groups = match touched.stored {
        Encoding::MlxAffine { group_size, .. } => elements(&touched.shape).div_ceil(u64::from(group_size).max(1)),
        _ => 0,
    };
    let blocks = merged.tensor(&touched.name).filter(|entry| !matches!(entry.encoding, Encoding::Float(_)));
    let blocks = blocks.and_then(TensorEntry::stored_bytes).unwrap_or(0);
    // Scales and biases in f32, and one of them again while they are read, or written.
    factor_bytes(touched) + (count * rows) as u64 + 3 * groups * F32 + blocks as u64
}

/// Bytes of the factors of all pairs that are added to a tensor, and of what DoRA takes.
///
/// Those of all matrices are there at a time. While one of them is made, its A is there twice: as it is, and in panels.
fn factor_bytes(touched: &TouchedTensor) -> u64 {
    let (count, rows, columns) = factors::matrices(&touched.shape);
    let panels = columns.next_multiple_of(PANEL);
    let one = |matrix: usize| {
        let own = matrix * rows..(matrix + 1) * rows;
        let added = touched.pairs.iter().filter(|pair| {
            let placed = pair.rows.first..pair.rows.first + pair.rows.rows;
            placed.start < own.end && own.start < placed.end
        });
        added.fold((0, 0), |(rank, doras), pair| (rank + pair.rank, doras + usize::from(pair.has_magnitude)))
    };
    let all: Vec<(usize, usize)> = (0..count).map(one).collect();
    let made = all.iter().map(|(rank, _)| rank * columns).max().unwrap_or(0);
    let held: usize = all.iter().map(|(rank, _)| rank * (panels + rows)).sum();
    // A magnitude for each row and whether there is one, or a sum of squares for each column, and what comes of it.
    let doras: usize = all.iter().map(|(_, doras)| doras * 4 * rows.max(columns)).sum();
    (made + held + doras) as u64 * F32
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|dimension| *dimension as u64).product()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llm_local_core::{FloatType, GgmlType, LoraAdapter, LoraModule};

    use super::*;
    use crate::lora::{fit, testing::tiny_llama_info};

    /// 128 wide, 4 heads of 32 with 2 for keys and values, 384 in the middle.
    const HIDDEN: usize = 128;
    const MIDDLE: usize = 384;
    /// Of one thread that reads, and computes.
    const TILES_OF_TWO: u64 = 2 * 8 * 16384;

    fn pair(module: &str, (rank, columns, rows): (usize, usize, usize)) -> LoraModule {
        let name = format!("model.layers.1.{module}");
        LoraModule::new(name, (rank, columns, rows), vec![1.0; rank * columns], vec![1.0; rows * rank], 1.0)
    }

    fn report(adapters: impl IntoIterator<Item = Vec<LoraModule>>, info: &ModelInfo) -> FitReport {
        let adapters: Vec<_> = adapters.into_iter().map(|m| (Arc::new(LoraAdapter::new("a", "", m)), 1.0)).collect();
        fit(&adapters, info).unwrap()
    }

    fn down(rank: usize) -> LoraModule {
        pair("mlp.down_proj", (rank, MIDDLE, HIDDEN))
    }

    fn output(rank: usize) -> LoraModule {
        pair("self_attn.o_proj", (rank, HIDDEN, HIDDEN))
    }

    #[test]
    fn factors_of_as_many_tensors_as_are_read_at_a_time_count_beside_the_adapter() {
        let info = tiny_llama_info(|_| {});
        let report = report([vec![output(3), down(5)]], &info);
        let adapter = 4 * (3 * 2 * HIDDEN + 5 * (HIDDEN + MIDDLE)) as u64;
        // A twice, B, and whether each row changes.
        let output = 4 * 3 * (2 * HIDDEN + HIDDEN) + HIDDEN;
        let down = 4 * 5 * (2 * MIDDLE + HIDDEN) + HIDDEN;
        assert_eq!(peak(&report, &info, 1), adapter + down as u64 + TILES_OF_TWO);
        assert_eq!(peak(&report, &info, 2), adapter + (down + output) as u64 + 2 * TILES_OF_TWO);
        // More threads read no more than there is, nor more than a backend reads on.
        assert_eq!(peak(&report, &info, 64) - peak(&report, &info, 8), 56 * TILES_OF_TWO / 2);
    }

    #[test]
    fn ranks_on_one_tensor_add_up_and_a_dora_has_its_own_factors() {
        let info = tiny_llama_info(|_| {});
        let two = report([vec![down(2)], vec![down(3)]], &info);
        assert_eq!(peak(&two, &info, 1), peak(&report([vec![down(5)]], &info), &info, 1));
        let dora = report([vec![down(5).with_magnitude(vec![1.0; HIDDEN])]], &info);
        let magnitude = 4 * HIDDEN;
        let more = peak(&dora, &info, 1) - peak(&report([vec![down(5)]], &info), &info, 1);
        assert_eq!(more, (magnitude + 4 * 4 * MIDDLE) as u64);
    }

    #[test]
    fn blocks_count_where_they_are_given_as_such() {
        let info = tiny_llama_info(|entries| {
            let own = entries.iter_mut().find(|entry| entry.name == "model.layers.1.mlp.down_proj.weight");
            own.unwrap().encoding = Encoding::Ggml(GgmlType::Q8_0);
        });
        let report = report([vec![down(5)]], &info);
        let merged = report.merged_info(&Arc::new(info.clone()));
        let entry = merged.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
        assert_eq!(entry.encoding, Encoding::Float(FloatType::F16));
        let blocks = (HIDDEN * MIDDLE / 32 * 34) as u64;
        assert_eq!(peak(&report, &info, 1) - peak(&report, &merged, 1), blocks);
    }

    #[test]
    fn scales_and_biases_that_belong_to_packed_weights_are_widened() {
        let floats = tiny_llama_info(|_| {});
        let mut report = report([vec![down(5)]], &floats);
        let before = peak(&report, &floats, 1);
        report.touched[0].stored = Encoding::MlxAffine { bits: 4, group_size: 64 };
        assert_eq!(peak(&report, &floats, 1) - before, 3 * 4 * (HIDDEN * MIDDLE / 64) as u64);
    }

    #[test]
    fn without_adapters_nothing_is_taken() {
        let info = tiny_llama_info(|_| {});
        assert_eq!(peak(&report([], &info), &info, 8), 0);
    }
}
