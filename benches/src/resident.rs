//! Resident memory of a GGUF model, in a process of its own: what loading it adds, and whether it comes back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use llm_local::{ComputeDtype, GenerateRequest, GenerationEvent, Model};
use serde::{Deserialize, Serialize};

use crate::{Result, files, ours};

/// Tokens generated.
const TOKENS: usize = 32;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The models: GGUF files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// What may come on top of the file and the KV cache: the tokenizer, and what the program allocates. In MB (10^6 bytes). It is also what
    /// may stay after the model is unloaded.
    #[arg(long, default_value_t = 12)]
    slack: u64,
    /// What may come on top while tokens are generated: activations, and what the allocator keeps of them. In MB.
    #[arg(long, default_value_t = 16)]
    working: u64,
}

/// Resident memory, in bytes.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub(crate) struct Resident {
    /// All of it (VmRSS) but the program's own pages, which come in as it runs, and of which a build for tests has more.
    pub(crate) all: u64,
    /// What is no page of a file (RssAnon).
    pub(crate) anonymous: u64,
}

/// What a process saw.
#[derive(Serialize, Deserialize)]
struct Seen {
    before: Resident,
    loaded: Resident,
    /// At the last token, with the generation's KV cache.
    generating: Resident,
    /// Bytes of that cache, as the model reports them.
    kv_cache: u64,
    unloaded: Resident,
    /// After the allocator has given back what it kept.
    trimmed: Resident,
    /// VmHWM, less the same.
    peak: u64,
}

