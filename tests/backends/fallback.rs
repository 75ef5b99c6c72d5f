//! Which backend and device a spec gets, machine by machine, and what its plan says of the others: with the priorities that the
//! backends really have, and with what they really say of the models; only the devices are not there.

use std::sync::Arc;

use llm_local::{
    BackendPreference, Engine, Error, ModelSpec, Plan, Registry, Result,
    core::{
        DeviceInfo, DeviceKind, InferenceBackend, LoadOptions, ModelInfo, Support,
        registry::{PluginKind, resolve::Reason},
    },
};
use llm_local_candle::{CandleBackend, PRIORITY};
use llm_local_mlx::priority;
use llm_local_testkit::fakes::FakeBackend;
use llm_local_weights::Checkpoint;

use super::common::{fixture, fixture_ref};

const DENSE: &str = "models/tiny-llama";
const MLX_4BIT: &str = "models/tiny-llama-mlx-4bit";
const GGUF: &str = "gguf/tiny-llama-q4_0.gguf";
/// Of an architecture that candle-transformers computes alone.
const OTHER: &str = "models/arch-phi";

/// What there is of MLX.
#[derive(Debug, Clone, Copy)]
enum Mlx {
    NotCompiledIn,
    /// Its plugin in a build for a target that has none.
    Absent,
    /// What its probe said.
    Fails(&'static str),
    On(DeviceKind),
}

/// A machine and what is built for it.
#[derive(Debug, Clone, Copy)]
struct Machine {
    apple_silicon: bool,
    mlx: Mlx,
    /// candle's devices.
    candle: &'static [DeviceKind],
}

/// Why one was passed over, without its words.
#[derive(Debug, PartialEq, Eq)]
enum Why {
    Later,
    NotPreferred,
    Unavailable,
    Unsupported,
}

const MAC: Machine =
    Machine { apple_silicon: true, mlx: Mlx::On(DeviceKind::Metal), candle: &[DeviceKind::Metal, DeviceKind::Cpu] };
/// A Mac whose GPU MLX cannot use, and nor can candle.
const NO_GPU: Machine = Machine { mlx: Mlx::Fails("1 + 1 is 3"), candle: &[DeviceKind::Cpu], ..MAC };
const PC: Machine = Machine { apple_silicon: false, mlx: Mlx::NotCompiledIn, candle: &[DeviceKind::Cpu] };
const CUDA: Machine = Machine { candle: &[DeviceKind::Cuda, DeviceKind::Cpu], ..PC };
/// Linux with MLX's CPU build.
const MLX_CPU: Machine = Machine { mlx: Mlx::On(DeviceKind::Cpu), ..PC };

fn id(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Metal => "metal",
        DeviceKind::Cuda => "cuda:0",
        _ => "cpu",
    }
}

fn devices(kinds: &[DeviceKind]) -> Vec<DeviceInfo> {
    kinds.iter().map(|kind| DeviceInfo::new(id(*kind), *kind, id(*kind))).collect()
}

fn info(model: &str) -> Arc<ModelInfo> {
    let at = fixture(model);
    let files = match at.is_dir() {
        true => std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()).collect(),
        false => vec![at],
    };
    let files = files.into_iter().map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect();
    Checkpoint::open(model, &files).unwrap().info
}

/// What a backend says of a model on the device that it has here; of other devices it can only say that they are missing.
fn says(backend: &dyn InferenceBackend, model: &ModelInfo) -> Support {
    backend.supports(model, &LoadOptions::new(64).with_device("cpu"))
}

#[cfg(feature = "mlx-linux-cpu")]
fn mlx_says(model: &ModelInfo) -> Support {
    says(&llm_local_mlx::MlxBackend::new(), model)
}

/// Without MLX its plugin refuses every model, so this is what it says where it is there.
#[cfg(not(feature = "mlx-linux-cpu"))]
fn mlx_says(model: &ModelInfo) -> Support {
    use llm_local::core::{Capabilities, ModelFormat};
    match (&model.format, &model.decoder) {
        (ModelFormat::Gguf { .. }, _) => Support::No("it reads no GGUF files".into()),
        (_, Err(error)) => Support::No(error.to_string()),
        _ => Support::Yes(Capabilities::new()),
    }
}

