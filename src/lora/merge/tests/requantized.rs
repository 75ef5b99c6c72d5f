//! Touched tensors of a base in blocks, given in blocks again.

use std::sync::Arc;

use candle_core::{
    Device, Tensor,
    quantized::{QStorage, QTensor},
};
use llm_local_core::{
    Encoding, FloatType, GgmlType, LoraAdapter, LoraModule, ModelFormat, ModelInfo, Result, TensorData, TensorEntry,
    TensorSource, lora::ReplacedRows,
};
use serde_json::json;

use super::{
    MergedSource, bytes, decode,
    naive::merged,
    numbers,
    quantized::{on, open},
    stored_floats,
    variants::kinds,
};
use crate::lora::merge::{kernel::Touched, stored::ReadTensor};
use crate::lora::quantized::dtype;

/// Every format that candle has.
const ALL: [GgmlType; 12] = {
    use GgmlType::{Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Q8_1, Q8_K};
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K]
};

/// All of `values`, quantized by candle in one go.
fn quantized(kind: GgmlType, values: &[f32]) -> Vec<u8> {
    let values = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    QTensor::quantize(&values, dtype(kind).unwrap()).unwrap().data().unwrap().to_vec()
}

/// All of `blocks`, dequantized by candle in one go.
fn dequantized(kind: GgmlType, blocks: Vec<u8>, count: usize) -> Vec<f32> {
    let storage = QStorage::from_data(blocks.into(), &Device::Cpu, dtype(kind).unwrap()).unwrap();
    QTensor::new(storage, count).unwrap().dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
}

/// A base of one matrix `m.weight`, in blocks of random values.
struct Base {
    entries: Vec<TensorEntry>,
    bytes: Vec<u8>,
}

impl Base {
    fn new(kind: GgmlType, [rows, columns]: [usize; 2]) -> Self {
        let values: Vec<_> = numbers(7, rows * columns).iter().map(|v| *v as f32).collect();
        let entry = TensorEntry::new("m.weight", vec![rows, columns], Encoding::Ggml(kind));
        Self { entries: vec![entry], bytes: quantized(kind, &values) }
    }

    fn info(&self) -> ModelInfo {
        let format = ModelFormat::Safetensors { config: Arc::new(json!({"model_type": "test"})) };
        ModelInfo::new("base", format, self.entries.clone())
    }
}

impl TensorSource for Base {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        assert_eq!((name, want), ("m.weight", None), "the merge reads the base as it is stored");
        Ok(TensorData::Borrowed(&self.bytes))
    }
}

fn f32s(data: &TensorData<'_>) -> Vec<f32> {
    decode(&bytes(data), FloatType::F32).map(|v| v as f32).collect()
}

