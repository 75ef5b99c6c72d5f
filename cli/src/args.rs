//! Arguments.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use llm_local::{
    AdapterPolicy, AdapterSpec, ArtifactRef, BackendPreference, ComputeDtype, ContextLength, Error, KvCacheType,
    ModelSpec, Result, Sampling,
    core::Allowance,
    lora::{BareFormat, Combination},
    memory::MemoryPolicy,
};

use crate::{memory::Memory, sample};

/// Runs language models with LoRA adapters on this machine.
#[derive(Debug, Parser)]
#[command(name = "llm-local", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate text: the answer goes to standard output, statistics to standard error.
    Run(Run),
    /// Chat: each line of standard input is a turn. /system TEXT, /undo, /reset and /save FILE do what they say.
    Chat(Chat),
    /// Show what a run would use, and why.
    Plan(Plan),
    /// Show what this machine has for models, what limits it, and which models fit. Fails if one that is named cannot run.
    Doctor(Doctor),
    /// Write a model, its adapters merged in, as a Hugging Face folder.
    Export(Export),
    /// Fetch models, or adapters, without running them. What was interrupted goes on where it was.
    Pull(Pull),
    /// List what was fetched.
    List,
    /// Delete what was fetched: all revisions, unless the ref names one.
    Rm {
        /// What to delete.
        #[arg(value_name = "REF", required = true)]
        references: Vec<String>,
    },
    /// Read every fetched file again, and compare it with its digest.
    Verify(Verify),
    /// Free what interrupted downloads have left. To go on with one, pull it again instead.
    Clean {
        /// Only what nothing was added to for so many days.
        #[arg(long, value_name = "DAYS", default_value_t = 7)]
        older_than: u32,
    },
    /// Write down what models and adapters mean now, to the byte, for --lock.
    Lock(Lock),
    /// The adapters that are kept, and their versions.
    #[command(subcommand)]
    Adapter(Adapter),
    /// List the registered backends and sources.
    Plugins,
}

