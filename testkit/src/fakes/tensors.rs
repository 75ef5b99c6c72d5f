//! Tensor sources: in memory, counting, and one that must never be read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use half::{bf16, f16};
use llm_local_core::{Encoding, Error, FloatType, Result, TensorData, TensorEntry, TensorSource};

/// Tensors in memory. Floats are converted to the float type asked for; other encodings are given only as stored.
#[derive(Debug, Default, Clone)]
pub struct MemoryTensorSource {
    entries: Vec<TensorEntry>,
    data: BTreeMap<String, Vec<u8>>,
}

impl MemoryTensorSource {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor of floats, stored as `stored`.
    ///
    /// # Panics
    /// If the number of `values` does not fit `shape`, or the name is taken.
    pub fn with_floats(self, name: &str, shape: &[usize], stored: FloatType, values: &[f32]) -> Self {
        let bytes = match stored {
            FloatType::F64 => values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
            other => encode(values, other),
        };
        self.with_bytes(TensorEntry::new(name, shape.to_vec(), Encoding::Float(stored)), bytes)
    }

    /// Adds a tensor as it is stored.
    ///
    /// # Panics
    /// If the number of bytes does not fit the entry, or the name is taken.
    pub fn with_bytes(mut self, entry: TensorEntry, bytes: Vec<u8>) -> Self {
        assert_eq!(Some(bytes.len()), entry.stored_bytes(), "bytes of {} {:?}", entry.name, entry.shape);
        let name = entry.name.clone();
        assert!(self.data.insert(name.clone(), bytes).is_none(), "the tensor `{name}` is there already");
        self.entries.push(entry);
        self
    }
}

impl TensorSource for MemoryTensorSource {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        let (Some(entry), Some(bytes)) = (self.entry(name), self.data.get(name)) else {
            return Err(Error::load("tensors in memory", format!("there is no tensor `{name}`")));
        };
        match (entry.encoding, want) {
            (_, None) => Ok(TensorData::Borrowed(bytes)),
            (Encoding::Float(stored), Some(want)) if stored == want => Ok(TensorData::Borrowed(bytes)),
            (Encoding::Float(stored), Some(want)) => Ok(convert(bytes, stored, want)),
            (encoding, Some(want)) => Err(Error::unsupported(
                format!("reading `{name}` as {want}"),
                format!("it is stored as {encoding}; ask for it as stored"),
            )),
        }
    }
}

fn convert(bytes: &[u8], stored: FloatType, want: FloatType) -> TensorData<'static> {
    if want == FloatType::F64 {
        let wide = decode(bytes, stored);
        return TensorData::Bytes(wide.into_iter().flat_map(f64::to_le_bytes).collect());
    }
    let values = decode(bytes, stored);
    match want {
        FloatType::F16 => TensorData::Half(values.into_iter().map(|x| f16::from_f64(x).to_bits()).collect()),
        FloatType::Bf16 => TensorData::Half(values.into_iter().map(|x| bf16::from_f64(x).to_bits()).collect()),
        _ => TensorData::F32(values.into_iter().map(|x| x as f32).collect()),
    }
}

/// Little-endian bytes of `values` as `t`, rounded to nearest, ties to even.
fn encode(values: &[f32], t: FloatType) -> Vec<u8> {
    match t {
        FloatType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        FloatType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The numbers that little-endian bytes of floats of type `t` stand for.
pub(crate) fn decode(bytes: &[u8], t: FloatType) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        let (chunks, rest) = bytes.as_chunks::<N>();
        assert!(rest.is_empty(), "{} bytes are not a whole number of floats of {N} bytes", bytes.len());
        chunks.iter().map(|&b| f(b)).collect()
    }
    match t {
        FloatType::F64 => each(bytes, f64::from_le_bytes),
        FloatType::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        FloatType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
        FloatType::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        other => panic!("no decoder for the float type {other}"),
    }
}

/// The entries of another source, and a panic on every read: for code that must decide before it reads a weight.
#[derive(Debug, Clone)]
pub struct PanickingTensorSource {
    entries: Vec<TensorEntry>,
}

impl PanickingTensorSource {
    /// The entries of `source`.
    pub fn of(source: &dyn TensorSource) -> Self {
        Self { entries: source.entries().to_vec() }
    }
}

impl TensorSource for PanickingTensorSource {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, _: Option<FloatType>) -> Result<TensorData<'_>> {
        panic!("the tensor `{name}` was read, but nothing was to be read here")
    }
}

/// Another source, with a count of reads by name.
pub struct CountingTensorSource {
    inner: Arc<dyn TensorSource>,
    reads: Mutex<BTreeMap<String, usize>>,
}

impl CountingTensorSource {
    /// Counts the reads of `inner`.
    pub fn new(inner: Arc<dyn TensorSource>) -> Self {
        Self { inner, reads: Mutex::default() }
    }

    /// How often the tensor `name` was read.
    pub fn reads_of(&self, name: &str) -> usize {
        self.lock().get(name).copied().unwrap_or(0)
    }

    /// How many reads there were in all.
    pub fn reads(&self) -> usize {
        self.lock().values().sum()
    }

    fn count(&self, name: &str) {
        *self.lock().entry(name.to_owned()).or_default() += 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, usize>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TensorSource for CountingTensorSource {
    fn entries(&self) -> &[TensorEntry] {
        self.inner.entries()
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
        self.count(name);
        self.inner.read(name, want)
    }

    fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
        self.count(name);
        self.inner.read_into(name, want, out)
    }

    fn depends_on_order(&self) -> bool {
        self.inner.depends_on_order()
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.inner.entry(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> MemoryTensorSource {
        MemoryTensorSource::new().with_floats("w", &[2], FloatType::Bf16, &[1.0, -0.5])
    }

    #[test]
    fn floats_are_converted_to_what_is_asked() {
        let source = source();
        let TensorData::F32(wide) = source.read("w", Some(FloatType::F32)).unwrap() else { panic!("f32 was asked") };
        assert_eq!(wide, [1.0, -0.5]);
        let TensorData::Half(half) = source.read("w", Some(FloatType::F16)).unwrap() else { panic!("f16 was asked") };
        assert_eq!(half, [0x3c00, 0xb800]);
        assert!(source.read("x", None).unwrap_err().to_string().contains("`x`"));
    }

    #[test]
    fn reads_are_counted_by_name() {
        let counting = CountingTensorSource::new(Arc::new(source()));
        let _ = counting.read("w", None);
        let _ = counting.read("w", Some(FloatType::F32));
        let mut bytes = [0; 4];
        counting.read_into("w", None, &mut bytes).unwrap();
        assert_eq!(bytes, [0x80, 0x3f, 0, 0xbf]);
        assert_eq!((counting.reads(), counting.reads_of("w"), counting.reads_of("x")), (3, 3, 0));
    }

    #[test]
    #[should_panic(expected = "`w` was read")]
    fn a_read_of_what_must_not_be_read_panics() {
        let _ = PanickingTensorSource::of(&source()).read("w", None);
    }
}
