//! Low-rank pairs beside a matrix: `y = f · (W x) + Σ scale · B (A x)`, with a factor `f` for each row of the matrix.
//!
//! A pair of DoRA (arXiv:2402.09353) with weight `w` gives `w · (m / n · (W + s B A) - W)`: it adds `w · (m / n - 1)` to
//! the factor of each row, and multiplies its rows of B by `m / n`.

use std::ops::Range;

use llm_local_core::{LoraModule, Result};

use super::{By, Changes, Dora, Values};

/// What is beside a matrix of shape (out, in).
#[derive(Debug)]
pub struct Pieces {
    /// In the order of the adapters; several may be beside the same rows.
    pub pieces: Vec<Piece>,
    /// What each row of the matrix counts, shape (out,); all count 1 without.
    pub factors: Option<Vec<f32>>,
}

/// One low-rank pair beside some rows of the matrix.
#[derive(Debug)]
pub struct Piece {
    /// Rows of A.
    pub rank: usize,
    /// The rows of the matrix that it is beside.
    pub rows: Range<usize>,
    /// A, shape (rank, in).
    pub a: Values,
    /// B transposed, shape (rank, rows): so its columns are added one after another, whatever the rank.
    pub b: Values,
    /// What the update is multiplied by.
    pub scale: f32,
}

/// The pieces of a matrix as one pair.
#[derive(Debug)]
pub struct OnePair {
    /// Rows of A.
    pub rank: usize,
    /// All A, one below another: shape (rank, in).
    pub a: Vec<f32>,
    /// All scaled B transposed, each at its rows, and 0 elsewhere: shape (rank, out).
    pub b: Vec<f32>,
}

impl OnePair {
    /// That of `pieces` beside a matrix of shape (out, in).
    pub fn new(pieces: &[Piece], (out, width): (usize, usize)) -> Self {
        let rank = pieces.iter().map(|p| p.rank).sum();
        let mut b = vec![0f32; rank * out];
        let mut a = Vec::with_capacity(rank * width);
        let mut first = 0;
        for piece in pieces {
            a.extend_from_slice(&piece.a.all());
            for row in piece.b.all().chunks_exact(piece.rows.len()) {
                let at = &mut b[first * out..(first + 1) * out][piece.rows.clone()];
                at.iter_mut().zip(row).for_each(|(to, from)| *to = from * piece.scale);
                first += 1;
            }
        }
        Self { rank, a, b }
    }
}

impl Pieces {
    /// The pairs of `parts`, modules of a matrix of `out` rows with the row that each begins at; `None` without any. For a
    /// pair of DoRA, `norms` is asked for the norm of `W + s B A` of each of [`Dora::rows`], where W is the matrix with what
    /// adapters replace of it.
    ///
    /// # Errors
    /// [`AdapterMergeFailed`](llm_local_core::Error::AdapterMergeFailed) for numbers that cannot be computed with, or what
    /// `norms` gave.
    pub fn new(
        parts: &[(usize, &Changes<'_>)],
        out: usize,
        mut norms: impl FnMut(&Dora<'_>) -> Result<Vec<f64>>,
    ) -> Result<Option<Self>> {
        let mut pieces = Vec::new();
        let mut factors: Option<Vec<f32>> = None;
        for stretch in Stretch::all(parts) {
            let (by, rows, of_module) = (stretch.by, stretch.rows.clone(), stretch.of_module());
            let module = by.what;
            let tensor = |which: &str| format!("{}.lora_{which}", module.name);
            let (a, b) = (by.floats(&tensor("A"), &module.a)?, by.floats(&tensor("B"), &module.b)?);
            by.check_finite(&tensor("A"), &a.all())?;
            by.check_finite(&tensor("B"), &b.all())?;
            let b = b.range(of_module.start * module.rank..of_module.end * module.rank);
            let mut transposed = b.transposed(module.rank);
            if let Some(dora) = Dora::new(by, rows.clone(), of_module, (&a, &b)) {
                let gains = dora.gains(norms(&dora)?)?;
                transposed = multiplied(&transposed, &gains);
                let factors = factors.get_or_insert_with(|| vec![1.0; out]);
                for (factor, gain) in factors[rows.clone()].iter_mut().zip(&gains) {
                    *factor += (f64::from(by.weight) * (gain - 1.0)) as f32;
                }
            }
            let scale = (f64::from(by.weight) * module.scale) as f32;
            pieces.push(Piece { rank: module.rank, rows, a, b: transposed, scale });
        }
        Ok((!pieces.is_empty()).then_some(Self { pieces, factors }))
    }
}

/// B transposed, shape (rank, rows), with each row of B multiplied by its gain.
fn multiplied(b: &Values, gains: &[f64]) -> Values {
    let all = b.all();
    let rows = all.chunks_exact(gains.len());
    Values::F32(rows.flat_map(|row| row.iter().zip(gains).map(|(b, gain)| (f64::from(*b) * gain) as f32)).collect())
}

/// Low-rank pairs of one adapter beside rows of a matrix that follow one another.
struct Stretch<'c, 'a> {
    by: &'c By<'a, LoraModule>,
    /// The rows of the matrix.
    rows: Range<usize>,
}

impl<'c, 'a> Stretch<'c, 'a> {
    /// The pairs of `parts`, modules of a matrix with the row that each begins at; what an adapter has as one module is one
    /// again.
    fn all(parts: &[(usize, &'c Changes<'a>)]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (start, changes) in parts {
            for by in &changes.pairs {
                let goes_on = |s: &&mut Self| {
                    let same = std::ptr::eq(s.by.what, by.what) && s.by.place == by.place;
                    same && s.rows.end == *start && s.by.first + s.rows.len() == by.first
                };
                let end = start + changes.rows();
                match all.iter_mut().find(goes_on) {
                    Some(before) => before.rows.end = end,
                    None => all.push(Self { by, rows: *start..end }),
                }
            }
        }
        all
    }

    /// The rows of the module that these are.
    fn of_module(&self) -> Range<usize> {
        self.by.first..self.by.first + self.rows.len()
    }
}