fn mlx(state: Mlx, model: &ModelInfo) -> Option<Arc<dyn InferenceBackend>> {
    let backend = FakeBackend::new("mlx").with_support(mlx_says(model));
    Some(Arc::new(match state {
        Mlx::NotCompiledIn => return None,
        #[cfg(not(feature = "mlx-linux-cpu"))]
        Mlx::Absent => return Some(Arc::new(llm_local_mlx::MlxBackend::new())),
        #[cfg(feature = "mlx-linux-cpu")]
        Mlx::Absent => backend.with_unavailable("it runs on Apple silicon"),
        Mlx::Fails(why) => backend.with_unavailable(why),
        Mlx::On(device) => backend.with_devices(devices(&[device])),
    }))
}

fn plan(machine: Machine, model: &str, asked: Option<&str>) -> Result<Plan> {
    let info = info(model);
    let candle = FakeBackend::new("candle")
        .with_devices(devices(machine.candle))
        .with_support(says(&CandleBackend::new(), &info));
    let mut registry = Registry::empty()
        .with_known_features(llm_local::builtin::FEATURES)
        .with_plugin(&llm_local_source_local::PLUGIN)
        .with_backend_at(PRIORITY, Arc::new(candle));
    if let Some(mlx) = mlx(machine.mlx, &info) {
        registry = registry.with_backend_at(priority(machine.apple_silicon), mlx);
    }
    let cache = tempfile::tempdir().unwrap();
    let engine = Engine::builder().cache_dir(cache.path()).registry(registry).build()?;
    let mut spec = ModelSpec::new(fixture_ref(model));
    if let Some(name) = asked {
        spec = spec.with_backend(BackendPreference::Named(name.into()));
    }
    pollster::block_on(engine.plan(&spec))
}

/// What the plan says of the backends that it does not use.
fn passed_over(plan: &Plan) -> Vec<(&str, Why)> {
    let backends = plan.passed_over.iter().filter(|p| p.kind == PluginKind::Backend);
    let why = |reason: &Reason| match reason {
        Reason::LowerPriority => Why::Later,
        Reason::NotPreferred => Why::NotPreferred,
        Reason::Unavailable(why) if !why.is_empty() => Why::Unavailable,
        Reason::Unsupported(why) if !why.is_empty() => Why::Unsupported,
        other => panic!("{other:?}"),
    };
    backends.map(|p| (p.name.as_str(), why(&p.reason))).collect()
}

