//! Logits of GGUF files against those of the very same weights, dequantized to f32 when the file is opened.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{
    Device,
    quantized::{GgmlDType, QStorage, QTensor},
};
use llm_local::{
    ComputeDtype, Engine, LogitsRequest,
    core::{
        Encoding, FloatType, GgmlType, LoadOptions, LoadedModel, ModelFormat, ModelWeights, TensorData, TensorEntry,
        TensorSource,
        model::{GgufMetadata, ModelInfo},
    },
};
use llm_local_weights::Checkpoint;

use crate::{Result, files, ours};

/// Words by which each prompt is longer than the one before.
const STEP: usize = 16;
/// Tokens that prompts may have.
const CONTEXT: usize = 512;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// A text, whose beginnings of 16, 32, 48, ... words are the prompts.
    #[arg(long)]
    text: PathBuf,
    /// The unquantized model, to which each quantized one is compared too.
    #[arg(long)]
    original: PathBuf,
    /// The largest mean KL divergence, in nats, from a file's own weights in f32 that passes.
    #[arg(long)]
    divergence: f64,
    /// The largest difference of a logit from that of the file's own weights in f32 that passes.
    #[arg(long)]
    difference: f64,
    /// The largest mean KL divergence from the unquantized model that passes.
    #[arg(long)]
    loss: f64,
}

pub(crate) fn check(args: &Args) -> Result<()> {
    let prompts = prompts(&args.text)?;
    let engine = ours::engine()?;
    let original = of_weights(&engine, &args.original, &prompts)?;
    println!(
        "logits after {} prompts, against the same weights in f32: largest difference (at most {}), mean KL divergence \
         in nats (at most {}), share of equal best tokens; and the KL divergence from {} (at most {})",
        prompts.len(),
        args.difference,
        args.divergence,
        files::name(&args.original),
        args.loss
    );
    let mut failures = Vec::new();
    for path in &args.models {
        let found = of_file(&engine, path, &prompts)?;
        let expected = of_weights(&engine, path, &prompts)?;
        let (own, loss) = (Distance::of(&found, &expected), Distance::of(&found, &original));
        println!(
            "  {:<34} {:>7.4} {:>10.2e} {:>3}/{}   {:>10.2e}",
            files::name(path),
            own.largest,
            own.divergence,
            own.same_best,
            prompts.len(),
            loss.divergence
        );
        // Written so that NaN fails.
        let passes =
            own.largest <= args.difference && own.divergence <= args.divergence && loss.divergence <= args.loss;
        if !passes {
            failures.push(files::name(path));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(format!("too far apart: {}", failures.join(", ")).into()) }
}

/// Beginnings of the text.
fn prompts(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let prompts: Vec<_> = (1..=words.len() / STEP).map(|n| words[..STEP * n].join(" ")).collect();
    if prompts.is_empty() {
        return Err(format!("{}: it has fewer than {STEP} words", path.display()).into());
    }
    Ok(prompts)
}

/// Logits of the file, as an application gets them.
fn of_file(engine: &Engine, path: &Path, prompts: &[String]) -> Result<Vec<Vec<f32>>> {
    let model = pollster::block_on(engine.load(&ours::spec(path, None, ComputeDtype::Auto)?))?;
    let logits = prompts.iter().map(|text| pollster::block_on(model.logits(LogitsRequest::new(text.as_str()))));
    let logits = logits.collect::<Result<Vec<_>, _>>()?;
    pollster::block_on(model.unload())?;
    Ok(logits)
}

/// Logits of the file's weights in f32, computed by the same backend.
fn of_weights(engine: &Engine, path: &Path, prompts: &[String]) -> Result<Vec<Vec<f32>>> {
    let name = files::name(path);
    let checkpoint = Checkpoint::open(&name, &BTreeMap::from([(name.clone(), path.to_owned())]))?;
    let weights = Dequantized::new(checkpoint.tensors);
    let ModelFormat::Gguf { metadata } = &checkpoint.info.format else {
        return Err(format!("{name}: it is no GGUF file").into());
    };
    let info =
        ModelInfo::new(&name, ModelFormat::Gguf { metadata: Arc::<GgufMetadata>::clone(metadata) }, weights.entries());
    let weights = ModelWeights::new(Arc::new(info), Some(Arc::new(weights)), checkpoint.text);
    let backend = engine.registry().backend("candle")?;
    let options = LoadOptions::new(CONTEXT).with_dtype(ComputeDtype::F32);
    let model: Arc<dyn LoadedModel> = pollster::block_on(backend.load(weights, options))?;
    let logits = prompts.iter().map(|text| pollster::block_on(model.logits(LogitsRequest::new(text.as_str()))));
    let logits = logits.collect::<Result<Vec<_>, _>>()?;
    pollster::block_on(model.unload())?;
    Ok(logits)
}

/// The tensors of another source, of which the quantized ones are given as f32.
struct Dequantized {
    inner: Arc<dyn TensorSource>,
    entries: Vec<TensorEntry>,
}

impl Dequantized {
    fn new(inner: Arc<dyn TensorSource>) -> Self {
        let entries = inner.entries().iter().cloned().map(|mut entry| {
            if let Encoding::Ggml(_) = entry.encoding {
                entry.encoding = Encoding::Float(FloatType::F32);
            }
            entry
        });
        Self { entries: entries.collect(), inner }
    }
}

impl TensorSource for Dequantized {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, name: &str, want: Option<FloatType>) -> llm_local::Result<TensorData<'_>> {
        let stored = self.inner.entry(name);
        let Some((shape, Encoding::Ggml(kind))) = stored.map(|entry| (&entry.shape, entry.encoding)) else {
            return self.inner.read(name, want);
        };
        let failed = |reason: String| llm_local::Error::load(name, reason);
        if !matches!(want, None | Some(FloatType::F32)) {
            return Err(failed(format!("it is wanted as {want:?}, and this source gives f32")));
        }
        let bytes = match self.inner.read(name, None)? {
            TensorData::Borrowed(bytes) => bytes.to_vec(),
            TensorData::Bytes(bytes) => bytes,
            other => return Err(failed(format!("it came as {other:?}, not as blocks"))),
        };
        dequantize(&bytes, kind, shape).map(TensorData::F32).map_err(|e| failed(e.to_string()))
    }
}

