//! Rows in another order, in the type they are stored in.

use llm_local_core::{LoraModule, lora::Floats};

use super::floats::gathered;

/// The rows of a matrix of `columns` columns, of which `from` says what row each is.
pub(super) fn rows_of(values: &Floats, columns: usize, from: impl Fn(usize) -> usize) -> Floats {
    gathered(values, values.len(), |i| Some(from(i / columns) * columns + i % columns))
}

/// Puts in each row of the module's output that which `from` says.
pub(super) fn permute(module: &mut LoraModule, from: impl Fn(usize) -> usize) {
    module.b = rows_of(&module.b, module.rank, &from);
    for vector in [&mut module.magnitude, &mut module.bias].into_iter().flatten() {
        *vector = (0..vector.len()).map(|row| vector[from(row)]).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_moved_in_their_type() {
        let values = Floats::Bf16(vec![1, 2, 3, 4]);
        assert_eq!(rows_of(&values, 2, |row| 1 - row), Floats::Bf16(vec![3, 4, 1, 2]));
        assert_eq!(gathered(&values, 3, |i| (i != 1).then_some(3 - i)), Floats::Bf16(vec![4, 0, 2]));
    }

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
