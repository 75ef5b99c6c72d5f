//! What to run, as plain data.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    AdapterPolicy, Allowance, ArtifactRef, Error, KeepAlive, KvCacheType, Result, SpecLock,
    lora::{BareFormat, Combination},
};

/// What to run. Only `base` is needed; everything else has a default.
///
/// ```
/// use llm_local_core::ModelSpec;
/// let spec: ModelSpec = serde_json::from_str(r#"{ "base": "hf:org/name", "adapters": ["./pirate"] }"#)?;
/// assert_eq!(spec, ModelSpec::new("hf:org/name".parse()?).with_adapter("./pirate".parse()?));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelSpec {
    /// The application's name for this spec. Without one, [`ModelSpec::id`] is the base ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The model.
    pub base: ArtifactRef,
    /// The adapters; usually one or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterSpec>,
    /// How several become one change: their sum, unless something else is asked for. It holds for the adapters of the spec
    /// as it is loaded: sets that a loaded model is given later, and those of requests, are summed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub combination: Combination,
    /// How they get into the model.
    #[serde(default, skip_serializing_if = "is_default")]
    pub adapter_policy: AdapterPolicy,
    /// Prompts on which [`AdapterPolicy::MergeRequantized`] measures what is lost; without any, the library's own. They
    /// count as user messages where the model has a chat template, else as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe_prompts: Vec<String>,
    /// Which backend runs it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub backend: BackendPreference,
    /// Which device of the backend, by its id (`cpu`, `metal`, `cuda:0`). Without one, its first that can run the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How many tokens prompt and answer may have together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub context_length: ContextLength,
    /// What dense weights and activations are computed in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: ComputeDtype,
    /// What keys and values are kept in. A backend that does not have what is asked for is passed over.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kv_cache: KvCacheType,
    /// How long it stays in memory while nobody uses it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_alive: KeepAlive,
    /// What base and adapters are held to: these bytes or an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<SpecLock>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Bytes of memory the application expects the model to take; for display and sorting, never instead of the
    /// library's own estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_memory: Option<u64>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ModelSpec {
    /// A spec with defaults for everything but the base.
    pub fn new(base: ArtifactRef) -> Self {
        Self {
            id: None,
            base,
            adapters: Vec::new(),
            combination: Combination::Sum,
            adapter_policy: AdapterPolicy::Auto,
            probe_prompts: Vec::new(),
            backend: BackendPreference::Auto,
            device: None,
            context_length: ContextLength::Auto,
            dtype: ComputeDtype::Auto,
            kv_cache: KvCacheType::Auto,
            keep_alive: KeepAlive::Auto,
            lock: None,
            display_name: None,
            description: None,
            estimated_memory: None,
        }
    }

    /// The application's id, else the base ref.
    pub fn id(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.base.to_string())
    }

    /// Sets the id.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds an adapter with weight 1.
    pub fn with_adapter(self, reference: ArtifactRef) -> Self {
        self.with_weighted_adapter(reference, 1.0)
    }

    /// Adds an adapter whose delta is multiplied by `weight`.
    pub fn with_weighted_adapter(mut self, reference: ArtifactRef, weight: f32) -> Self {
        self.adapters.push(AdapterSpec::new(reference).with_weight(weight));
        self
    }

    /// Sets how adapters get into the model.
    pub fn with_adapter_policy(mut self, policy: AdapterPolicy) -> Self {
        self.adapter_policy = policy;
        self
    }

    /// Sets the prompts on which requantizing is measured.
    pub fn with_probe_prompts<T: Into<String>>(mut self, prompts: impl IntoIterator<Item = T>) -> Self {
        self.probe_prompts = prompts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how several adapters become one change.
    pub fn with_combination(mut self, combination: Combination) -> Self {
        self.combination = combination;
        self
    }

    /// Adds an adapter with all that is said of it.
    pub fn with_adapter_spec(mut self, adapter: AdapterSpec) -> Self {
        self.adapters.push(adapter);
        self
    }

    /// Sets the backend.
    pub fn with_backend(mut self, backend: BackendPreference) -> Self {
        self.backend = backend;
        self
    }

    /// Sets the device by its id.
    pub fn with_device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// Sets the context length.
    pub fn with_context_length(mut self, context_length: ContextLength) -> Self {
        self.context_length = context_length;
        self
    }

    /// Sets the compute dtype.
    pub fn with_dtype(mut self, dtype: ComputeDtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets what keys and values are kept in.
    pub fn with_kv_cache(mut self, kv_cache: KvCacheType) -> Self {
        self.kv_cache = kv_cache;
        self
    }

    /// Sets how long it stays in memory while nobody uses it. It is no part of what is loaded: a spec that differs in this alone
    /// means the same model, which then stays as long as the spec says that was used last.
    pub fn with_keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets what base and adapters are held to. A load then reads every file of them to compare its digest, which takes
    /// about as long as loading itself.
    pub fn with_lock(mut self, lock: SpecLock) -> Self {
        self.lock = Some(lock);
        self
    }

    /// Sets the name for people.
    pub fn with_display_name(mut self, name: impl Into<String>) -> Self {
        self.display_name = Some(name.into());
        self
    }

    /// Sets the description for people.
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Sets the expected memory in bytes.
    pub fn with_estimated_memory(mut self, bytes: u64) -> Self {
        self.estimated_memory = Some(bytes);
        self
    }

    /// Checks what serde cannot: weights and scales are finite and not zero, limits and shares are in their ranges, and
    /// the context, the probe prompts, `id`, `backend` and `device` are not empty.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] that names the field; for a weight or a scale within [`Error::AdapterMergeFailed`] that names the adapter.
    pub fn validate(&self) -> Result<()> {
        self.adapters.iter().try_for_each(AdapterSpec::validate)?;
        self.combination.validate()?;
        self.adapter_policy.validate()?;
        if self.probe_prompts.iter().any(String::is_empty) {
            return Err(Error::invalid_spec("probe_prompts", "one of them is empty; expected text"));
        }
        if self.context_length == ContextLength::Tokens(0) {
            return Err(Error::invalid_spec("context_length", "it is 0; expected at least 1, or `auto`"));
        }
        let backend = match &self.backend {
            BackendPreference::Named(name) => Some(name),
            BackendPreference::Auto => None,
        };
        for (field, text) in [("id", self.id.as_ref()), ("backend", backend), ("device", self.device.as_ref())] {
            if text.is_some_and(String::is_empty) {
                return Err(Error::invalid_spec(field, "it is empty; leave it out for the default"));
            }
        }
        Ok(())
    }
}

/// An adapter of a spec: a ref, or a ref with a weight and what is let pass.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterSpec {
    /// Where it is.
    #[serde(rename = "ref")]
    pub reference: ArtifactRef,
    /// What its delta is multiplied by.
    pub weight: f32,
    /// What would be an error of it, and is let pass.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<Allowance>,
    /// What `B @ A` is multiplied by, of an adapter whose files do not say it; see [`AdapterSpec::with_scale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// How the tensors of an adapter without a config are named and laid out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<BareFormat>,
}

