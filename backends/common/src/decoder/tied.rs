//! A head that is stored beside the embedding it is tied to.

use std::iter;

use llm_local_core::{
    Error, Result, TensorData, TensorSource,
    model::{DecoderConfig, Layout, ModuleRole},
};

/// The head of a tied model, which some checkpoints store a second time.
pub const TIED_HEAD: &str = "lm_head.weight";

/// Checks that a head which is stored beside the embedding it is tied to is the same.
///
/// # Errors
/// [`Error::LoadFailed`] if the two differ, or came in a form that is not known; else what reading gave.
pub fn check_tied(c: &DecoderConfig, layout: Layout, source: &dyn TensorSource) -> Result<()> {
    let embedding = c.module(ModuleRole::Embedding, 0, layout).map(|module| format!("{module}.weight"));
    let (Some(embedding), true) = (embedding, c.tied_embeddings && layout == Layout::HuggingFace) else {
        return Ok(());
    };
    let Some(head) = source.entry(TIED_HEAD) else { return Ok(()) };
    let parts = |name| source.entry(name).map_or(&[][..], |entry| &entry.parts);
    let differ = || {
        let why = format!(
            "config.json ties it to {embedding}, but the two differ; set tie_word_embeddings to false, or remove it"
        );
        Err(Error::load(TIED_HEAD, why))
    };
    if head.parts.len() != parts(&embedding).len() {
        return differ();
    }
    let all = iter::once((&head.name, &embedding)).chain(head.parts.iter().zip(parts(&embedding)));
    for (one, other) in all {
        match same_bytes(&source.read(one, None)?, &source.read(other, None)?) {
            Some(true) => {}
            Some(false) => return differ(),
            None => return Err(Error::load(TIED_HEAD, "its data is in a form that this backend does not know")),
        }
    }
    Ok(())
}

/// Whether two tensors have the same bytes, in whichever form each came; `None` for a form that is not known. Both may
/// be as large as an embedding, so neither is copied.
fn same_bytes(a: &TensorData<'_>, b: &TensorData<'_>) -> Option<bool> {
    use TensorData::{F32, Half};
    Some(match (a, b) {
        (F32(a), F32(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        (Half(a), Half(b)) => a == b,
        (F32(_), Half(_)) | (Half(_), F32(_)) => false,
        (F32(numbers), bytes) | (bytes, F32(numbers)) => same_numbers(numbers, raw(bytes)?, f32::to_le_bytes),
        (Half(bits), bytes) | (bytes, Half(bits)) => same_numbers(bits, raw(bytes)?, u16::to_le_bytes),
        (a, b) => raw(a)? == raw(b)?,
    })
}

fn raw<'a>(data: &'a TensorData<'_>) -> Option<&'a [u8]> {
    match data {
        TensorData::Borrowed(bytes) => Some(bytes),
        TensorData::Bytes(bytes) => Some(bytes),
        _ => None,
    }
}

fn same_numbers<T: Copy, const N: usize>(numbers: &[T], bytes: &[u8], le: impl Fn(T) -> [u8; N]) -> bool {
    numbers.len() * N == bytes.len() && numbers.iter().zip(bytes.chunks_exact(N)).all(|(x, bytes)| le(*x) == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_compared_across_forms_to_the_last_one() {
        let numbers = [1.5f32, f32::NAN, -0.0];
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let bits: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
        let whole = [TensorData::F32(numbers.to_vec()), TensorData::Borrowed(&bytes), TensorData::Bytes(bytes.clone())];
        let halves = [TensorData::Half(bits.clone()), TensorData::Borrowed(&bytes), TensorData::Bytes(bytes.clone())];
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        let short = &bytes[..bytes.len() - 4];
        for forms in [whole, halves] {
            for a in &forms {
                for b in &forms {
                    assert_eq!(same_bytes(a, b), Some(true), "{a:?} {b:?}");
                }
                for different in [&other[..], short, &[]] {
                    assert_eq!(same_bytes(a, &TensorData::Borrowed(different)), Some(false), "{a:?}");
                    assert_eq!(same_bytes(&TensorData::Bytes(different.to_vec()), a), Some(false), "{a:?}");
                }
            }
        }
        assert_eq!(same_bytes(&TensorData::F32(vec![0.0]), &TensorData::F32(vec![-0.0])), Some(false));
        assert_eq!(same_bytes(&TensorData::Half(bits), &TensorData::F32(numbers.to_vec())), Some(false));
    }
}
