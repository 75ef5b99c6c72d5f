//! One touched tensor: widen the base to f32, change it, round once, block by block.

use rayon::prelude::*;

use super::{
    mixed::Mixed,
    output::Output,
    overlay::Overlay,
    product::{PANEL, Panels, Tile, add_product},
    stored::{Stored, all},
};

/// Rows of one tile. With [`COLUMNS`] they are 16 KiB of f32, which stay in a core's first-level cache from one step to the
/// next, beside the panels that are added to them.
pub(super) const ROWS: usize = 8;

/// Elements of a tensor from which several threads compute it. To wake them up for less costs about as much as they save,
/// and backends that read several tensors at a time have them busy already. (Fewer in tests, which go both ways.)
const WORTH_THREADS: usize = if cfg!(test) { 1 << 12 } else { 1 << 20 };

/// Most columns of one tile.
pub(super) const COLUMNS: usize = 512;

/// Fewest rows of one task, so that there is more to do than to share it out.
const TASK_ROWS: usize = 64;

/// Columns of the tiles that cut `columns` into even parts, so that none is too narrow to pay for its calls; whole units of
/// `unit` elements, as `columns` are, and whole panels.
fn tile_columns(columns: usize, unit: usize) -> usize {
    columns.div_ceil(columns.div_ceil(COLUMNS)).next_multiple_of(unit.max(PANEL)).min(columns)
}

/// A product that is added to a matrix.
#[derive(Default)]
pub(super) struct Delta {
    pub(super) rank: usize,
    pub(super) a: Panels,
    /// Shape (rows, rank), row-major, with the scale in it.
    pub(super) b: Vec<f32>,
}

/// DoRA of one adapter (arXiv:2402.09353): `weight * (m / n * (W + delta) - W)`, where n are the norms of `W + delta`.
pub(super) struct Dora {
    pub(super) delta: Delta,
    pub(super) weight: f64,
    /// The magnitude m of each row, `None` where the adapter has no such row; or of each column.
    pub(super) magnitude: Vec<Option<f32>>,
    /// Whether magnitudes and norms are those of columns: the weight is stored transposed.
    pub(super) is_of_columns: bool,
}

/// What is added to a matrix.
#[derive(Default)]
pub(super) struct Sum {
    /// The products of all plain pairs, side by side.
    pub(super) plain: Delta,
    pub(super) doras: Vec<Dora>,
}

/// A touched tensor: matrices one below another, of `rows` rows each.
pub(super) struct Touched<'a> {
    /// The base's values, if they are asked for at all.
    pub(super) stored: Option<Stored<'a>>,
    /// The base's rows, of all matrices.
    pub(super) base_rows: usize,
    /// Rows of one matrix.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Tensors that replace it, then rows that replace some of it.
    pub(super) overlays: [Vec<Overlay<'a>>; 2],
    pub(super) sums: Vec<Sum>,
    /// Whether an adapter places anything in each row, of all matrices.
    pub(super) changed: Vec<bool>,
}

impl<'a> Touched<'a> {
    /// The base's values, if those of this row stay as they are.
    fn kept(&self, row: usize) -> Option<Stored<'a>> {
        self.stored.filter(|_| row < self.base_rows && !self.changed[row])
    }

    /// Columns of the tiles of what becomes whole units of `unit` elements. They do not cut the base's blocks either, which
    /// would be dequantized once for each tile that has some of them.
    pub(super) fn tile_columns(&self, unit: usize) -> usize {
        tile_columns(self.columns, self.stored.map_or(1, Stored::unit).max(unit))
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    values: Vec<f32>,
    /// Those of [`Mixed`].
    pub(super) spare: [Vec<f32>; 2],
}

/// The rows from `first` on, of the columns from `left` on, that a tile of a matrix is of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) first: usize,
    pub(super) left: usize,
    pub(super) tile: Tile,
}

/// What a matrix becomes, tile by tile.
pub(super) trait Tiles: Sync {
    /// What the tiles of a block of rows have in common.
    type Block;

    /// Prepares `rows` rows from `first` on.
    fn block(&self, first: usize, rows: usize, scratch: &mut [Vec<f32>; 2]) -> Self::Block;

    /// Writes a tile, row-major, into `values`.
    fn write(&self, block: &Self::Block, place: Place, values: &mut [f32], scratch: &mut [Vec<f32>; 2]);
}

/// The sum of the base and plain pairs.
struct Plain<'a> {
    stored: Stored<'a>,
    /// The first row in the whole tensor.
    first: usize,
    columns: usize,
    delta: &'a Delta,
}