#[test]
fn every_machine_gets_the_first_that_can_run_the_model_and_says_why_not_the_others() {
    use Why::{Later, NotPreferred, Unavailable, Unsupported};
    type Row =
        (Machine, &'static str, Option<&'static str>, (&'static str, DeviceKind), &'static [(&'static str, Why)]);
    const METAL: DeviceKind = DeviceKind::Metal;
    const CPU: DeviceKind = DeviceKind::Cpu;
    let without = |mlx| Machine { mlx, ..MAC };
    let failing = without(Mlx::Fails("1 + 1 is 3"));
    let absent = |machine| Machine { mlx: Mlx::Absent, ..machine };
    let table: [Row; 18] = [
        // On Apple silicon MLX, and candle on Metal where that is not compiled in, fails its probe, or cannot run the model.
        (MAC, DENSE, None, ("mlx", METAL), &[("candle", Later)]),
        (without(Mlx::NotCompiledIn), DENSE, None, ("candle", METAL), &[]),
        (failing, DENSE, None, ("candle", METAL), &[("mlx", Unavailable)]),
        (MAC, OTHER, None, ("candle", METAL), &[("mlx", Unsupported)]),
        (MAC, GGUF, None, ("candle", METAL), &[("mlx", Unsupported)]),
        (MAC, MLX_4BIT, None, ("mlx", METAL), &[("candle", Unsupported)]),
        (NO_GPU, DENSE, None, ("candle", CPU), &[("mlx", Unavailable)]),
        // Elsewhere candle on CUDA, and then on the CPU, whatever there is of MLX.
        (CUDA, DENSE, None, ("candle", DeviceKind::Cuda), &[]),
        (absent(CUDA), DENSE, None, ("candle", DeviceKind::Cuda), &[("mlx", Unavailable)]),
        (PC, GGUF, None, ("candle", CPU), &[]),
        (absent(PC), DENSE, None, ("candle", CPU), &[("mlx", Unavailable)]),
        (MLX_CPU, DENSE, None, ("candle", CPU), &[("mlx", Later)]),
        (MLX_CPU, GGUF, None, ("candle", CPU), &[("mlx", Unsupported)]),
        (MLX_CPU, MLX_4BIT, None, ("mlx", CPU), &[("candle", Unsupported)]),
        // What the spec names.
        (MAC, DENSE, Some("candle"), ("candle", METAL), &[("mlx", NotPreferred)]),
        (failing, GGUF, Some("candle"), ("candle", METAL), &[("mlx", NotPreferred)]),
        (MLX_CPU, DENSE, Some("mlx"), ("mlx", CPU), &[("candle", NotPreferred)]),
        (MLX_CPU, MLX_4BIT, Some("mlx"), ("mlx", CPU), &[("candle", NotPreferred)]),
    ];
    for (machine, model, asked, (backend, device), others) in table {
        let at = format!("{machine:?}, {model}, asked for {asked:?}");
        let plan = plan(machine, model, asked).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(
            (plan.backend.as_str(), plan.device.kind, plan.device.id.as_str()),
            (backend, device, id(device)),
            "{at}"
        );
        assert_eq!(passed_over(&plan), others, "{at}");
    }
}

/// What the error says, by the ways in which there is no backend.
#[test]
fn where_no_backend_can_run_a_spec_each_says_why() {
    let said = |machine, model, asked| match plan(machine, model, asked) {
        Err(Error::NoBackend { reasons, .. }) => reasons,
        other => panic!("{model} on {machine:?}: {other:?}"),
    };
    let reasons = said(PC, MLX_4BIT, None);
    assert!(
        matches!(&reasons[..], [candle] if candle.contains("candle") && candle.contains("mlx-affine")),
        "{reasons:?}"
    );
    // Nothing else is tried than what was named.
    let reasons = said(Machine { mlx: Mlx::Fails("1 + 1 is 3"), ..MAC }, DENSE, Some("mlx"));
    assert!(reasons.iter().any(|why| why.contains("mlx") && why.contains("1 + 1 is 3")), "{reasons:?}");
    assert!(reasons.iter().any(|why| why.contains("candle") && why.contains("names another backend")), "{reasons:?}");
    let reasons = said(MAC, GGUF, Some("mlx"));
    assert!(reasons.iter().any(|why| why.contains("mlx") && why.contains("GGUF")), "{reasons:?}");
    let reasons = said(MAC, MLX_4BIT, Some("candle"));
    assert!(reasons.iter().any(|why| why.contains("candle") && why.contains("mlx-affine")), "{reasons:?}");
    // The plugin of a build without MLX says where it would run.
    let reasons = said(Machine { mlx: Mlx::Absent, ..PC }, DENSE, Some("mlx"));
    assert!(reasons.iter().any(|why| why.contains("mlx") && why.contains("Apple silicon")), "{reasons:?}");

    let error = plan(PC, DENSE, Some("mlx")).unwrap_err();
    assert_eq!(error.code(), "not_registered");
    assert!(error.to_string().contains("the cargo feature `mlx`"), "{error}");
}

#[test]
fn the_plugins_are_registered_with_these_priorities() {
    let apple_silicon = cfg!(all(target_vendor = "apple", target_arch = "aarch64"));
    let registry = llm_local::builtin::registry().unwrap();
    let mut backends = vec![("candle", Some(PRIORITY))];
    if cfg!(feature = "mlx") {
        backends.push(("mlx", Some(priority(apple_silicon))));
    }
    for (name, expected) in backends {
        let plugins = registry.plugins();
        let found = plugins.iter().find(|p| p.kind == PluginKind::Backend && p.name == name).unwrap();
        assert_eq!(found.priority, expected, "{name}");
    }
}