fn dequantize(bytes: &[u8], kind: GgmlType, shape: &[usize]) -> Result<Vec<f32>> {
    let dtype = match kind {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        other => return Err(format!("{other} is not among the types that are compared").into()),
    };
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, dtype)?;
    Ok(QTensor::new(storage, shape)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?)
}

/// How far logits are from others.
struct Distance {
    /// The largest absolute difference; NaN if any is.
    largest: f64,
    /// The mean over the prompts of the KL divergence of the found from the expected distribution, in nats.
    divergence: f64,
    /// Prompts after which both have the same best token.
    same_best: usize,
}

impl Distance {
    fn of(found: &[Vec<f32>], expected: &[Vec<f32>]) -> Self {
        let pairs = || found.iter().zip(expected);
        let differences = pairs().flat_map(|(f, e)| f.iter().zip(e).map(|(f, e)| f64::from((f - e).abs())));
        Self {
            largest: differences.fold(0.0, |most, d| if most.is_nan() || d <= most { most } else { d }),
            divergence: pairs().map(|(f, e)| divergence(e, f)).sum::<f64>() / found.len() as f64,
            same_best: pairs().filter(|(f, e)| best(f) == best(e)).count(),
        }
    }
}

/// The KL divergence of the distribution of the logits `q` from that of `p`, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().map(|x| f64::from(*x)).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    logits.iter().map(|x| f64::from(*x) - largest - sum.ln()).collect()
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 / 2 + ln (2/3) / 2.
        let found = divergence(&[1.0, 1.0], &[0.0, 3f32.ln()]);
        assert!((found - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-7, "{found}");
        assert_eq!(divergence(&[0.5, -2.0], &[0.5, -2.0]), 0.0);
    }

    #[test]
    fn a_nan_is_far_from_everything() {
        let distance = Distance::of(&[vec![1.0, f32::NAN]], &[vec![1.0, 2.0]]);
        assert!(distance.largest.is_nan() && distance.divergence.is_nan());
        let distance = Distance::of(&[vec![1.0, 4.0]], &[vec![1.5, 2.0]]);
        assert_eq!((distance.largest, distance.same_best), (2.0, 1));
    }
}