impl AdapterSpec {
    /// An adapter with weight 1.
    pub fn new(reference: ArtifactRef) -> Self {
        Self { reference, weight: 1.0, allow: BTreeSet::new(), scale: None, format: None }
    }

    /// Sets the weight.
    pub fn with_weight(mut self, weight: f32) -> Self {
        self.weight = weight;
        self
    }

    /// Lets pass what would be an error of it.
    pub fn allowing(mut self, allowance: Allowance) -> Self {
        self.allow.insert(allowance);
        self
    }

    /// Sets what `B @ A` is multiplied by: alpha / r of PEFT's (alpha / sqrt(r) with rsLoRA), `scale` of mlx-lm's. For
    /// tensors without a config, and configs without a scale; files that say it are not overruled, it is an error then.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets how the tensors of an adapter without a config are named and laid out.
    pub fn with_format(mut self, format: BareFormat) -> Self {
        self.format = Some(format);
        self
    }

    fn validate(&self) -> Result<()> {
        let scale = self.scale.map(|scale| ("adapters.scale", scale));
        for (field, factor) in [("adapters.weight", f64::from(self.weight))].into_iter().chain(scale) {
            if !factor.is_finite() || factor == 0.0 {
                let reason =
                    format!("it is {factor}; expected a finite number other than 0 (leave the adapter out instead)");
                return Err(Error::invalid_spec(field, reason).into_adapter(&self.reference));
            }
        }
        Ok(())
    }
}

/// An adapter with weight 1.
impl From<ArtifactRef> for AdapterSpec {
    fn from(reference: ArtifactRef) -> Self {
        Self::new(reference)
    }
}