impl Tiles for Plain<'_> {
    type Block = ();

    fn block(&self, _: usize, _: usize, _: &mut [Vec<f32>; 2]) {}

    fn write(&self, (): &(), Place { first, left, tile }: Place, values: &mut [f32], _: &mut [Vec<f32>; 2]) {
        for (row, values) in values.chunks_mut(tile.columns).enumerate() {
            self.stored.widen((self.first + first + row) * self.columns + left, values);
        }
        self.delta.add(Place { first, left, tile }, values);
    }
}

impl Delta {
    /// Adds a tile of the product to `values`.
    pub(super) fn add(&self, Place { first, left, tile }: Place, values: &mut [f32]) {
        let b = &self.b[first * self.rank..(first + tile.rows) * self.rank];
        add_product(values, tile, b, &self.a, left);
    }
}

/// Items that `touched` becomes by `output`: those of all matrices.
pub(super) fn items(touched: &Touched<'_>, output: &impl Output) -> usize {
    touched.sums.len() * touched.rows * items_of(output, touched.columns)
}

/// Writes what `touched` becomes by `output` into `out`, which has that many [`items`]. The error continues a sentence that
/// starts with the tensor's name; `out` holds anything then.
pub(super) fn merge<O: Output>(touched: &Touched<'_>, output: &O, out: &mut [O::Item]) -> Result<(), String> {
    assert_eq!(out.len(), items(touched, output), "memory for another number of items");
    let Touched { rows, columns, .. } = *touched;
    let items = rows * items_of(output, columns);
    let is_overlaid = touched.overlays.iter().any(|overlays| !overlays.is_empty());
    for (index, (sum, out)) in touched.sums.iter().zip(out.chunks_mut(items.max(1))).enumerate() {
        let first = index * rows;
        match touched.stored {
            Some(stored) if sum.doras.is_empty() && !is_overlaid => {
                one(&Plain { stored, first, columns, delta: &sum.plain }, touched, first, out, output)
            }
            _ => one(&Mixed::new(touched, sum, first), touched, first, out, output),
        }
        .map_err(|row| {
            let expert = if touched.sums.len() > 1 { format!(" of expert {index}") } else { String::new() };
            format!(
                "is not finite any more in row {row}{expert} when the adapter is added: {}, the base itself is not finite \
                 there, or a magnitude (DoRA) is divided by a norm of 0",
                output.beyond()
            )
        })?;
    }
    Ok(())
}

/// Items that so many elements of a row, which are whole units, become.
fn items_of(output: &impl Output, elements: usize) -> usize {
    let (unit, items) = output.unit();
    elements / unit * items
}

/// Writes one matrix of `touched`, whose first row there is `start`; the error is a row that is not finite. Rows that no
/// adapter places anything in stay what they are: quantizing them again might change them.
///
/// Tiles have fixed sizes, so the result does not depend on the number of threads.
fn one<O: Output, M: Tiles>(
    matrix: &M,
    touched: &Touched<'_>,
    start: usize,
    out: &mut [O::Item],
    output: &O,
) -> Result<(), usize> {
    let columns = touched.columns;
    let (width, items) = (touched.tile_columns(output.unit().0), items_of(output, columns));
    let each = |scratch: &mut Scratch, (block, out): (usize, &mut [O::Item])| {
        let first = block * ROWS;
        let rows = out.len() / items;
        scratch.values.resize(ROWS * width, 0.0);
        let is_changed = (start + first..start + first + rows).any(|row| touched.kept(row).is_none());
        let block = is_changed.then(|| matrix.block(first, rows, &mut scratch.spare));
        for left in (0..columns).step_by(width) {
            let tile = Tile { rows, columns: width.min(columns - left) };
            let values = &mut scratch.values[..rows * tile.columns];
            if let Some(block) = &block {
                matrix.write(block, Place { first, left, tile }, values, &mut scratch.spare);
            }
            for (row, values) in values.chunks_mut(tile.columns).enumerate() {
                let from = row * items + items_of(output, left);
                let out = &mut out[from..from + items_of(output, tile.columns)];
                let of_all = start + first + row;
                let is_written = match touched.kept(of_all) {
                    Some(stored) => {
                        let from = of_all * columns + left;
                        stored.widen(from, values);
                        all_finite(values) && output.keep(stored, from, values, out)
                    }
                    None => output.write(values, out),
                };
                if !is_written {
                    return Err(first + row);
                }
            }
        }
        Ok(())
    };
    if touched.sums.len() * touched.rows * columns < WORTH_THREADS {
        let mut scratch = Scratch::default();
        return out.chunks_mut(ROWS * items).enumerate().try_for_each(|block| each(&mut scratch, block));
    }
    let blocks = out.par_chunks_mut(ROWS * items).enumerate().with_min_len(TASK_ROWS / ROWS);
    blocks.try_for_each_init(Scratch::default, each)
}

/// Whether no value is NaN or infinite.
pub(super) fn all_finite(values: &[f32]) -> bool {
    all(values, |value| value.to_bits() & 0x7f80_0000 != 0x7f80_0000)
}
