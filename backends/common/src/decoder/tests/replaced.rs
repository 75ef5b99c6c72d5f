//! Tensors that are replaced: what must stay, and the modules that they are of; heads that are stored twice.

use std::collections::HashSet;

use llm_local_core::{
    Result, TensorData, TensorEntry, TensorSource,
    model::{Layout, ModuleRole as R},
};

use super::*;

#[test]
fn a_description_that_differs_is_said() {
    let c = description("tiny-llama", None);
    let hf = Layout::HuggingFace;
    check_same((&c, hf), (&c, hf)).unwrap();
    let mut tied = c.clone();
    tied.tied_embeddings = !c.tied_embeddings;
    let mut longer = c.clone();
    longer.vocab_size += 2;
    let mut deeper = c.clone();
    deeper.layers += 1;
    for (other, layout, expected) in [
        (&tied, hf, "the output head is"),
        (&longer, hf, "the vocabulary has"),
        (&deeper, hf, "the description of the model"),
        (&c, Layout::Gguf, "the description of the model"),
    ] {
        let why = check_same((&c, hf), (other, layout)).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
    let error = refuse_replacement("m", "it is another").to_string();
    assert!(error.contains("replace_tensors") && error.contains("load `m` by another spec"), "{error}");
}

#[test]
fn names_of_tensors_are_modules() {
    let mut c = description("tiny-llama", None);
    let of = |c: &DecoderConfig, layout, names: &[&str]| {
        touched("m", c, layout, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    };
    let names = ["model.layers.1.self_attn.q_proj.weight", "model.norm.weight"];
    let expected = HashSet::from([(R::Query, 1), (R::FinalNorm, 0)]);
    assert_eq!(of(&c, Layout::HuggingFace, &names).unwrap(), expected);
    c.tied_embeddings = true;
    assert_eq!(of(&c, Layout::HuggingFace, &[TIED_HEAD]).unwrap(), HashSet::from([(R::Embedding, 0)]));
    let error = of(&c, Layout::Gguf, &[TIED_HEAD]).unwrap_err();
    assert!(error.code() == "invalid_spec" && error.to_string().contains("`lm_head.weight` is no tensor of `m`"));
}

/// Tensors of bytes.
struct Bytes(Vec<TensorEntry>, Vec<u8>);

impl TensorSource for Bytes {
    fn entries(&self) -> &[TensorEntry] {
        &self.0
    }

    fn read(&self, name: &str, _: Option<llm_local_core::FloatType>) -> Result<TensorData<'_>> {
        let at = self.0.iter().position(|t| t.name == name).unwrap();
        Ok(TensorData::Borrowed(&self.1[at..=at]))
    }
}

#[test]
fn a_tied_head_is_compared_with_all_that_it_is_packed_with() {
    let mut c = description("tiny-llama", None);
    c.tied_embeddings = true;
    let float = llm_local_core::Encoding::Float(llm_local_core::FloatType::F32);
    let names = ["lm_head", "model.embed_tokens"].map(|module| {
        ["weight", "scales", "biases"].map(|part| TensorEntry::new(format!("{module}.{part}"), vec![1], float))
    });
    let with_parts = |[mut weight, scales, biases]: [TensorEntry; 3]| {
        weight.parts = vec![scales.name.clone(), biases.name.clone()];
        [weight, scales, biases]
    };
    let entries: Vec<_> = names.map(with_parts).into_iter().flatten().collect();
    let check = |entries: Vec<_>, bytes: [u8; 6]| check_tied(&c, Layout::HuggingFace, &Bytes(entries, bytes.to_vec()));
    check(entries.clone(), [1, 2, 3, 1, 2, 3]).unwrap();
    for other in [[0, 2, 3, 1, 2, 3], [1, 2, 0, 1, 2, 3]] {
        let error = check(entries.clone(), other).unwrap_err().to_string();
        assert!(error.contains("config.json ties it to model.embed_tokens.weight, but the two differ"), "{error}");
    }
    let mut alone = entries;
    alone[0].parts.clear();
    assert!(check(alone, [1, 2, 3, 1, 2, 3]).is_err());
}
