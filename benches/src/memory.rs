//! Peak memory of a load with an adapter against without, each in a process of its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use llm_local::ComputeDtype;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::{Pairs, Result, files, ours, resident, stats::Quartiles};

/// What may come on top of the touched tensors in work and the adapter.
const SLACK: u64 = 16 << 20;

pub(crate) fn measure(args: &Pairs) -> Result<()> {
    files::touch(&args.base)?;
    files::touch(&args.adapter)?;
    let adapter = Some(args.adapter.as_path());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..args.pairs {
        if pair % 2 == 0 {
            with.push(child(&args.base, adapter)?);
            without.push(child(&args.base, None)?);
        } else {
            without.push(child(&args.base, None)?);
            with.push(child(&args.base, adapter)?);
        }
    }
    let threads = files::threads();
    let (largest, held) = adapter_sizes(&args.adapter)?;
    let bound = mib(threads as u64 * largest + held + SLACK);
    let (with, without) = (Quartiles::of(with), Quartiles::of(without));
    let difference = with.median - without.median;
    println!(
        "peak memory, {threads} threads: {} with {} against without, {} processes each (VmHWM); MiB, median [quartiles]",
        files::name(&args.base),
        files::name(&args.adapter),
        args.pairs
    );
    println!("  with {with:.1}   without {without:.1}   difference of the medians {difference:.1}");
    println!(
        "  at most {bound:.1} = {threads} threads × {:.1} (largest touched tensor in f32) + {:.1} (adapter) + {:.1}: {}",
        mib(largest),
        mib(held),
        mib(SLACK),
        if difference <= bound { "met" } else { "MISSED" }
    );
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct Peak {
    /// The model: a folder or a GGUF file.
    base: PathBuf,
    /// The adapter's folder.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Computes in f16 instead of what suits this machine.
    #[arg(long)]
    half: bool,
}

/// What a load took.
#[derive(Serialize, Deserialize)]
struct Took {
    seconds: f64,
    /// Resident bytes before (VmRSS).
    before: u64,
    /// Most resident bytes (VmHWM).
    peak: u64,
}

/// Loads, and prints what that took.
pub(crate) fn peak(args: &Peak) -> Result<()> {
    let dtype = if args.half { ComputeDtype::F16 } else { ComputeDtype::Auto };
    let memory = |what| -> Result<u64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let missing = || format!("/proc/self/status has no {what} in kB; this needs Linux");
        Ok(resident::parse(&status, what).ok_or_else(missing)?)
    };
    let before = memory("VmRSS")?;
    let start = Instant::now();
    let spec = ours::spec(&args.base, args.adapter.as_deref(), dtype)?;
    let model = pollster::block_on(ours::engine()?.load(&spec))?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&Took { seconds, before, peak: memory("VmHWM")? })?);
    drop(model);
    Ok(())
}

/// The peak of a process that loads, in MiB.
fn child(base: &Path, adapter: Option<&Path>) -> Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("peak").arg(base);
    if let Some(adapter) = adapter {
        command.arg("--adapter").arg(adapter);
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let took: Took = serde_json::from_slice(&output.stdout)?;
    Ok(mib(took.peak))
}

/// Bytes of the largest tensor that the PEFT adapter touches, in f32, and of the adapter as it is stored.
fn adapter_sizes(folder: &Path) -> Result<(u64, u64)> {
    let bytes = fs::read(folder.join("adapter_model.safetensors"))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let (mut inputs, mut outputs) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in tensors.iter() {
        match (name.strip_suffix(".lora_A.weight"), name.strip_suffix(".lora_B.weight"), tensor.shape()) {
            (Some(module), _, &[_, columns]) => drop(inputs.insert(module, columns as u64)),
            (_, Some(module), &[rows, _]) => drop(outputs.insert(module, rows as u64)),
            _ => return Err(format!("{}: `{name}` is no LoRA matrix", folder.display()).into()),
        }
    }
    let sizes = inputs.iter().filter_map(|(module, columns)| Some(4 * columns * outputs.get(module)?));
    let largest = sizes.max().ok_or_else(|| format!("{}: no pair of LoRA matrices", folder.display()))?;
    Ok((largest, bytes.len() as u64))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_touched_tensor_of_the_fixture_is_a_feed_forward_matrix() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smollm2-135m-lora-json-peft");
        assert_eq!(adapter_sizes(&folder).unwrap(), (1536 * 576 * 4, 4_938_648));
    }
}
