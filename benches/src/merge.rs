//! The merge's arithmetic against moving the same bytes at this machine's memory bandwidth.

use std::{
    collections::{BTreeMap, HashMap},
    hint::black_box,
    iter, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use llm_local::{
    ArtifactRef,
    core::{
        Encoding, FloatType, ModelInfo, TensorData, TensorEntry, TensorSource,
        model::{Layout, ModelFormat},
    },
    lora::{self, LoraAdapter, LoraModule, MergedSource},
};
use llm_local_weights::Checkpoint;
use serde_json::json;

use crate::{Result, files, stats::Quartiles};

/// The median of merge / copy that is wanted.
const GOAL: f64 = 2.0;

/// How many tensors a load reads at a time at most, as the candle backend has it.
const MOST_READERS: usize = 8;

/// Rank of the synthetic adapter.
const RANK: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a folder or a GGUF file; without one, layers of the shapes of Llama 2 7B in bf16, with an adapter of rank
    /// 8 on all linear layers.
    base: Option<PathBuf>,
    /// The adapter's folder.
    #[arg(long, requires = "base")]
    adapter: Option<PathBuf>,
    /// How many such layers.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// How many pairs of each kind are measured.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
}

/// The tensors of a base, in memory.
struct InMemory {
    entries: Arc<[TensorEntry]>,
    bytes: HashMap<String, Vec<u8>>,
}

impl TensorSource for InMemory {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> llm_local::Result<TensorData<'_>> {
        assert!(want.is_none(), "the merge reads a base as it is stored");
        Ok(TensorData::Borrowed(&self.bytes[name]))
    }
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    let (what, base, adapter, info) = match (&args.base, &args.adapter) {
        (Some(base), Some(adapter)) => {
            let what = format!("{} into {}", files::name(adapter), files::name(base));
            let (tensors, info) = loaded(base)?;
            (what, tensors, lora::read(&ArtifactRef::file(adapter)?, &listed(adapter)?)?, info)
        }
        (None, _) => {
            let what = format!("rank {RANK} into {} layers of a 7B model in bf16", args.layers);
            let (tensors, adapter, info) = synthetic(args.layers);
            (what, tensors, adapter, info)
        }
        (Some(_), None) => return Err("expected --adapter with a model".into()),
    };
    println!("merge, {} threads, {} pairs: {what}", files::threads(), args.pairs);
    compare(base, adapter, &info, args.pairs)
}

/// What is measured, in turn.
const SIDES: [&str; 4] = [
    "merge into memory that is there",
    "copy into memory that is there",
    "merge into new memory",
    "copy into new memory",
];

/// Merges and copies in turn, into memory that is there (all of whose pages were written before) and into new memory (whose
/// pages the kernel has to make).
fn compare(base: InMemory, adapter: LoraAdapter, info: &ModelInfo, pairs: u16) -> Result<()> {
    let base = Arc::new(base);
    let adapters = vec![(Arc::new(adapter), 1.0)];
    let merged = MergedSource::new(base.clone(), adapters, info)?;
    let touched: Vec<_> = merged.report().touched.iter().map(|touched| touched.name.as_str()).collect();
    let from: Vec<u8> = touched.iter().flat_map(|name| &base.bytes[*name]).copied().collect();
    let bytes_of =
        |name: &&str| merged.entry(name).and_then(TensorEntry::stored_bytes).ok_or("a tensor without a size");
    let sizes = touched.iter().map(bytes_of).collect::<Result<Vec<_>, _>>()?;
    let written: usize = sizes.iter().sum();
    let mut there = vec![1; written];
    let mut seconds = SIDES.map(|_| Vec::new());
    // The first round starts threads and makes pages.
    for round in 0..=pairs {
        let mut order = [0, 1, 2, 3];
        order.rotate_left(usize::from(round) % SIDES.len());
        for side in order {
            let start = Instant::now();
            match side {
                0 => {
                    let mut rest = &mut there[..];
                    let each = touched.iter().zip(&sizes).map(|(name, size)| {
                        let (out, after) = mem::take(&mut rest).split_at_mut(*size);
                        rest = after;
                        (*name, out)
                    });
                    several_at_a_time(each.collect(), |(name, out)| merged.read_into(name, None, out))?;
                }
                1 => copy(&from, &mut there),
                2 => {
                    several_at_a_time(touched.clone(), |name| merged.read(name, None).map(black_box).map(drop))?;
                }
                _ => {
                    let mut new = vec![0; written];
                    copy(&from, &mut new);
                    black_box(new);
                }
            }
            if round > 0 {
                seconds[side].push(start.elapsed().as_secs_f64());
            }
            black_box(&there);
        }
    }
    let gigabytes = (from.len() + written) as f64 / 1e9;
    let (read, write) = (from.len() as f64 / 1e6, written as f64 / 1e6);
    println!("  {} tensors, {read:.1} MB read and {write:.1} MB written", touched.len());
    for (what, seconds) in SIDES.iter().zip(&seconds) {
        let median = Quartiles::of(seconds.iter().copied()).median;
        println!("  {what:<31} {median:.4} s ({:.1} GB/s)", gigabytes / median);
    }
    let ratio = |merge: usize, copy: usize| {
        Quartiles::of(seconds[merge].iter().zip(&seconds[copy]).map(|(merge, copy)| merge / copy))
    };
    let goal = ratio(0, 1);
    println!("  merge/copy into new memory           {}", ratio(2, 3));
    println!(
        "  merge/copy into memory that is there {goal}, at most {GOAL}: {}",
        if goal.median <= GOAL { "met" } else { "MISSED" }
    );
    Ok(())
}

