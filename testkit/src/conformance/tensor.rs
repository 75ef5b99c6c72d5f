//! The suite for tensor sources.

use std::collections::HashSet;

use llm_local_core::{Encoding, FloatType, Result, TensorData, TensorEntry, TensorSource};

use crate::fakes::decode;

/// Checks a tensor source. It reads every tensor as stored and in each float type, one after the other.
///
/// - names are unique, `entry` agrees with `entries`, and what is not there is an error that names it;
/// - as stored, a tensor has the bytes that its shape and encoding say, and the same at every read;
/// - floats can be had as f32, f16 and bf16: the right number of them, and each the stored number rounded once, to
///   within one unit roundoff (2^-24, 2^-11, 2^-8) or half the smallest subnormal number;
/// - other encodings are converted too, or refused with [`llm_local_core::Error::Unsupported`];
/// - `read_into` writes what `read` gives, refuses memory of another length, and is refused where `read` is.
///
/// # Panics
/// With what is wrong.
pub fn tensor_source(source: &dyn TensorSource) {
    let mut names = HashSet::new();
    for entry in source.entries() {
        let name = &entry.name;
        assert!(names.insert(name), "entries: the tensor `{name}` stands there twice");
        assert_eq!(source.entry(name), Some(entry), "entry(`{name}`) differs from what entries() has");
        stored(source, entry);
        read_into(source, entry, None);
        for want in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            converted(source, entry, want);
            read_into(source, entry, Some(want));
        }
        for part in &entry.parts {
            let found = source.read(part, None);
            assert!(found.is_ok(), "the part `{part}` of `{name}` cannot be read: {}", found.unwrap_err());
        }
    }
    let missing = "llm-local-testkit.no-such-tensor";
    assert_eq!(source.entry(missing), None, "entry of a tensor that is not there");
    match source.read(missing, None) {
        Ok(_) => panic!("reading the tensor `{missing}`, which is not there, gave data; expected an error"),
        Err(error) => {
            assert!(error.to_string().contains(missing), "the error does not name the tensor `{missing}`: {error}");
        }
    }
}

fn stored(source: &dyn TensorSource, entry: &TensorEntry) {
    let (name, shape, encoding) = (&entry.name, &entry.shape, entry.encoding);
    let Some(expected) = entry.stored_bytes() else {
        panic!("`{name}`: the shape {shape:?} does not fit the encoding {encoding}");
    };
    let read = || source.read(name, None).unwrap_or_else(|e| panic!("`{name}` cannot be read as stored: {e}"));
    let first = read();
    let found = first.byte_len();
    assert_eq!(found, expected, "`{name}` as stored has {found} bytes; {shape:?} of {encoding} are {expected}");
    if !matches!(entry.encoding, Encoding::Float(_)) {
        let bytes = matches!(first, TensorData::Borrowed(_) | TensorData::Bytes(_));
        assert!(bytes, "`{name}` is stored as {encoding}, but was given as floats");
    }
    assert!(same_bytes(&first, &read()), "`{name}` as stored differs from one read to the next");
}

fn converted(source: &dyn TensorSource, entry: &TensorEntry, want: FloatType) {
    let name = &entry.name;
    let found = match (source.read(name, Some(want)), entry.encoding) {
        (Ok(data), _) => floats(&data, want, name),
        (Err(error), Encoding::Float(_)) => panic!("`{name}` cannot be read as {want}: {error}"),
        (Err(error), encoding) => {
            let code = error.code();
            assert_eq!(code, "unsupported", "`{name}` ({encoding}) as {want} gave another error than that: {error}");
            return;
        }
    };
    let elements = entry.elements().expect("checked with the stored bytes");
    assert_eq!(found.len(), elements, "`{name}` as {want} has {} elements, not {elements}", found.len());
    let Some(exact) = reference(source, entry) else { return };
    for (i, (&found, &exact)) in found.iter().zip(&exact).enumerate() {
        assert!(is_rounded(found, exact, want), "`{name}`[{i}] as {want} is {found}, but {exact} is stored");
    }
}

fn read_into(source: &dyn TensorSource, entry: &TensorEntry, want: Option<FloatType>) {
    let name = &entry.name;
    let data = match source.read(name, want) {
        Ok(data) => data,
        Err(error) => {
            let found = source.read_into(name, want, &mut []).map_err(|error| error.code());
            assert_eq!(found, Err(error.code()), "`{name}` as {want:?}: read_into, where read fails: {error}");
            return;
        }
    };
    let mut expected = vec![0; data.byte_len()];
    data.copy_to(&mut expected);
    // What is left as it was shows in one of them.
    for fill in [0, 0xff] {
        let mut out = vec![fill; expected.len()];
        let written = source.read_into(name, want, &mut out);
        assert!(written.is_ok(), "`{name}` as {want:?} cannot be read into memory: {}", written.unwrap_err());
        assert!(out == expected, "`{name}` as {want:?}: read_into wrote other bytes than read gives");
    }
    let longer = source.read_into(name, want, &mut vec![0; expected.len() + 8]);
    assert!(longer.is_err(), "`{name}` as {want:?} was read into memory that is 8 bytes longer; expected an error");
    if let Some((_, shorter)) = expected.split_last_mut() {
        let shorter = source.read_into(name, want, shorter);
        assert!(
            shorter.is_err(),
            "`{name}` as {want:?} was read into memory that is a byte shorter; expected an error"
        );
    }
}

