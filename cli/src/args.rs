//! Arguments.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use llm_local::{
    AdapterSpec, ArtifactRef, BackendPreference, ComputeDtype, ContextLength, Error, ModelSpec, Result, Sampling,
    core::Allowance,
};

use crate::sample;

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
    Plan(Spec),
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
    Inspect(AdapterRef),
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

#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    #[command(flatten)]
    pub(crate) adapter: AdapterRef,
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
        self.base.as_deref().map(|base| reference(base, sample::MODEL)).transpose()
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
    pub(crate) adapter: AdapterRef,
    /// Let something pass that is an error else: unused-tensors, undeclared-tensors, missing-tensors, no-effect. May be
    /// given several times.
    #[arg(long, value_name = "WHAT")]
    allow: Vec<Allowance>,
    /// Measure how much the adapter changes, too: reads the weights that it changes, of a model that is on this machine.
    #[arg(long)]
    pub(crate) effect: bool,
    /// Show it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Check {
    pub(crate) fn base(&self) -> Result<ArtifactRef> {
        reference(&self.base, sample::MODEL)
    }

    pub(crate) fn adapter(&self) -> Result<AdapterSpec> {
        let adapter = AdapterSpec::new(self.adapter.reference()?);
        Ok(self.allow.iter().copied().fold(adapter, AdapterSpec::allowing))
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
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spec: Spec,
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
pub(crate) struct Spec {
    /// The model: a folder, a GGUF file, or a ref such as `file:/models/x`. Without it, or as `sample`, the small
    /// model inside this program.
    #[arg(long, value_name = "REF", default_value = "sample")]
    model: String,
    /// A LoRA adapter: a folder or a ref; may be given several times. `sample` is the pirate inside this program.
    #[arg(long, value_name = "REF")]
    adapter: Vec<String>,
    /// The backend, by its name in `llm-local plugins`; without it, the best that can run the model.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// How many tokens prompt and answer may have together.
    #[arg(long, value_name = "N")]
    context_length: Option<u32>,
    /// What dense weights are computed in.
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Take exactly what `llm-local lock` wrote into this file, or fail.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Dtype {
    Auto,
    F32,
    F16,
    Bf16,
}

impl Spec {
    pub(crate) fn spec(&self) -> Result<ModelSpec> {
        let mut spec = ModelSpec::new(reference(&self.model, sample::MODEL)?).with_dtype(match self.dtype {
            Dtype::Auto => ComputeDtype::Auto,
            Dtype::F32 => ComputeDtype::F32,
            Dtype::F16 => ComputeDtype::F16,
            Dtype::Bf16 => ComputeDtype::Bf16,
        });
        for adapter in &self.adapter {
            let reference = reference(adapter, sample::ADAPTER).map_err(|e| e.into_adapter(format!("`{adapter}`")))?;
            spec = spec.with_adapter(reference);
        }
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
        let Command::Plan(spec) = args.command else { panic!("not plan") };
        spec.spec().unwrap()
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
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
