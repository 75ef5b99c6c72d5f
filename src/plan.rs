//! Plans: what a spec would do, before a byte moves, and why.

use std::fmt;

use llm_local_core::{
    ArtifactRef, Capabilities, ComputeDtype, DecimalBytes, DeviceInfo, KvCacheType, MemoryEstimate, ModelSpec,
    Resolution, UsedAdapter, lora::Combination, registry::PassedOver,
};
use llm_local_source_common::{store::HoldKind, transfer::Files};

use crate::engine::{Pin, names};

/// What a spec would do, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Plan {
    /// The spec's id.
    pub id: String,
    /// The base, pinned.
    pub base: PlannedArtifact,
    /// The adapters, pinned, each with its weight.
    pub adapters: Vec<(PlannedArtifact, f32)>,
    /// How they become one change.
    pub combination: Combination,
    /// The backend's name.
    pub backend: String,
    /// The device it will use.
    pub device: DeviceInfo,
    /// What dense weights are computed in.
    pub dtype: ComputeDtype,
    /// What keys and values are kept in.
    pub kv_cache: KvCacheType,
    /// What is known of the model itself, by its files or, where they are not on this machine, by their headers. `None`
    /// offline, and of a model without files.
    pub model: Option<PlannedModel>,
    /// Every other candidate, with why it was passed over.
    pub passed_over: Vec<PassedOver>,
}

impl Plan {
    /// What is known of `spec` before anything is known of the model.
    pub(crate) fn new(
        spec: &ModelSpec,
        base: &Pin,
        adapters: &[Pin],
        files: &[Option<Files>],
        resolution: &Resolution,
    ) -> Self {
        let artifact = |pin: &Pin, at: usize| PlannedArtifact::new(pin, files[at].is_some());
        let adapters = adapters.iter().zip(&spec.adapters).enumerate();
        Self {
            id: spec.id(),
            base: artifact(base, 0),
            adapters: adapters.map(|(i, (pin, a))| (artifact(pin, i + 1), a.weight)).collect(),
            combination: spec.combination,
            backend: resolution.backend.backend.name().to_owned(),
            device: resolution.backend.device.clone(),
            dtype: spec.dtype,
            kv_cache: spec.kv_cache,
            model: None,
            passed_over: resolution.passed_over.clone(),
        }
    }

    /// What is known of the model, and of who runs it.
    pub(crate) fn set_model(&mut self, model: PlannedModel, resolution: &Resolution) {
        self.model = Some(model);
        self.backend = resolution.backend.backend.name().to_owned();
        self.device = resolution.backend.device.clone();
        self.passed_over = resolution.passed_over.clone();
    }
}

/// A ref pinned to a revision, and what getting it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedArtifact {
    /// The ref as the spec has it.
    pub reference: ArtifactRef,
    /// The immutable revision.
    pub revision: String,
    /// The revision's name for people, where it has one: a release's tag.
    pub version: Option<String>,
    /// Who says that the ref means this revision.
    pub pinned_by: PinnedBy,
    /// Number of files.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Whether they are all on this machine.
    pub present: bool,
}

/// Who says which revision a ref means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinnedBy {
    /// Its source, which was asked.
    Source,
    /// The ref itself: it names a version that is kept, and nobody was asked.
    Name,
    /// The lock of the spec.
    Lock,
    /// A hold: the version was pinned or rolled back to, and nobody was asked.
    Hold(HoldKind),
    /// Its last use, since its source could not be asked: the engine is offline, or the source could not be reached. It
    /// may not be the newest.
    LastUse,
}

impl PlannedArtifact {
    pub(crate) fn new(pin: &Pin, present: bool) -> Self {
        let manifest = &pin.manifest;
        Self {
            reference: pin.reference.clone(),
            revision: manifest.revision.clone(),
            version: manifest.version.clone(),
            pinned_by: pin.by,
            files: manifest.files.len(),
            bytes: manifest.total_bytes(),
            present,
        }
    }

    /// Whether the ref may mean another revision tomorrow.
    pub(crate) fn is_moving(&self) -> bool {
        !matches!(self.pinned_by, PinnedBy::Name | PinnedBy::Lock)
            && !names(&self.reference, self.version.as_deref(), &self.revision)
    }

    /// What statistics say of it.
    pub(crate) fn used(&self, weight: f32) -> UsedAdapter {
        UsedAdapter::new(self.reference.clone(), &self.revision, self.version.clone(), weight)
    }
}

/// What is known of a model by its headers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedModel {
    /// Tokens that prompt and answer may have together.
    pub context_length: usize,
    /// Why so many.
    pub context_reason: String,
    /// What the backend can do with it.
    pub capabilities: Capabilities,
    /// What it would take, in bytes, by part.
    pub estimate: MemoryEstimate,
    /// The most bytes that it takes at one time.
    pub required: u64,
    /// Bytes that there are for it now, once all models that nobody uses are unloaded. `None` where that is not known.
    pub room: Option<u64>,
    /// Tensors of the base that the adapters are merged into.
    pub merged_tensors: usize,
    /// Those of them that the base has quantized, and that are quantized again.
    pub requantized_tensors: usize,
    /// Tensors of the base that the adapters run beside.
    pub unmerged_tensors: usize,
}