#[test]
fn each_block_format_is_what_candle_makes_of_the_merged_values() {
    // Two blocks of 256 in the first tile of a row and one in the second; more rows than one task takes.
    let [rows, columns] = [70, 1280];
    for kind in ALL {
        let base = Arc::new(Base::new(kind, [rows, columns]));
        let own = dequantized(kind, base.bytes.clone(), rows * columns);
        let own: Vec<_> = own.into_iter().map(f64::from).collect();
        for (seed, changed) in (1..).zip(kinds(0.5)) {
            let adapter = Arc::new(changed.adapter("m", [rows, columns], false, seed));
            let with =
                || MergedSource::new(base.clone(), vec![(adapter.clone(), changed.weight)], &base.info()).unwrap();
            let again = with().requantized().unwrap();
            assert_eq!(again.entries(), base.entries());
            let TensorData::Bytes(found) = again.read("m.weight", None).unwrap() else { panic!("{kind}") };

            // The blocks are those of the f32 sum, bit for bit.
            let sum = f32s(&with().read("m.weight", Some(FloatType::F32)).unwrap());
            assert!(found == quantized(kind, &sum), "{kind} with {changed:?}");

            // Of the sum in f64 they are the same but where its rounding to f32 decides. Measured: 281 of 89,600 values are
            // others at most (Q6_K, of whose scales a step is large); a step of any format is above 0.001.
            let exact = [(&*adapter, f64::from(changed.weight))];
            let exact = merged("m.weight", &own, (rows, columns), false, &exact).values;
            let exact: Vec<_> = exact.into_iter().map(|v| v as f32).collect();
            let naive = dequantized(kind, quantized(kind, &exact), rows * columns);
            let given = dequantized(kind, found, rows * columns);
            let others = given.iter().zip(&naive).filter(|(x, y)| (**x - **y).abs() > 1e-5).count();
            assert!(others <= 600, "{kind} with {changed:?}: {others} values are others");

            // What is read as floats is what the blocks stand for.
            assert_eq!(f32s(&again.read("m.weight", Some(FloatType::F32)).unwrap()), given, "{kind}");
            let halves = again.read("m.weight", Some(FloatType::F16)).unwrap();
            let expected: Vec<_> = given.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
            assert!(matches!(halves, TensorData::Half(halves) if halves == expected), "{kind}");
            let wide = bytes(&again.read("m.weight", Some(FloatType::F64)).unwrap());
            assert!(decode(&wide, FloatType::F64).eq(given.iter().map(|v| f64::from(*v))), "{kind}");
        }
    }
}

#[test]
fn rows_that_an_adapter_does_not_list_keep_their_blocks() {
    let [rows, columns] = [70, 1280];
    let changed = [0, 33, 69];
    let mut others = 0;
    for kind in ALL {
        let base = Arc::new(Base::new(kind, [rows, columns]));
        let values = stored_floats(&numbers(3, changed.len() * columns), FloatType::Bf16);
        let replaced = ReplacedRows::new("m.weight", changed.to_vec(), values);
        let adapter = Arc::new(LoraAdapter::new("rows", "", Vec::new()).with_rows(vec![replaced]));
        let with = || MergedSource::new(base.clone(), vec![(adapter.clone(), 1.0)], &base.info()).unwrap();
        let sum = f32s(&with().read("m.weight", Some(FloatType::F32)).unwrap());
        let again = quantized(kind, &sum);
        let requantized = with().requantized().unwrap();
        let (found, given) =
            (requantized.read("m.weight", None).unwrap(), requantized.read("m.weight", Some(FloatType::F32)));
        let (found, given) = (bytes(&found), f32s(&given.unwrap()));
        let size = found.len() / rows;
        for row in 0..rows {
            let (blocks, values) = (row * size..(row + 1) * size, row * columns..(row + 1) * columns);
            if changed.contains(&row) {
                assert!(found[blocks.clone()] == again[blocks], "{kind}, row {row}");
            } else {
                others += usize::from(base.bytes[blocks.clone()] != again[blocks.clone()]);
                assert!(found[blocks.clone()] == base.bytes[blocks], "{kind}, row {row}");
                assert!(given[values.clone()] == sum[values], "{kind}, row {row}");
            }
        }
    }
    assert!(others > rows, "quantizing again changes nothing here, which tells nothing: {others}");
}

#[test]
fn tiles_do_not_cut_the_blocks_of_the_base() {
    let base = Base::new(GgmlType::Q4_K, [1, 2816]);
    let read = ReadTensor::new(&base, "m.weight").unwrap();
    let mut touched = Touched {
        stored: Some(read.stored().unwrap()),
        base_rows: 1,
        rows: 1,
        columns: 2816,
        overlays: Default::default(),
        sums: Vec::new(),
        changed: vec![true],
    };
    for unit in [1, 32, 256] {
        assert_eq!(touched.tile_columns(unit), 512);
    }
    touched.stored = None;
    assert_eq!(touched.tile_columns(1), 480);
}

