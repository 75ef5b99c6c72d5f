use std::ops::Range;

use super::*;
use crate::{
    BackendPreference, Capabilities, DeviceInfo, DeviceKind, FetchContext, LoadOptions, LoadedModel, LoraAdapter,
    Manifest, ManifestFile, MemoryEstimate, ModelFormat, ModelInfo, ModelSpec, ModelWeights, Opened, Support, Want,
    lora::AdapterFiles, registry::resolve::Reason, source::ArtifactSource,
};

struct Source(&'static str);

#[async_trait::async_trait]
impl ArtifactSource for Source {
    fn scheme(&self) -> &str {
        self.0
    }

    async fn resolve(&self, r: &ArtifactRef, want: Want, _: &FetchContext) -> Result<Manifest> {
        Manifest::new(r.clone(), want, "1", vec![])
    }

    async fn open(&self, _: &Manifest, _: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
        Ok(Opened::bytes(&b""[..]))
    }
}
impl ModelSource for Source {}
impl AdapterSource for Source {}

struct Backend {
    name: &'static str,
    devices: Result<Vec<&'static str>, &'static str>,
    /// Devices that cannot run any model, and why.
    refuse: Vec<(&'static str, &'static str)>,
}

impl Backend {
    fn on(name: &'static str, devices: &[&'static str]) -> Self {
        Self { name, devices: Ok(devices.to_vec()), refuse: Vec::new() }
    }
}

#[async_trait::async_trait]
impl InferenceBackend for Backend {
    fn name(&self) -> &str {
        self.name
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        match &self.devices {
            Ok(ids) => Ok(ids.iter().map(|id| DeviceInfo::new(*id, DeviceKind::Cpu, *id)).collect()),
            Err(why) => Err(Error::backend_unavailable(self.name, *why)),
        }
    }

    fn supports(&self, _: &ModelInfo, options: &LoadOptions) -> Support {
        match self.refuse.iter().find(|(device, _)| options.device.as_deref() == Some(device)) {
            Some((_, why)) => Support::No((*why).into()),
            None => Support::Yes(Capabilities::new()),
        }
    }

    fn estimate(&self, _: &ModelInfo, _: &LoadOptions) -> Result<MemoryEstimate> {
        Ok(MemoryEstimate::default())
    }

    async fn load(&self, _: ModelWeights, _: LoadOptions) -> Result<Arc<dyn LoadedModel>> {
        Err(Error::load("x", "never loaded here"))
    }
}

fn good(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(Backend::on("good", &["cpu", "gpu"])))
}

fn broken(_: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    Ok(Arc::new(Backend { devices: Err("no such chip"), ..Backend::on("broken", &[]) }))
}

fn models(_: &PluginContext) -> Result<Arc<dyn ModelSource>> {
    Ok(Arc::new(Source("file")))
}

fn adapters(_: &PluginContext) -> Result<Arc<dyn AdapterSource>> {
    Ok(Arc::new(Source("file")))
}

fn by_context(context: &PluginContext) -> Result<Arc<dyn InferenceBackend>> {
    let name = context.get::<&'static str>().copied().unwrap_or("nothing said");
    Ok(Arc::new(Backend::on(name, &["cpu"])))
}