/// What other reads are compared with: the stored floats, or what another encoding gives as f32.
fn reference(source: &dyn TensorSource, entry: &TensorEntry) -> Option<Vec<f64>> {
    let read = |want: Option<FloatType>| -> Result<_> { source.read(&entry.name, want) };
    match entry.encoding {
        Encoding::Float(stored) => Some(floats(&read(None).ok()?, stored, &entry.name)),
        _ => Some(floats(&read(Some(FloatType::F32)).ok()?, FloatType::F32, &entry.name)),
    }
}

fn floats(data: &TensorData<'_>, t: FloatType, name: &str) -> Vec<f64> {
    match data {
        TensorData::Borrowed(bytes) => decode(bytes, t),
        TensorData::Bytes(bytes) => decode(bytes, t),
        TensorData::F32(values) => {
            assert_eq!(t, FloatType::F32, "`{name}` was asked as {t} and given as f32");
            values.iter().map(|&x| f64::from(x)).collect()
        }
        TensorData::Half(bits) => {
            assert_eq!(t.size(), 2, "`{name}` was asked as {t} and given as 16-bit floats");
            decode(&bits.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<_>>(), t)
        }
        other => panic!("`{name}` as {t} was given as {other:?}, which this suite does not know"),
    }
}

fn same_bytes(a: &TensorData<'_>, b: &TensorData<'_>) -> bool {
    match (a, b) {
        (TensorData::Borrowed(a), TensorData::Borrowed(b)) => a == b,
        (TensorData::Bytes(a), TensorData::Bytes(b)) => a == b,
        (TensorData::Half(a), TensorData::Half(b)) => a == b,
        (TensorData::F32(a), TensorData::F32(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        _ => false,
    }
}

/// Whether `found` is what `exact` becomes in the type `t`.
fn is_rounded(found: f64, exact: f64, t: FloatType) -> bool {
    // Unit roundoff, half the smallest subnormal number, and the largest finite number of each type.
    let (roundoff, least, largest) = match t {
        FloatType::F16 => (2f64.powi(-11), 2f64.powi(-25), 65504.0),
        FloatType::Bf16 => (2f64.powi(-8), 2f64.powi(-134), 2f64.powi(128) - 2f64.powi(120)),
        _ => (2f64.powi(-24), 2f64.powi(-150), f64::from(f32::MAX)),
    };
    if exact.is_nan() || found.is_nan() {
        return exact.is_nan() && found.is_nan();
    }
    if exact.abs() > largest {
        return found.is_infinite() && found.signum() == exact.signum() || found.abs() == largest;
    }
    // A thousandth more, for an f64 that becomes a 16-bit float by way of f32.
    (found - exact).abs() <= 1.001 * (exact.abs() * roundoff).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{conformance::failure, fakes::MemoryTensorSource};
    use llm_local_core::{Error, GgmlType, IntType};

    const VALUES: [f32; 8] = [0.0, -0.0, 1.0, -1.0 / 3.0, 1e-7, 65519.0, 1e30, f32::INFINITY];

    fn good() -> MemoryTensorSource {
        let ints = TensorEntry::new("ints", vec![3], Encoding::Int(IntType::U8));
        let blocks = TensorEntry::new("blocks", vec![2, 32], Encoding::Ggml(GgmlType::Q4_0));
        [FloatType::F64, FloatType::F32, FloatType::F16, FloatType::Bf16]
            .into_iter()
            .fold(MemoryTensorSource::new(), |s, t| s.with_floats(&t.to_string(), &[2, 4], t, &VALUES))
            .with_floats("nan", &[1], FloatType::F32, &[f32::NAN])
            .with_bytes(ints, vec![1, 2, 3])
            .with_bytes(blocks, vec![0; 36])
    }

    /// A good source with one thing wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Wrong {
        EntryTwice,
        EntryUnknown,
        Short,
        OneMore,
        NeverTheSame,
        Truncates,
        ForgetsToConvert,
        NoHalf,
        GivesAnything,
        AnotherError,
        Nameless,
        IntoNothing,
        IntoAnyLength,
        IntoShorter,
        IntoAlways,
    }

    struct Bad {
        inner: MemoryTensorSource,
        entries: Vec<TensorEntry>,
        wrong: Wrong,
        reads: std::sync::atomic::AtomicU8,
    }

    impl Bad {
        fn new(wrong: Wrong) -> Self {
            let inner = good();
            let mut entries = inner.entries().to_vec();
            if wrong == Wrong::EntryTwice {
                entries.push(entries[0].clone());
            }
            Self { inner, entries, wrong, reads: Default::default() }
        }
    }

    impl TensorSource for Bad {
        fn entries(&self) -> &[TensorEntry] {
            &self.entries
        }

        fn entry(&self, name: &str) -> Option<&TensorEntry> {
            if self.wrong == Wrong::EntryUnknown { None } else { self.inner.entry(name) }
        }

        fn read(&self, name: &str, want: Option<FloatType>) -> Result<TensorData<'_>> {
            let n = self.reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let data = self.inner.read(name, want);
            match (self.wrong, want, data) {
                (Wrong::Short, None, Ok(TensorData::Borrowed(b))) => Ok(TensorData::Borrowed(&b[1..])),
                (Wrong::NeverTheSame, None, Ok(TensorData::Borrowed(b))) => {
                    Ok(TensorData::Bytes(b.iter().map(|x| x ^ n).collect()))
                }
                (Wrong::OneMore, Some(_), Ok(TensorData::F32(mut v))) => {
                    v.push(0.0);
                    Ok(TensorData::F32(v))
                }
                // Cut off, not rounded: off by up to four units in the last place, where half of one is allowed.
                (Wrong::Truncates, Some(FloatType::F16), Ok(TensorData::Half(v))) => {
                    Ok(TensorData::Half(v.into_iter().map(|b| b & !3).collect()))
                }
                (Wrong::ForgetsToConvert, Some(FloatType::F16), _) => self.inner.read(name, Some(FloatType::Bf16)),
                (Wrong::NoHalf, Some(FloatType::Bf16), _) => Err(Error::unsupported("bf16", "not here")),
                (Wrong::GivesAnything, _, Err(_)) => Ok(TensorData::F32(vec![])),
                (Wrong::AnotherError, Some(_), Err(_)) => Err(Error::Cancelled),
                (Wrong::Nameless, _, Err(e)) if e.code() == "load_failed" => Err(Error::load("x", "no such tensor")),
                (_, _, data) => data,
            }
        }

        fn read_into(&self, name: &str, want: Option<FloatType>, out: &mut [u8]) -> Result<()> {
            match self.wrong {
                Wrong::IntoNothing => Ok(()),
                Wrong::IntoAnyLength => {
                    let data = self.read(name, want)?;
                    data.copy_to(&mut out[..data.byte_len()]);
                    Ok(())
                }
                Wrong::IntoShorter => {
                    let data = self.read(name, want)?;
                    let mut all = vec![0; data.byte_len().max(out.len())];
                    self.inner.read_into(name, want, &mut all)?;
                    out.copy_from_slice(&all[..out.len()]);
                    Ok(())
                }
                Wrong::IntoAlways if self.inner.read(name, want).is_err() => Ok(()),
                _ => self.inner.read_into(name, want, out),
            }
        }
    }

    #[test]
    fn a_good_source_passes() {
        tensor_source(&good());
    }

    #[test]
    fn each_thing_that_is_wrong_is_found() {
        for (wrong, message) in [
            (Wrong::EntryTwice, "stands there twice"),
            (Wrong::EntryUnknown, "differs from what entries() has"),
            (Wrong::Short, "as stored has 63 bytes"),
            (Wrong::NeverTheSame, "differs from one read to the next"),
            (Wrong::OneMore, "has 9 elements, not 8"),
            (Wrong::Truncates, "as f16 is"),
            (Wrong::ForgetsToConvert, "as f16 is"),
            (Wrong::NoHalf, "cannot be read as bf16"),
            (Wrong::GivesAnything, "has 0 elements"),
            (Wrong::AnotherError, "another error"),
            (Wrong::Nameless, "does not name the tensor"),
            (Wrong::IntoNothing, "read_into wrote other bytes"),
            (Wrong::IntoAnyLength, "memory that is 8 bytes longer"),
            (Wrong::IntoShorter, "memory that is a byte shorter"),
            (Wrong::IntoAlways, "where read fails"),
        ] {
            let said = failure(|| tensor_source(&Bad::new(wrong)));
            assert!(said.contains(message), "{message}: {said}");
        }
    }

    #[test]
    fn rounding_is_judged_to_one_unit_roundoff() {
        let third = -1.0 / 3.0;
        assert!(is_rounded(half::bf16::from_f64(third).to_f64(), third, FloatType::Bf16));
        // The bf16 on the other side is a whole place away, and 1/3 lies at a third of it.
        assert!(!is_rounded(-0.3359375 - 0.001953125, third, FloatType::Bf16));
        assert!(is_rounded(f64::INFINITY, 1e30, FloatType::F16) && !is_rounded(f64::INFINITY, 1.0, FloatType::F16));
        assert!(!is_rounded(f64::NEG_INFINITY, 1e30, FloatType::F16));
        assert!(!is_rounded(0.0, f64::NAN, FloatType::F32));
    }
}