#[test]
fn the_blocks_do_not_depend_on_the_number_of_threads() {
    for kind in [GgmlType::Q4_0, GgmlType::Q6_K] {
        let base = Arc::new(Base::new(kind, [300, 1024]));
        let merged =
            MergedSource::new(base.clone(), on("m", [300, 1024]), &base.info()).unwrap().requantized().unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bytes(&merged.read("m.weight", None).unwrap()))
        };
        assert!(with(1) == with(3), "{kind}");
    }
}

#[test]
fn entries_and_description_are_the_base_s_and_others_are_its_own_bytes() {
    let (source, info) = open("tiny-llama-q8_0");
    let touched = "blk.1.ffn_down.weight";
    let [rows, columns] = source.entry(touched).unwrap().shape[..] else { panic!("it is no matrix") };
    let merged = MergedSource::new(source.clone(), on("blk.1.ffn_down", [rows, columns]), &info).unwrap();
    let merged = merged.requantized().unwrap();
    assert_eq!(merged.entries(), source.entries());
    assert_eq!(&merged.info().tensors[..], source.entries());
    for entry in source.entries() {
        assert_eq!(merged.entry(&entry.name), Some(entry));
        let (own, data) = (source.read(&entry.name, None).unwrap(), merged.read(&entry.name, None).unwrap());
        assert_eq!(Some(data.byte_len()), entry.stored_bytes());
        assert_eq!(matches!(data, TensorData::Borrowed(_)), entry.name != touched, "{}", entry.name);
        assert_eq!(bytes(&data) == bytes(&own), entry.name != touched, "{}", entry.name);
    }
}

#[test]
fn a_base_of_floats_is_merged_as_it_is_otherwise() {
    let base = Arc::new(super::Base::new(&numbers(1, 6), [2, 3], FloatType::Bf16, false));
    let merged = || MergedSource::new(base.clone(), on("m", [2, 3]), &base.info()).unwrap();
    let (merged, again) = (merged(), merged().requantized().unwrap());
    assert!(std::ptr::eq(again.entries(), base.entries()));
    for want in [None, Some(FloatType::F32)] {
        let (one, other) = (merged.read("m.weight", want).unwrap(), again.read("m.weight", want).unwrap());
        assert_eq!(bytes(&one), bytes(&other));
    }
}

#[test]
fn a_sum_beyond_the_scales_of_a_format_is_an_error_and_nothing_is_given() {
    // The scale of Q8_0 is the largest value over 127 in f16, which ends at 65504.
    let base = Arc::new(Base::new(GgmlType::Q8_0, [70, 32]));
    let mut b = vec![0.0; 70];
    b[66] = 1.0;
    let module = LoraModule::new("m", (1, 32, 70), vec![1e7; 32], b, 1.0);
    let adapters = || vec![(Arc::new(LoraAdapter::new("hf:some/adapter", "", vec![module.clone()])), 1.0)];
    let merged = || MergedSource::new(base.clone(), adapters(), &base.info()).unwrap();
    assert!(merged().read("m.weight", Some(FloatType::F32)).is_ok());
    let again = merged().requantized().unwrap();
    for want in [None, Some(FloatType::F32)] {
        let error = again.read("m.weight", want).unwrap_err();
        assert_eq!(error.code(), "adapter_merge_failed");
        for word in ["hf:some/adapter", "`m.weight`", "row 66", "beyond what Q8_0 can hold"] {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }
}

#[test]
fn rows_that_are_not_whole_blocks_are_said_to_be_so() {
    let mut base = Base::new(GgmlType::Q4_0, [2, 32]);
    base.entries[0].shape = vec![2, 33];
    let error = crate::lora::merge::squares(&base, "m.weight", &[(0, 2)]).unwrap_err();
    assert_eq!(error.code(), "load_failed");
    for word in ["`m.weight`", "(2, 33)", "not whole blocks of Q4_0"] {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
    let error = crate::lora::merge::squares(&base, "n.weight", &[(0, 2)]).unwrap_err().to_string();
    assert!(error.contains("`n.weight`") && error.contains("does not have it"), "{error}");
}