/// Reads several tensors at a time, one per thread, on as many threads as loads do.
fn several_at_a_time<T: Send>(tensors: Vec<T>, read: impl Fn(T) -> llm_local::Result<()> + Sync) -> Result<()> {
    let tensors = Mutex::new(tensors.into_iter());
    let next = || tensors.lock().expect("nobody panics while taking the next").next();
    let reader = || iter::from_fn(next).try_for_each(&read);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..files::threads().min(MOST_READERS)).map(|_| scope.spawn(reader)).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a merge does not panic"))
    })?;
    Ok(())
}

/// Reads all of `from` and writes all of `into`, each thread its part.
fn copy(from: &[u8], into: &mut [u8]) {
    let threads = files::threads();
    let (part, part_from) = (into.len().div_ceil(threads), from.len().div_ceil(threads));
    thread::scope(|scope| {
        for (into, from) in into.chunks_mut(part).zip(from.chunks(part_from)) {
            scope.spawn(move || {
                // A result may be larger than what it is made of, where blocks become floats.
                for into in into.chunks_mut(from.len()) {
                    into.copy_from_slice(&from[..into.len()]);
                }
                black_box(&into);
            });
        }
    });
}

/// The model at `path`, copied into memory.
fn loaded(path: &Path) -> Result<(InMemory, ModelInfo)> {
    let Checkpoint { info, tensors, .. } = Checkpoint::open(&files::name(path), &listed(path)?)?;
    let bytes = |entry: &TensorEntry| -> Result<_> {
        let TensorData::Borrowed(bytes) = tensors.read(&entry.name, None)? else {
            return Err(format!("`{}` is not in the file as it is", entry.name).into());
        };
        Ok((entry.name.clone(), bytes.to_vec()))
    };
    let bytes = tensors.entries().iter().map(bytes).collect::<Result<_>>()?;
    Ok((InMemory { entries: info.tensors.clone(), bytes }, (*info).clone()))
}

/// The files at `path`, by name: those of a folder, or the one that it is.
fn listed(path: &Path) -> Result<BTreeMap<String, PathBuf>> {
    if path.is_file() {
        return Ok(BTreeMap::from([(files::name(path), path.to_owned())]));
    }
    let entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
    let paths = entries.collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().map(|path| (files::name(&path), path)).collect())
}

/// Layers of the shapes of Llama 2 7B, and an adapter on all their linear layers.
fn synthetic(layers: usize) -> (InMemory, LoraAdapter, ModelInfo) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false
    });
    let format = ModelFormat::Safetensors { config: Arc::new(config) };
    let described = ModelInfo::new("7B", format.clone(), []);
    let decoder = described.decoder.expect("the config above is one of Llama");
    let entries: Arc<[TensorEntry]> = decoder
        .base_tensors(Layout::HuggingFace)
        .into_iter()
        .map(|tensor| TensorEntry::new(tensor.name, tensor.shape, Encoding::Float(FloatType::Bf16)))
        .collect();
    let is_linear = |entry: &&TensorEntry| entry.name.contains("_proj");
    let modules = entries.iter().filter(is_linear).map(|entry| {
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        let name = entry.name.strip_suffix(".weight").expect("a weight");
        let values = |count| -> Vec<f32> { (0..count).map(|i| (i % 97) as f32 * 1e-4 - 0.005).collect() };
        LoraModule::new(name, (RANK, columns, rows), values(RANK * columns), values(rows * RANK), 2.0)
    });
    let adapter = LoraAdapter::new("synthetic", "synthetic", modules.collect());
    // Small numbers, each of its own: bf16 of 2^-9 to 2^-2 with both signs.
    let value =
        |i: usize| 0x3b00 + (i.wrapping_mul(7919) % 0x380) as u16 + if i.is_multiple_of(2) { 0x8000 } else { 0 };
    let bytes = entries.iter().filter(is_linear).map(|entry| {
        let count = entry.shape.iter().product::<usize>();
        (entry.name.clone(), (0..count).flat_map(|i| value(i).to_le_bytes()).collect())
    });
    let bytes = bytes.collect();
    let info = ModelInfo::new("7B", format, entries.clone());
    (InMemory { entries, bytes }, adapter, info)
}
