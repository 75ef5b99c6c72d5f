//! Rows of pairs in another order, in the type they are stored in.

use llm_local_core::{LoraModule, lora::Floats};

/// Puts in each row of the module's output that which `from` says.
pub(super) fn permute(module: &mut LoraModule, from: impl Fn(usize) -> usize) {
    let (rank, rows) = (module.rank, module.out_features);
    module.b = match &module.b {
        Floats::F32(v) => Floats::F32(permuted(v, rank, rows, &from)),
        Floats::F16(v) => Floats::F16(permuted(v, rank, rows, &from)),
        Floats::Bf16(v) => Floats::Bf16(permuted(v, rank, rows, &from)),
        other => unreachable!("{} is not a type of `Floats`", other.float_type()),
    };
    for vector in [&mut module.magnitude, &mut module.bias].into_iter().flatten() {
        *vector = permuted(vector, 1, rows, &from);
    }
}

fn permuted<T: Copy>(values: &[T], width: usize, rows: usize, from: impl Fn(usize) -> usize) -> Vec<T> {
    (0..rows).map(from).flat_map(|row| values[row * width..(row + 1) * width].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_b_and_numbers_of_each_row_are_moved_together() {
        let mut module = LoraModule::new("m", (2, 1, 3), vec![7.0, 8.0], Floats::F16((0..6).collect()), 1.0)
            .with_magnitude(vec![1.0, 2.0, 3.0])
            .with_bias(vec![4.0, 5.0, 6.0]);
        permute(&mut module, |row| (row + 1) % 3);
        assert_eq!(module.b, Floats::F16(vec![2, 3, 4, 5, 0, 1]));
        assert_eq!((module.magnitude, module.bias), (Some(vec![2.0, 3.0, 1.0]), Some(vec![5.0, 6.0, 4.0])));
        assert_eq!(module.a, Floats::F32(vec![7.0, 8.0]));
    }
}