/// An adapter by its ref as text, with weight 1: as `text.parse::<ArtifactRef>()`, but a text that is no ref is an
/// adapter's trouble like whatever else is wrong with one.
impl FromStr for AdapterSpec {
    type Err = Error;

    /// # Errors
    /// [`Error::AdapterMergeFailed`] that names the text, around the [`Error::InvalidSpec`] that says what is wrong with it.
    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self::new).map_err(|e: Error| e.into_adapter(format!("`{text}`")))
    }
}

impl<'de> Deserialize<'de> for AdapterSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            #[serde(rename = "ref")]
            reference: ArtifactRef,
            #[serde(default = "one")]
            weight: f32,
            #[serde(default)]
            allow: BTreeSet<Allowance>,
            #[serde(default)]
            scale: Option<f64>,
            #[serde(default)]
            format: Option<BareFormat>,
        }
        fn one() -> f32 {
            1.0
        }
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = AdapterSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an adapter: a ref as text, or { ref, weight, allow, scale, format }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AdapterSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<AdapterSpec, A::Error> {
                let Full { reference, weight, allow, scale, format } =
                    Full::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(AdapterSpec { reference, weight, allow, scale, format })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Which backend runs a spec. As text: `auto`, or the backend's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
#[non_exhaustive]
pub enum BackendPreference {
    /// The best of those that can.
    #[default]
    Auto,
    /// This one or none.
    Named(String),
}

impl From<String> for BackendPreference {
    fn from(text: String) -> Self {
        if text == "auto" { Self::Auto } else { Self::Named(text) }
    }
}

impl From<BackendPreference> for String {
    fn from(preference: BackendPreference) -> Self {
        match preference {
            BackendPreference::Auto => "auto".into(),
            BackendPreference::Named(name) => name,
        }
    }
}

/// How many tokens prompt and answer may have together. As data: `"auto"`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ContextLength {
    /// As many as the model and the device allow.
    #[default]
    Auto,
    /// This many.
    Tokens(u32),
}

impl Serialize for ContextLength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Tokens(n) => serializer.serialize_u32(*n),
        }
    }
}