impl PlannedModel {
    /// The estimate by part.
    fn parts(&self) -> String {
        let e = &self.estimate;
        let always = [("weights", e.weights), ("KV cache", e.kv_cache), ("working", e.working)];
        let where_any = [
            ("adapters", e.adapters),
            ("tokenizer", e.text),
            ("on top while loading", e.load_peak),
            ("on top while merging", e.merge_peak),
            // What it is measured against is larger.
            ("on top while its loss is measured", self.required.saturating_sub(e.total())),
        ];
        let parts = always.into_iter().chain(where_any.into_iter().filter(|(_, bytes)| *bytes > 0));
        let parts: Vec<_> = parts.map(|(part, bytes)| format!("{part} {}", DecimalBytes(bytes))).collect();
        parts.join(", ")
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model    {}", self.base)?;
        for (adapter, weight) in &self.adapters {
            writeln!(f, "adapter  {adapter}, weight {weight}")?;
        }
        if !self.adapters.is_empty() && self.combination != Combination::Sum {
            writeln!(f, "combined {}", self.combination)?;
        }
        writeln!(f, "backend  {} on {} ({})", self.backend, self.device.id, self.device.name)?;
        match &self.model {
            None => writeln!(f, "         not yet checked against the model, of which nothing is on this machine")?,
            Some(model) => {
                writeln!(f, "context  {} tokens: {}", model.context_length, model.context_reason)?;
                write!(f, "memory   {} at most", DecimalBytes(model.required))?;
                match model.room {
                    Some(room) if model.required > room => {
                        writeln!(f, ", which is more than the {} that there are now", DecimalBytes(room))?;
                    }
                    Some(room) => writeln!(f, ", of {} that there are now", DecimalBytes(room))?,
                    None => writeln!(f, "; how much there is now is not known")?,
                }
                writeln!(f, "         {}", model.parts())?;
                match (model.merged_tensors, model.requantized_tensors) {
                    (0, _) => {}
                    (merged, 0) => writeln!(f, "merge    {merged} tensors, while they are read")?,
                    (merged, requantized) => writeln!(
                        f,
                        "merge    {merged} tensors, while they are read; {requantized} are quantized again, and what is \
                         lost by that is measured"
                    )?,
                }
                if model.unmerged_tensors > 0 {
                    writeln!(f, "beside   {} tensors, which stay as they are stored", model.unmerged_tensors)?;
                }
            }
        }
        for passed in &self.passed_over {
            writeln!(f, "not used {passed}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PlannedArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = if self.files == 1 { "file" } else { "files" };
        let present = if self.present { "on this machine" } else { "to be fetched" };
        write!(f, "{} at ", self.reference)?;
        match &self.version {
            Some(version) => write!(f, "{version} ({})", self.revision)?,
            None => f.write_str(&self.revision)?,
        }
        write!(f, ": {} {files}, {}, {present}", self.files, DecimalBytes(self.bytes))?;
        match self.pinned_by.note() {
            Some(note) => write!(f, "; {note}"),
            None => Ok(()),
        }
    }
}

impl PinnedBy {
    /// What a plan says of it, if it is worth a word.
    fn note(self) -> Option<&'static str> {
        match self {
            Self::Source | Self::Name => None,
            Self::Lock => Some("locked"),
            Self::Hold(HoldKind::RolledBack) => Some("rolled back to"),
            Self::Hold(_) => Some("pinned"),
            Self::LastUse => Some("as it was last used, for its source could not be asked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_told_by_part_and_parts_of_nothing_are_left_out() {
        let mut estimate = MemoryEstimate::new(2_000_000_000, 300_000_000);
        estimate.working = 5_000_000;
        let mut model = PlannedModel {
            context_length: 1,
            context_reason: String::new(),
            capabilities: Capabilities::new(),
            estimate,
            required: estimate.total(),
            room: None,
            merged_tensors: 0,
            requantized_tensors: 0,
            unmerged_tensors: 0,
        };
        assert_eq!(model.parts(), "weights 2.00 GB, KV cache 300.0 MB, working 5.0 MB");
        model.estimate.adapters = 1_000_000;
        model.estimate.merge_peak = 4_000;
        model.required = model.estimate.total() + 7_000_000;
        assert_eq!(
            model.parts(),
            "weights 2.00 GB, KV cache 300.0 MB, working 5.0 MB, adapters 1.0 MB, on top while merging 4.0 kB, on top while \
             its loss is measured 7.0 MB"
        );
    }
}