impl Command {
    /// How much memory this command may take.
    ///
    /// # Errors
    /// As [`Memory::policy`].
    pub(crate) fn memory(&self) -> Result<MemoryPolicy> {
        match self {
            Self::Run(Run { spec, memory, .. })
            | Self::Chat(Chat { spec, memory, .. })
            | Self::Plan(Plan { spec, memory }) => memory.policy(spec.context_length.is_some()),
            Self::Doctor(Doctor { memory, .. }) => memory.policy(false),
            _ => Ok(MemoryPolicy::new()),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Adapter {
    /// List what is kept, with all versions.
    List,
    /// List the versions that there are, newest first.
    Versions(AdapterRef),
    /// Take the newest version: a ref without a version means it from then on.
    Update(AdapterRef),
    /// Stay at one version: a ref without a version means it until unpin.
    Pin {
        #[command(flatten)]
        adapter: AdapterRef,
        /// A tag, or a revision; without it, the version that was used last.
        version: Option<String>,
    },
    /// Follow what is newer again.
    Unpin(AdapterRef),
    /// Go back to the version before, and stay there until update or unpin.
    Rollback(AdapterRef),
    /// Delete one version, or all.
    Rm {
        #[command(flatten)]
        adapter: AdapterRef,
        /// A tag, or a revision; without it the version that the ref names goes, or all if it names none.
        version: Option<String>,
    },
    /// Show what an adapter is: format, base, rank, scaling, features, targets.
    Inspect(AdapterSaid),
    /// Show whether an adapter fits a model, and everything that keeps it from that. Of the model headers alone are read.
    Check(Check),
    /// Write an adapter in another format; what that cannot express is refused.
    Convert(Convert),
}

#[derive(Debug, clap::Args)]
pub(crate) struct AdapterRef {
    /// A ref such as `github:owner/repo`, `hf:org/name`, or a path.
    #[arg(value_name = "REF")]
    text: String,
}

impl AdapterRef {
    pub(crate) fn reference(&self) -> Result<ArtifactRef> {
        reference(&self.text, sample::ADAPTER).map_err(|e| e.into_adapter(format!("`{}`", self.text)))
    }
}

/// An adapter, and what is said of it.
#[derive(Debug, clap::Args)]
pub(crate) struct AdapterSaid {
    #[command(flatten)]
    adapter: AdapterRef,
    #[command(flatten)]
    said: Said,
}

impl AdapterSaid {
    pub(crate) fn spec(&self) -> Result<AdapterSpec> {
        self.said.of(AdapterSpec::new(self.adapter.reference()?))
    }
}

/// What is said of an adapter that its files do not say, and what is let pass of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Said {
    /// What B @ A is multiplied by, of an adapter whose files do not say it: alpha / r of PEFT's (alpha / sqrt(r) with
    /// rsLoRA), the scale of mlx-lm's.
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// How the tensors of a safetensors file without a config are named and laid out.
    #[arg(long, value_enum, value_name = "FORMAT")]
    adapter_format: Option<Bare>,
    /// Let something pass that is an error else: unused-tensors, undeclared-tensors, missing-tensors, unknown-fields,
    /// no-effect. May be given several times.
    #[arg(long, value_name = "WHAT")]
    allow: Vec<Allowance>,
}

impl Said {
    /// `adapter` with what is said of it. The error is that it says otherwise itself.
    fn of(&self, mut adapter: AdapterSpec) -> Result<AdapterSpec> {
        let differs = |option: &str, given: String, own: String| {
            let reason = format!("{option} is {given}, and `--adapter` of it says {own}; give one of them");
            Error::invalid_spec(option, reason).into_adapter(&adapter.reference)
        };
        let format = self.adapter_format.map(BareFormat::from);
        if let (Some(given), Some(own)) = (self.scale, adapter.scale)
            && given != own
        {
            return Err(differs("--scale", given.to_string(), own.to_string()));
        }
        if let (Some(given), Some(own)) = (format, adapter.format)
            && given != own
        {
            return Err(differs("--adapter-format", given.as_str().into(), own.as_str().into()));
        }
        adapter.scale = self.scale.or(adapter.scale);
        adapter.format = format.or(adapter.format);
        adapter.allow.extend(self.allow.iter().copied());
        Ok(adapter)
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Bare {
    Peft,
    MlxLm,
}

impl From<Bare> for BareFormat {
    fn from(format: Bare) -> Self {
        match format {
            Bare::Peft => Self::Peft,
            Bare::MlxLm => Self::MlxLm,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    pub(crate) adapter: AdapterSaid,
    /// The format to write.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) to: Format,
    /// The model that the adapter is for, of which headers alone are read: GGUF needs it, to it and from it.
    #[arg(long, value_name = "REF")]
    base: Option<String>,
    /// A new folder, or for GGUF a new file that ends in .gguf.
    #[arg(value_name = "OUT")]
    pub(crate) into: PathBuf,
}

impl Convert {
    pub(crate) fn base(&self) -> Result<Option<ArtifactRef>> {
        self.base.as_deref().map(model).transpose()
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Format {
    Peft,
    MlxLm,
    Gguf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// The model: a folder or a ref.
    base: String,
    #[command(flatten)]
    pub(crate) adapter: AdapterSaid,
    /// Measure how much the adapter changes, too: reads the weights that it changes, of a model that is on this machine.
    #[arg(long)]
    pub(crate) effect: bool,
    /// Show it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Check {
    pub(crate) fn base(&self) -> Result<ArtifactRef> {
        model(&self.base)
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Lock {
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) spec: Spec,
    /// A new folder.
    #[arg(value_name = "OUT")]
    pub(crate) into: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) spec: Spec,
    #[command(flatten)]
    memory: Memory,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Models to judge, beside those that are kept: folders, files, refs, or `sample`.
    #[arg(value_name = "REF")]
    pub(crate) references: Vec<String>,
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// Show it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spec: Spec,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    pub(crate) how: How,
    /// Take the prompt as it is, without the model's chat template.
    #[arg(long, conflicts_with = "system")]
    pub(crate) raw: bool,
    /// The prompt; without it, standard input is read.
    pub(crate) prompt: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Chat {
    #[command(flatten)]
    pub(crate) spec: Spec,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    pub(crate) how: How,
    /// Goes on with the chat in this file, if it is there, and saves to it at the end.
    #[arg(long, value_name = "FILE")]
    pub(crate) session: Option<PathBuf>,
    /// Takes from that file its messages alone, which any model can go on with; the chat is then computed anew.
    #[arg(long, requires = "session")]
    pub(crate) messages_only: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// They are adapters, not models.
    #[arg(long)]
    pub(crate) adapter: bool,
    /// What is in this lock file, as it was locked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["references", "adapter"])]
    pub(crate) lock: Option<PathBuf>,
    /// Refs such as `hf:org/name`, `hf:org/name@revision`, `hf:org/name#file.gguf`, `github:owner/repo@tag`.
    #[arg(value_name = "REF", required_unless_present = "lock")]
    references: Vec<String>,
}

impl Pull {
    pub(crate) fn references(&self) -> impl Iterator<Item = Result<ArtifactRef>> {
        self.references.iter().map(|text| match text.parse() {
            Err(error) if self.adapter => Err(Error::into_adapter(error, format!("`{text}`"))),
            parsed => parsed,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// What to verify; without it, everything.
    #[arg(value_name = "REF")]
    pub(crate) reference: Option<String>,
    /// Remove the damaged files, so that the next pull brings them anew.
    #[arg(long)]
    pub(crate) repair: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct How {
    /// The system's message, for models with a chat template.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Generate at most this many tokens.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0 takes the best token always; higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// The same seed gives the same text.
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
}

impl How {
    pub(crate) fn sampling(&self) -> Sampling {
        let sampling = Sampling::greedy().with_temperature(self.temperature);
        match self.seed {
            Some(seed) => sampling.with_seed(seed),
            None => sampling,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    mut_arg("scale", |scale| scale.requires("adapter")),
    mut_arg("adapter_format", |format| format.requires("adapter")),
    mut_arg("allow", |allow| allow.requires("adapter"))
)]
pub(crate) struct Spec {
    /// The model: a folder, a GGUF file, or a ref such as `file:/models/x`. Without it, or as `sample`, the small
    /// model inside this program.
    #[arg(long, value_name = "REF", default_value = "sample")]
    model: String,
    /// A LoRA adapter: a folder or a ref, or as in a spec `{"ref": "./x", "weight": 0.5}`, with `scale`, `format` and
    /// `allow`; may be given several times. `sample` is the pirate inside this program.
    #[arg(long, value_name = "REF")]
    adapter: Vec<String>,
    #[command(flatten)]
    said: Said,
    /// How several adapters become one change: sum, or as PEFT combines them, such as cat, `ties:density=0.5` or
    /// `svd:rank=8`; or as JSON.
    #[arg(long, value_name = "HOW", default_value_t, requires = "adapter")]
    combination: Combination,
    /// How adapters get into the model.
    #[arg(long, value_enum, default_value_t = Policy::Auto)]
    adapter_policy: Policy,
    /// The largest part of what the adapters do that merge-requantized may lose, such as 0.1.
    #[arg(long, value_name = "E", required_if_eq("adapter_policy", "merge-requantized"))]
    requantize_max_error: Option<f32>,
    /// A prompt on which merge-requantized measures what is lost; may be given several times. Without it, there are some.
    #[arg(long, value_name = "TEXT", requires = "requantize_max_error")]
    probe_prompt: Vec<String>,
    /// The backend, by its name in `llm-local plugins`; without it, the best that can run the model.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// How many tokens prompt and answer may have together: so many, up to what the model was made for, or an error if they
    /// do not fit. Without it, what memory is good for.
    #[arg(long, value_name = "N")]
    context_length: Option<u32>,
    /// What dense weights are computed in.
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// What keys and values are kept in. Backends have some of these each; without it, theirs.
    #[arg(long, value_enum, default_value_t = KvCache::Auto)]
    kv_cache: KvCache,
    /// Take exactly what `llm-local lock` wrote into this file, or fail.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Policy {
    /// What loses nothing: merged into floats, beside quantized weights.
    Auto,
    /// Beside the weights.
    KeepUnmerged,
    /// Merged; quantized tensors that change become floats.
    MergeDequantized,
    /// Merged, and quantized again; what is lost is measured.
    MergeRequantized,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Dtype {
    Auto,
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KvCache {
    Auto,
    F32,
    F16,
    Bf16,
    Q8,
    Q4,
}

impl Spec {
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let mut spec = ModelSpec::new(model(&self.model)?).with_dtype(match self.dtype {
            Dtype::Auto => ComputeDtype::Auto,
            Dtype::F32 => ComputeDtype::F32,
            Dtype::F16 => ComputeDtype::F16,
            Dtype::Bf16 => ComputeDtype::Bf16,
        });
        spec = spec.with_kv_cache(match self.kv_cache {
            KvCache::Auto => KvCacheType::Auto,
            KvCache::F32 => KvCacheType::F32,
            KvCache::F16 => KvCacheType::F16,
            KvCache::Bf16 => KvCacheType::Bf16,
            KvCache::Q8 => KvCacheType::Q8,
            KvCache::Q4 => KvCacheType::Q4,
        });
        for adapter in &self.adapter {
            spec = spec.with_adapter_spec(self.said.of(adapter_spec(adapter)?)?);
        }
        if spec.adapters.len() > 1 && (self.said.scale.is_some() || self.said.adapter_format.is_some()) {
            let reason = "of which of the adapters it is is not clear; write them as `--adapter '{\"ref\": \"./x\", \
                          \"scale\": 2, \"format\": \"peft\"}'`";
            return Err(Error::invalid_spec("--scale or --adapter-format", reason));
        }
        let probe_prompts = self.probe_prompt.iter().cloned();
        spec = spec.with_combination(self.combination).with_adapter_policy(self.policy()?);
        spec = spec.with_probe_prompts(probe_prompts);
        if let Some(name) = &self.backend {
            spec = spec.with_backend(BackendPreference::from(name.clone()));
        }
        if let Some(tokens) = self.context_length {
            spec = spec.with_context_length(ContextLength::Tokens(tokens));
        }
        match &self.lock {
            Some(path) => Ok(spec.with_lock(llm_local::lock::read(path)?)),
            None => Ok(spec),
        }
    }

    fn policy(&self) -> Result<AdapterPolicy> {
        match (self.adapter_policy, self.requantize_max_error) {
            (Policy::MergeRequantized, Some(max_error)) => Ok(AdapterPolicy::MergeRequantized { max_error }),
            (Policy::Auto, None) => Ok(AdapterPolicy::Auto),
            (Policy::KeepUnmerged, None) => Ok(AdapterPolicy::KeepUnmerged),
            (Policy::MergeDequantized, None) => Ok(AdapterPolicy::MergeDequantized),
            _ => {
                let reason = "it goes with `--adapter-policy merge-requantized`, and that with it";
                Err(Error::invalid_spec("--requantize-max-error", reason))
            }
        }
    }
}

/// The adapter that `text` is: a ref, or JSON as in a spec.
fn adapter_spec(text: &str) -> Result<AdapterSpec> {
    let named = |e: Error| e.into_adapter(format!("`{text}`"));
    if text.starts_with('{') {
        let parsed = serde_json::from_str(text);
        return parsed.map_err(|e| named(Error::invalid_spec("--adapter", e.to_string())));
    }
    reference(text, sample::ADAPTER).map(AdapterSpec::new).map_err(named)
}

/// The model that `text` is.
pub(crate) fn model(text: &str) -> Result<ArtifactRef> {
    reference(text, sample::MODEL)
}

/// The ref that `text` is, or that of the sample inside this program.
fn reference(text: &str, sample: &str) -> Result<ArtifactRef> {
    if text == "sample" { sample.parse() } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(args: &[&str]) -> ModelSpec {
        let args = Args::parse_from([&["llm-local", "plan"], args].concat());
        let Command::Plan(plan) = args.command else { panic!("not plan") };
        plan.spec.spec().unwrap()
    }

    #[test]
    fn sample_is_an_alias_for_model_and_adapter() {
        assert_eq!(spec(&[]).base.to_string(), sample::MODEL);
        let both = spec(&["--model", "sample", "--adapter", "sample", "--adapter", "./x"]);
        assert_eq!(both.base.to_string(), sample::MODEL);
        assert_eq!(both.adapters[0].reference.to_string(), sample::ADAPTER);
        assert_eq!(both.adapters[1].reference.to_string(), "file:./x");
        assert_eq!(spec(&["--model", "./sample"]).base.to_string(), "file:./sample");
    }

    #[test]
    fn what_is_said_of_adapters_is_in_the_spec() {
        let json = r#"{"ref": "./y", "weight": 0.5, "scale": 2}"#;
        let both =
            spec(&["--adapter", "./x", "--adapter", json, "--allow", "no-effect", "--combination", "ties:density=0.5"]);
        assert_eq!((both.adapters[0].weight, both.adapters[1].weight, both.adapters[1].scale), (1.0, 0.5, Some(2.0)));
        assert!(both.adapters.iter().all(|adapter| adapter.allow.contains(&Allowance::NoEffect)));
        assert_eq!(both.combination.density(), Some(0.5));
        let bare = spec(&["--adapter", "./x", "--scale", "0.5", "--adapter-format", "mlx-lm"]);
        assert_eq!((bare.adapters[0].scale, bare.adapters[0].format), (Some(0.5), Some(BareFormat::MlxLm)));
        assert_eq!(spec(&["--adapter-policy", "keep-unmerged"]).adapter_policy, AdapterPolicy::KeepUnmerged);
        let requantized =
            ["--adapter-policy", "merge-requantized", "--requantize-max-error", "0.25", "--probe-prompt", "Hello"];
        let requantized = spec(&requantized);
        assert_eq!(requantized.adapter_policy, AdapterPolicy::MergeRequantized { max_error: 0.25 });
        assert_eq!(requantized.probe_prompts, ["Hello"]);
        assert_eq!(spec(&[]), ModelSpec::new(sample::MODEL.parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let parsed = |args: &[&str]| Args::try_parse_from([&["llm-local", "plan"], args].concat());
        assert!(parsed(&["--adapter-policy", "merge-requantized"]).is_err(), "it needs a limit");
        assert!(parsed(&["--combination", "ties"]).unwrap_err().to_string().contains("density"));
        assert!(parsed(&["--allow", "all"]).unwrap_err().to_string().contains("unknown-fields"));
        // What has nothing to act on.
        for args in [
            ["--scale", "2"],
            ["--adapter-format", "peft"],
            ["--allow", "no-effect"],
            ["--combination", "cat"],
            ["--probe-prompt", "x"],
        ] {
            let error = parsed(&args).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::MissingRequiredArgument, "{error}");
        }
        let own = r#"{"ref": "./y", "scale": 2, "format": "peft"}"#;
        assert_eq!(spec(&["--adapter", own, "--scale", "2"]).adapters[0].scale, Some(2.0));
        for (args, part) in [
            (&["--adapter", own, "--scale", "3"][..], "--scale is 3, and `--adapter` of it says 2"),
            (&["--adapter", own, "--adapter-format", "mlx-lm"], "says peft"),
            (&["--requantize-max-error", "0.1"], "merge-requantized"),
            (&["--adapter", "./x", "--adapter", "./y", "--scale", "2"], "which of the adapters"),
            (&["--adapter", "{"], "--adapter"),
        ] {
            let Command::Plan(plan) = parsed(args).unwrap().command else { panic!("not plan") };
            let error = plan.spec.spec().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
