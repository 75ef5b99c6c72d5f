//! Reading into the caller's memory, and the shapes at which tiles and panels end.

use llm_local_testkit::conformance;

use super::{variants::kinds, *};

/// `base` with each kind of adapter merged into the matrix `m`.
fn merged(base: Arc<dyn TensorSource>, info: &ModelInfo, shape: [usize; 2]) -> Vec<MergedSource> {
    let of = |(seed, kind): (u64, variants::Kind)| {
        let adapters = vec![(Arc::new(kind.adapter("m", shape, false, seed)), kind.weight)];
        MergedSource::new(base.clone(), adapters, info).unwrap()
    };
    (1..).zip(kinds(0.5)).map(of).collect()
}

/// Of a base in f32: read as f32, what is stored in fewer bits is not rounded to them first, which the suite takes for another
/// value.
#[test]
fn a_merged_source_keeps_the_contract_of_sources() {
    let (shape, stored) = ([9, 35], FloatType::F32);
    let tensor = |name: &str, seed| (name.to_owned(), shape.to_vec(), numbers(seed, shape[0] * shape[1]));
    let base = Arc::new(naive::Tensors::new(stored, [tensor("m.weight", 1), tensor("untouched", 2)]));
    for source in merged(base.clone(), &variants::unknown(&base), shape) {
        conformance::tensor_source(&source);
    }
}

#[test]
fn memory_that_is_unaligned_for_the_type_gets_the_same_bytes() {
    for stored in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        let base = Arc::new(Base::new(&numbers(1, 9 * 35), [9, 35], stored, false));
        for source in merged(base.clone(), &base.info(), [9, 35]) {
            for want in [None, Some(FloatType::F32), Some(FloatType::F16), Some(FloatType::F64)] {
                let expected = bytes(&source.read("m.weight", want).unwrap());
                // An aligned place, and the one after it.
                let mut memory = vec![0u64; expected.len() / 8 + 2];
                let memory: &mut [u8] = pulp::bytemuck::cast_slice_mut(&mut memory);
                for from in [0, 1] {
                    memory.fill(0xa5);
                    let (out, after) = memory[from..].split_at_mut(expected.len());
                    source.read_into("m.weight", want, out).unwrap();
                    assert!(out == expected, "{stored} as {want:?} from byte {from}");
                    assert!(after.iter().all(|byte| *byte == 0xa5), "{stored} as {want:?} wrote beyond its end");
                }
            }
        }
    }
}

#[test]
fn memory_of_another_length_is_an_error_that_names_both() {
    let base = Arc::new(Base::new(&numbers(1, 6), [2, 3], FloatType::F16, false));
    let source = &merged(base.clone(), &base.info(), [2, 3])[0];
    for len in [0, 11, 13, 24] {
        let error = source.read_into("m.weight", None, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.code(), "load_failed", "{error}");
        for word in ["`m.weight`", "12 bytes", &format!("{len} were")] {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[test]
fn a_merge_depends_on_the_order_of_reads_if_its_base_does() {
    struct Ordered(Base);
    impl TensorSource for Ordered {
        fn entries(&self) -> &[TensorEntry] {
            self.0.entries()
        }
        fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
            self.0.read(name, want)
        }
        fn depends_on_order(&self) -> bool {
            true
        }
    }
    let base = || Base::new(&numbers(1, 6), [2, 3], FloatType::F16, false);
    let info = base().info();
    assert!(!merged(Arc::new(base()), &info, [2, 3])[0].depends_on_order());
    assert!(merged(Arc::new(Ordered(base())), &info, [2, 3])[0].depends_on_order());
}

#[test]
fn a_sum_that_is_not_finite_is_an_error_of_reading_into_memory_too() {
    let mut values = vec![1.0; 100 * 3];
    values[3 * 70 + 1] = f64::NAN;
    let base = Arc::new(Base::new(&values, [100, 3], FloatType::Bf16, false));
    for source in merged(base.clone(), &base.info(), [100, 3]) {
        let error = source.read_into("m.weight", None, &mut [0; 600]).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed", "{error}");
        assert!(error.to_string().contains("row 70"), "{error}");
    }
}

#[test]
fn widths_and_ranks_at_which_tiles_and_panels_end_are_summed_whole() {
    let types = [FloatType::F32, FloatType::F16, FloatType::Bf16];
    for (columns, rank) in
        [(1, 1), (7, 1), (17, 3), (31, 8), (32, 1), (33, 8), (513, 2), (769, 8), (1025, 5), (65, 130)]
    {
        // Rows that are whole groups of those computed together, and some that are left.
        for rows in [1, 4, 8, 11, 70] {
            for (stored, want) in types.iter().flat_map(|stored| types.map(|want| (*stored, want))) {
                let parts = [Part { rank, stored, scale: 0.5, weight: 1.0 }];
                let worst = check([rows, columns], (stored, Some(want)), &parts, false, 7);
                assert!(
                    worst <= tolerance(&parts),
                    "({rows}, {columns}), rank {rank}, {stored} to {want}: {worst} of f32's roundings"
                );
            }
        }
    }
}

/// The middle between the largest value and what would be the next is rounded to infinity. Of NaNs, only the lowest bit of the
/// fraction is set, or every one.
#[test]
fn the_last_value_that_a_type_has_is_given_and_the_next_is_an_error() {
    let last = |to| match to {
        FloatType::F16 => 65519.996f32,
        FloatType::Bf16 => f32::from_bits(0x7f7f_7fff),
        _ => f32::MAX,
    };
    for to in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        let over = f32::from_bits(last(to).to_bits() + 1);
        let cases = [(last(to), true), (-last(to), true), (over, false), (-over, false)];
        let nans = [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff].map(|bits| (f32::from_bits(bits), false));
        for (value, is_given) in cases.into_iter().chain(nans) {
            // As the base's bits: a NaN would lose them as f64.
            let mut base = Base::new(&[1.0; 40], [4, 10], FloatType::F32, false);
            base.bytes[1 + 4 * 23..][..4].copy_from_slice(&value.to_le_bytes());
            let info = base.info();
            // Changes the row, but not this column.
            let mut a = vec![1.0; 10];
            a[3] = 0.0;
            let module = LoraModule::new("m", (1, 10, 4), a, vec![1.0; 4], 1.0);
            let adapters = vec![(Arc::new(LoraAdapter::new("x", "", vec![module])), 1.0)];
            let source = MergedSource::new(Arc::new(base), adapters, &info).unwrap();
            assert_eq!(source.read("m.weight", Some(to)).is_ok(), is_given, "{value:e} to {to}");
        }
    }
}