pub(crate) fn measure(args: &Args) -> Result<()> {
    println!(
        "resident memory in MB (anonymous part in brackets), growth since before the load; at most file + KV cache + {} \
         MB when loaded, {} more while generating, {} when unloaded",
        args.slack, args.working, args.slack
    );
    println!(
        "  {:<34} {:>7} {:>8} {:>8} {:>16} {:>16} {:>7} {:>16} {:>16}",
        "", "file", "KV cache", "at most", "loaded", "at token 32", "peak", "unloaded", "heap trimmed"
    );
    let failures = args.models.iter().map(|path| one(path, args)).collect::<Result<Vec<_>>>()?;
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

/// Prints the row of one file; gives what is wrong with it.
fn one(path: &Path, args: &Args) -> Result<Option<String>> {
    // Beforehand, so that whether it is cached makes no difference.
    let file = files::touch(path)?;
    let output = Command::new(std::env::current_exe()?).arg("held").arg(path).output()?;
    if !output.status.success() {
        return Err(format!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    let seen: Seen = serde_json::from_slice(&output.stdout)?;
    let grown = |now: Resident| {
        let growth = |now: u64, then: u64| (now as f64 - then as f64) / 1e6;
        let (all, anonymous) = (growth(now.all, seen.before.all), growth(now.anonymous, seen.before.anonymous));
        format!("{all:.1} ({anonymous:.1})")
    };
    let mb = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    let (slack, working) = (args.slack * 1_000_000, args.working * 1_000_000);
    let most = file + seen.kv_cache + slack;
    println!(
        "  {:<34} {:>7} {:>8} {:>8} {:>16} {:>16} {:>7} {:>16} {:>16}",
        files::name(path),
        mb(file),
        mb(seen.kv_cache),
        mb(most),
        grown(seen.loaded),
        grown(seen.generating),
        mb(seen.peak - seen.before.all),
        grown(seen.unloaded),
        grown(seen.trimmed)
    );
    let judged = [
        ("loaded", seen.loaded, most),
        ("at token 32", seen.generating, most + working),
        ("unloaded", seen.unloaded, slack),
    ];
    let failures = judged.iter().filter_map(|(when, now, most)| {
        let growth = now.all.saturating_sub(seen.before.all);
        (growth > *most).then(|| format!("{} MB {when}, at most {} are allowed", mb(growth), mb(*most)))
    });
    let failures: Vec<String> = failures.collect();
    Ok((!failures.is_empty()).then(|| format!("{}: {}", files::name(path), failures.join(", "))))
}

/// Loads, generates and unloads, and prints what was seen; `measure` runs it.
pub(crate) fn held(base: &Path) -> Result<()> {
    let (engine, spec) = (ours::engine()?, ours::spec(base, None, ComputeDtype::Auto)?);
    let before = resident()?;
    let model = pollster::block_on(engine.load(&spec))?;
    let loaded = resident()?;
    let (generating, kv_cache) = pollster::block_on(generate(&model))?;
    pollster::block_on(model.unload())?;
    drop((model, engine));
    let unloaded = resident()?;
    trim_heap();
    let (trimmed, peak) = (resident()?, status("VmHWM")?.saturating_sub(program()?));
    let seen = Seen { before, loaded, generating, kv_cache, unloaded, trimmed, peak };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

/// Memory at the last of some tokens, and the bytes of their KV cache.
async fn generate(model: &Model) -> Result<(Resident, u64)> {
    let mut generation =
        model.generate(GenerateRequest::new("Once upon a time").with_max_tokens(TOKENS).with_ignore_eos(true));
    let (mut seen, mut tokens) = (None, 0);
    while let Some(event) = generation.next().await {
        if let GenerationEvent::Token { .. } = event? {
            tokens += 1;
            // The worker drops the cache with the last token, so the one before it counts.
            if tokens + 1 == TOKENS {
                seen = Some((resident()?, model.memory().kv_cache));
            }
        }
    }
    match seen {
        Some((_, 0)) => Err("the model reports no KV cache while it generates".into()),
        Some(seen) => Ok(seen),
        None => Err(format!("only {tokens} tokens were generated; expected {TOKENS}").into()),
    }
}

pub(crate) fn resident() -> Result<Resident> {
    Ok(Resident { all: status("VmRSS")?.saturating_sub(program()?), anonymous: status("RssAnon")? })
}

/// Resident bytes of the program itself.
fn program() -> Result<u64> {
    let program = std::env::current_exe()?;
    let maps =
        fs::read_to_string("/proc/self/smaps").map_err(|e| format!("/proc/self/smaps: {e}; this needs Linux"))?;
    Ok(mapped(&maps, &program).ok_or_else(|| format!("/proc/self/smaps has no {}", program.display()))?)
}

/// Resident bytes of what is mapped from `file`, by a `/proc/*/smaps` text; none where it is not mapped.
fn mapped(smaps: &str, file: &Path) -> Option<u64> {
    let file = file.to_str()?;
    let (mut within, mut found) = (false, None);
    for line in smaps.lines() {
        // Every mapping begins with its range of addresses, and ends with what it is of.
        if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            within = line.strip_suffix(file).is_some_and(|before| before.ends_with(' '));
        } else if within {
            found = parse(line, "Rss").map(|bytes| found.unwrap_or(0) + bytes).or(found);
        }
    }
    found
}

/// A size in this process's status, in bytes.
pub(crate) fn status(key: &str) -> Result<u64> {
    let text =
        fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}; this needs Linux"))?;
    let size = parse(&text, key).ok_or_else(|| format!("/proc/self/status has no {key} in kB; this needs Linux"))?;
    Ok(size)
}

/// The size `key` of a `/proc/*/status` text, in bytes.
pub(crate) fn parse(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Lets glibc's allocator give back what it keeps for later.
fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t   12 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(parse(status, "VmHWM"), Some(12 * 1024));
        assert_eq!(parse(status, "VmRSS"), Some(1024));
        assert_eq!(parse(status, "RssAnon"), None);
    }

    #[test]
    fn what_is_mapped_from_a_file_is_counted_over_its_mappings() {
        let smaps = "1000-3000 r-xp 00000000 fe:00 7      /a/program\nSize:      8 kB\nRss:       4 kB\nPss:       4 kB\n\
                     3000-4000 rw-p 00000000 00:00 0      [heap]\nRss:     100 kB\n\
                     5000-6000 r--p 00002000 fe:00 7      /a/program\nRss:       2 kB\n\
                     7000-8000 r--p 00000000 fe:00 9      /b/a/program\nRss:     400 kB\n";
        assert_eq!(mapped(smaps, Path::new("/a/program")), Some(6 * 1024));
        assert_eq!(mapped(smaps, Path::new("/c")), None);
    }
}