impl<'de> Deserialize<'de> for ContextLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ContextLength;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a number of tokens")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ContextLength, E> {
                match text {
                    "auto" => Ok(ContextLength::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<ContextLength, E> {
                u32::try_from(n)
                    .map(ContextLength::Tokens)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(n), &self))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<ContextLength, E> {
                u64::try_from(n)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
                    .and_then(|n| self.visit_u64(n))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What dense weights and activations are computed in. Quantized weights keep their own encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ComputeDtype {
    /// What suits the device: f32 on a CPU, otherwise what the weights are stored in.
    #[default]
    Auto,
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn full() -> ModelSpec {
        ModelSpec::new("hf:org/name@main".parse().unwrap())
            .with_id("writer")
            .with_adapter("./pirate".parse().unwrap())
            .with_weighted_adapter("github:o/r@v1#a.zip".parse().unwrap(), 0.5)
            .with_adapter_spec(
                AdapterSpec::new("./bare".parse().unwrap()).with_scale(0.3).with_format(BareFormat::MlxLm),
            )
            .with_combination(Combination::Svd { rank: Some(4), clamp: None })
            .with_adapter_policy(AdapterPolicy::MergeRequantized { max_error: 0.1 })
            .with_probe_prompts(["Hello"])
            .with_backend(BackendPreference::Named("candle".into()))
            .with_device("cpu")
            .with_context_length(ContextLength::Tokens(2048))
            .with_dtype(ComputeDtype::Bf16)
            .with_keep_alive(KeepAlive::For(Duration::from_secs(300)))
            .with_display_name("Writer")
            .with_description("Writes.")
            .with_estimated_memory(1 << 30)
    }

    #[test]
    fn json_and_toml_round_trip() {
        for spec in [full(), ModelSpec::new("/m".parse().unwrap())] {
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<ModelSpec>(&json).unwrap(), spec, "{json}");
            let toml = toml::to_string(&spec).unwrap();
            assert_eq!(toml::from_str::<ModelSpec>(&toml).unwrap(), spec, "{toml}");
        }
    }

    #[test]
    fn only_the_base_is_needed_and_short_forms_are_read() {
        let spec: ModelSpec = toml::from_str("base = './m'").unwrap();
        assert_eq!(spec, ModelSpec::new("./m".parse().unwrap()));
        let spec: ModelSpec = toml::from_str(
            "base = 'hf:a/b'\ncontext_length = 'auto'\nbackend = 'auto'\nadapters = ['./x', { ref = './y', weight = 2 }]",
        )
        .unwrap();
        assert_eq!(spec.adapters[0], AdapterSpec::new("./x".parse().unwrap()));
        assert_eq!(spec.adapters[1].weight, 2.0);
        assert_eq!(spec.backend, BackendPreference::Auto);
        let spec: ModelSpec = toml::from_str("base = './m'\nadapter_policy = 'keep-unmerged'").unwrap();
        assert_eq!(spec.adapter_policy, AdapterPolicy::KeepUnmerged);
        let spec: ModelSpec =
            toml::from_str("base = './m'\nadapters = [{ ref = './y', allow = ['no-effect', 'unused-tensors'] }]")
                .unwrap();
        let adapter = AdapterSpec::new("./y".parse().unwrap());
        let adapter = adapter.allowing(Allowance::UnusedTensors).allowing(Allowance::NoEffect);
        assert_eq!(spec.adapters.as_slice(), std::slice::from_ref(&adapter));
        let json = serde_json::to_string(&adapter).unwrap();
        assert!(json.contains(r#""allow":["unused-tensors","no-effect"]"#), "{json}");
        assert_eq!(serde_json::from_str::<AdapterSpec>(&json).unwrap(), adapter);
    }

    /// Asserts that `error` is an adapter's, around an invalid spec.
    #[track_caller]
    fn assert_adapter_error(error: &Error, words: &[&str]) {
        assert_eq!(error.code(), "adapter_merge_failed", "{error}");
        let source = std::error::Error::source(error).expect("it is around another error").to_string();
        assert!(source.starts_with("invalid "), "{source}");
        for word in words {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    }

    #[test]
    fn a_text_that_is_no_ref_of_an_adapter_is_an_adapter_s_trouble() {
        for text in ["hf:", "hf:%", ""] {
            let error = text.parse::<AdapterSpec>().unwrap_err();
            assert_adapter_error(&error, &[&format!("adapter `{text}` cannot be used")]);
            let json = serde_json::json!({ "base": "m", "adapters": [text] }).to_string();
            let shown = serde_json::from_str::<ModelSpec>(&json).unwrap_err().to_string();
            assert!(shown.contains(&format!("adapter `{text}` cannot be used")), "{shown}");
        }
        let parsed: AdapterSpec = "github:o/r@v1".parse().unwrap();
        assert_eq!(parsed, AdapterSpec::new("github:o/r@v1".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, why) in [
            (r#"{"base":"hf:"}"#, "nothing stands after the scheme"),
            (r#"{"base":"m","adaptor":"x"}"#, "adaptor"),
            (r#"{"base":"m","context_length":"big"}"#, "number of tokens"),
            (r#"{"base":"m","context_length":-1}"#, "number of tokens"),
            (r#"{"base":"m","dtype":"int8"}"#, "int8"),
            (r#"{"base":"m","adapters":[3]}"#, "an adapter"),
            (r#"{"base":"m","adapters":[{"ref":"x","allow":["everything"]}]}"#, "everything"),
        ] {
            let error = serde_json::from_str::<ModelSpec>(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
        let base = || ModelSpec::new("m".parse().unwrap());
        let x: ArtifactRef = "x".parse().unwrap();
        for weight in [0.0, -0.0, f32::NAN, f32::INFINITY] {
            let error = base().with_weighted_adapter(x.clone(), weight).validate().unwrap_err();
            assert_adapter_error(&error, &["adapter file:x", "adapters.weight", &format!("it is {weight};")]);
        }
        for scale in [0.0, f64::NAN, f64::NEG_INFINITY] {
            let error = base().with_adapter_spec(AdapterSpec::new(x.clone()).with_scale(scale)).validate().unwrap_err();
            assert_adapter_error(&error, &["adapter file:x", "adapters.scale", &format!("it is {scale};")]);
        }
        for (spec, field) in [
            (base().with_context_length(ContextLength::Tokens(0)), "context_length"),
            (base().with_id(""), "id"),
            (base().with_device(""), "device"),
            (base().with_backend(BackendPreference::Named(String::new())), "backend"),
        ] {
            let error = spec.validate().unwrap_err();
            assert_eq!(error.code(), "invalid_spec");
            assert!(error.to_string().starts_with(&format!("invalid {field}: ")), "{error}");
        }
        full().validate().unwrap();
    }
}