struct Format(&'static str);

impl AdapterFormat for Format {
    fn name(&self) -> &str {
        self.0
    }

    fn recognizes(&self, _: &AdapterFiles<'_>) -> Result<bool> {
        Ok(false)
    }

    fn read(&self, files: &AdapterFiles<'_>) -> Result<LoraAdapter> {
        Err(Error::adapter(files.reference, "this format recognizes nothing"))
    }
}

fn format(_: &PluginContext) -> Result<Arc<dyn AdapterFormat>> {
    Ok(Arc::new(Format("factors")))
}

fn broken_format(_: &PluginContext) -> Result<Arc<dyn AdapterFormat>> {
    Err(Error::load("factors", "its library is missing"))
}

const GOOD: Plugin = Plugin::new("good", "crate-good", "1.0.0").with_backend(1, good);
const BROKEN: Plugin = Plugin::new("broken", "crate-broken", "1.0.0").with_backend(9, broken);
const FILES: Plugin = Plugin::new("local", "crate-local", "1.0.0")
    .with_model_source("file", models)
    .with_adapter_source("file", adapters);

fn spec() -> ModelSpec {
    ModelSpec::new("/m".parse().unwrap())
}

#[test]
fn the_first_by_priority_that_is_available_wins_and_the_others_say_why() {
    let registry = Registry::from_plugins(&[FILES], &[GOOD, BROKEN])
        .unwrap()
        .with_model_source(Arc::new(Source("other")))
        .with_backend(Arc::new(Backend::on("later", &["cpu"])));
    let resolution = registry.resolve(&spec()).unwrap();
    assert_eq!(resolution.backend.backend.name(), "good");
    assert_eq!(resolution.backend.device.id, "cpu");
    assert_eq!(resolution.model_source.scheme(), "file");
    let why: Vec<_> = resolution.passed_over.iter().map(|p| (p.name.as_str(), &p.reason)).collect();
    assert!(matches!(
        why[..],
        [("other", Reason::Scheme), ("broken", Reason::Unavailable(w)), ("later", Reason::LowerPriority)]
            if w.contains("no such chip")
    ));
}

#[test]
fn a_named_backend_and_device_are_taken_or_the_error_says_why_not() {
    let registry = Registry::from_plugins(&[FILES], &[GOOD, BROKEN]).unwrap();
    let named = |name: &str| spec().with_backend(BackendPreference::Named(name.into()));
    let resolution = registry.resolve(&named("good").with_device("gpu")).unwrap();
    assert_eq!(resolution.backend.device.id, "gpu");
    assert_eq!(resolution.passed_over[0].reason, Reason::NotPreferred);
    let error = registry.resolve(&named("broken")).unwrap_err().to_string();
    assert!(error.contains("no such chip") && error.contains("good"), "{error}");
    let error = registry.resolve(&spec().with_device("tpu")).unwrap_err().to_string();
    assert!(error.contains("cpu, gpu"), "{error}");
}

#[test]
fn the_first_device_that_can_run_the_model_wins_and_those_before_it_say_why() {
    const DEVICES: [&str; 2] = ["metal", "cpu"];
    const METAL: (&str, &str) = ("metal", "head_dim is 16");
    const CPU: (&str, &str) = ("cpu", "too slow");
    const LATER: &str = "backend `later`: could run it, but comes later";
    const LATER_CHOSEN: Option<(&str, &str)> = Some(("later", "cpu"));
    struct Row {
        refuse: &'static [(&'static str, &'static str)],
        asked: Option<&'static str>,
        /// Backend and device, or none.
        chosen: Option<(&'static str, &'static str)>,
        passed_over: &'static [&'static str],
    }
    let table = [
        Row { refuse: &[], asked: None, chosen: Some(("first", "metal")), passed_over: &[LATER] },
        Row {
            refuse: &[METAL],
            asked: None,
            chosen: Some(("first", "cpu")),
            passed_over: &["backend `first` on metal: head_dim is 16", LATER],
        },
        Row {
            refuse: &[METAL, CPU],
            asked: None,
            chosen: LATER_CHOSEN,
            passed_over: &["backend `first` on metal: head_dim is 16", "backend `first` on cpu: too slow"],
        },
        Row {
            refuse: &[METAL, ("cpu", "head_dim is 16")],
            asked: None,
            chosen: LATER_CHOSEN,
            passed_over: &["backend `first`: head_dim is 16"],
        },
        Row {
            refuse: &[METAL],
            asked: Some("metal"),
            chosen: None,
            passed_over: &[
                "backend `first`: head_dim is 16",
                "backend `later`: does not have the device the spec names; it has cpu",
            ],
        },
        Row { refuse: &[METAL], asked: Some("cpu"), chosen: Some(("first", "cpu")), passed_over: &[LATER] },
    ];
    let info = ModelInfo::new("m", ModelFormat::Remote, Vec::new());
    for row in table {
        let registry = Registry::from_plugins(&[FILES], &[])
            .unwrap()
            .with_backend(Arc::new(Backend { refuse: row.refuse.to_vec(), ..Backend::on("first", &DEVICES) }))
            .with_backend(Arc::new(Backend::on("later", &["cpu"])));
        let spec = row.asked.map_or_else(spec, |device| spec().with_device(device));
        match (registry.resolve_for(&spec, &info, &LoadOptions::new(1)), row.chosen) {
            (Ok(found), Some(expected)) => {
                assert_eq!((found.backend.backend.name(), found.backend.device.id.as_str()), expected);
                let why: Vec<_> = found.passed_over.iter().map(ToString::to_string).collect();
                assert_eq!(why, row.passed_over);
            }
            (Err(Error::NoBackend { reasons, .. }), None) => assert_eq!(reasons, row.passed_over),
            (found, expected) => panic!("expected {expected:?}, found {found:?}"),
        }
    }
}

#[test]
fn an_unknown_name_lists_what_there_is_and_the_feature_that_brings_it() {
    const FEATURES: &[KnownFeature] =
        &[(PluginKind::Backend, "mlx", "mlx"), (PluginKind::ModelSource, "hf", "huggingface")];
    let registry = Registry::from_plugins(&[FILES], &[GOOD]).unwrap().with_known_features(FEATURES);
    let error = registry.resolve(&spec().with_backend(BackendPreference::Named("mlx".into()))).unwrap_err();
    assert_eq!(error.code(), "not_registered");
    assert!(error.to_string().contains("good") && error.to_string().contains("feature `mlx`"), "{error}");
    let error = registry.resolve(&ModelSpec::new("hf:a/b".parse().unwrap())).unwrap_err();
    assert!(error.to_string().contains("file") && error.to_string().contains("`huggingface`"), "{error}");
    let adapter = spec().with_adapter("ftp:x".parse().unwrap());
    assert_eq!(registry.resolve(&adapter).unwrap_err().code(), "adapter_merge_failed");
}

#[test]
fn two_plugins_with_one_name_are_refused_and_one_twice_is_one() {
    const THIEF: Plugin = Plugin::new("good", "crate-thief", "2.0.0").with_backend(5, good);
    const SAME_SCHEME: Plugin = Plugin::new("files", "crate-thief", "2.0.0").with_model_source("file", models);
    const SAME_NAME: Plugin = Plugin::new("local", "crate-thief", "2.0.0").with_adapter_source("disk", adapters);
    const FACTORS: Plugin = Plugin::new("factors", "crate-good", "1.0.0").with_adapter_format("factors", format);
    const SAME_FORMAT: Plugin = Plugin::new("x", "crate-thief", "2.0.0").with_adapter_format("factors", format);
    for (built_in, discovered) in [
        (&[GOOD][..], &[THIEF][..]),
        (&[], &[GOOD, THIEF]),
        (&[FILES], &[SAME_SCHEME]),
        (&[FILES], &[SAME_NAME]),
        (&[], &[FACTORS, SAME_FORMAT]),
    ] {
        let error = Registry::from_plugins(built_in, discovered).unwrap_err().to_string();
        assert!(error.contains("crate-thief 2.0.0"), "{error}");
        assert!(error.contains("crate-good") || error.contains("crate-local"), "{error}");
    }
    let registry = Registry::from_plugins(&[GOOD, FILES], &[GOOD, GOOD, FILES]).unwrap();
    let plugins = registry.plugins();
    assert_eq!(plugins.len(), 3);
    assert!(plugins.iter().all(|p| p.origin == Origin::BuiltIn));
    assert_eq!((plugins[0].crate_name, plugins[0].crate_version), (Some("crate-good"), Some("1.0.0")));
}

#[test]
fn a_backend_and_a_source_may_share_a_name() {
    const BOTH: Plugin = Plugin::new("good", "crate-both", "1.0.0").with_model_source("good", models);
    Registry::from_plugins(&[GOOD], &[BOTH]).unwrap();
}

#[test]
fn the_explicit_door_replaces_and_keeps_the_priority() {
    let registry = Registry::from_plugins(&[GOOD, FILES], &[])
        .unwrap()
        .with_backend(Arc::new(Backend::on("good", &["mine"])))
        .with_source(Arc::new(Source("file")));
    assert_eq!(registry.resolve(&spec()).unwrap().backend.device.id, "mine");
    assert!(registry.plugins().iter().all(|p| p.origin == Origin::Explicit));
    assert_eq!(registry.plugins()[0].priority, Some(1));
}

#[test]
fn formats_of_adapters_are_all_given_by_name_and_one_that_cannot_be_made_is_an_error() {
    const FACTORS: Plugin = Plugin::new("good", "crate-good", "1.0.0").with_adapter_format("factors", format);
    const BROKEN_FORMAT: Plugin = Plugin::new("b", "crate-b", "1.0.0").with_adapter_format("broken", broken_format);
    let registry = Registry::from_plugins(&[GOOD], &[FACTORS]).unwrap().with_adapter_format(Arc::new(Format("a")));
    let names = |registry: &Registry| registry.adapter_formats().unwrap().iter().map(|f| f.name().to_owned()).collect();
    let found: Vec<String> = names(&registry);
    assert_eq!(found, ["a", "factors"]);
    let shown: Vec<_> = registry.plugins().into_iter().filter(|p| p.kind == PluginKind::AdapterFormat).collect();
    assert_eq!((shown[0].name.as_str(), shown[0].origin, shown[0].crate_name), ("a", Origin::Explicit, None));
    assert_eq!((shown[1].name.as_str(), shown[1].origin), ("factors", Origin::Discovered));
    assert_eq!((shown[1].crate_name, shown[1].priority), (Some("crate-good"), None));
    let error = registry.with_plugin(&BROKEN_FORMAT).adapter_formats().err().unwrap().to_string();
    assert!(error.contains("its library is missing"), "{error}");
}

#[test]
fn without_a_backend_the_error_says_what_to_do() {
    let error = Registry::from_plugins(&[FILES], &[]).unwrap().resolve(&spec()).unwrap_err();
    assert_eq!(error.code(), "no_backend");
    assert!(error.to_string().contains("feature"), "{error}");
}

#[test]
fn an_explicit_backend_may_come_first() {
    let registry = Registry::from_plugins(&[GOOD, FILES], &[])
        .unwrap()
        .with_backend_at(2, Arc::new(Backend::on("mine", &["cpu"])));
    assert_eq!(registry.resolve(&spec()).unwrap().backend.backend.name(), "mine");
}

#[test]
fn a_plugin_is_made_with_the_values_that_the_registry_was_given() {
    const PLUGIN: Plugin = Plugin::new("asks", "crate-asks", "1.0.0").with_backend(1, by_context);
    let name = |context| {
        let registry = Registry::from_plugins(&[PLUGIN], &[]).unwrap().with_context(context);
        registry.backend("asks").unwrap().name().to_owned()
    };
    let given = PluginContext::new().with("first").with("second").with(7_u64);
    assert_eq!(given.get::<u64>(), Some(&7));
    assert_eq!(name(given.clone()), "second");
    assert_eq!(name(PluginContext::new()), "nothing said");
    assert!(!format!("{given:?}").contains("second"));
}
