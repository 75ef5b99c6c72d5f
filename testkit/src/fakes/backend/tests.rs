use super::*;
use crate::fakes::MemoryTensorSource;
use llm_local_core::{CancellationToken, GenerateRequest, MemoryReport, ModelFormat, Stream, TensorSource, TextFiles};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Mutex,
    task::Context,
};

fn weights(tensors: Option<Arc<dyn TensorSource>>) -> ModelWeights {
    let format = ModelFormat::Gguf { metadata: Arc::default() };
    ModelWeights::new(Arc::new(ModelInfo::new("m", format, vec![])), tensors, TextFiles::default())
}

fn one_tensor() -> Option<Arc<dyn TensorSource>> {
    Some(Arc::new(MemoryTensorSource::new().with_floats("w", &[4], FloatType::F32, &[0.0; 4])))
}

#[test]
fn a_load_reads_the_tensors_and_a_drop_unloads() {
    let backend = FakeBackend::new("fake");
    let model = pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(8))).unwrap();
    assert_eq!(model.memory().weights, 16);
    assert_eq!((backend.calls().loaded, backend.calls().live()), (1, 1));
    drop(model);
    assert_eq!((backend.calls().unloads, backend.calls().live()), (1, 0));
}

#[test]
fn a_gate_holds_loads_back_and_a_dropped_or_cancelled_one_is_counted_as_failed() {
    let gate = Arc::new(Gate::new());
    let backend = FakeBackend::new("fake").with_gate(gate.clone());
    let mut cx = Context::from_waker(std::task::Waker::noop());
    {
        let mut dropped = pin!(backend.load(weights(one_tensor()), LoadOptions::new(8)));
        assert!(dropped.as_mut().poll(&mut cx).is_pending());
        assert_eq!(pollster::block_on(backend.when(|c| c.loads == 1)).failed, 0);
    }
    assert_eq!(backend.calls().failed, 1);
    let cancel = CancellationToken::new();
    let options = LoadOptions::new(8).with_cancel(cancel.clone());
    let mut cancelled = pin!(backend.load(weights(one_tensor()), options));
    assert!(cancelled.as_mut().poll(&mut cx).is_pending());
    cancel.cancel();
    assert!(matches!(pollster::block_on(cancelled), Err(Error::Cancelled)));
    gate.let_through(1);
    pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(8))).unwrap();
    gate.open();
    pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(8))).unwrap();
    assert_eq!((backend.calls().loads, backend.calls().failed), (4, 2));
}

#[test]
fn what_it_does_not_do_it_refuses() {
    let load = |backend: &FakeBackend, w, o| pollster::block_on(backend.load(w, o)).map(drop).unwrap_err();
    let backend = FakeBackend::new("fake");
    let error = load(&backend, weights(one_tensor()), LoadOptions::new(8).with_device("gpu"));
    assert!(error.to_string().contains("gpu") && error.to_string().contains("cpu"), "{error}");
    assert_eq!(load(&backend, weights(None), LoadOptions::new(8)).code(), "load_failed");
    let failing = FakeBackend::new("fake").with_failure(Error::Cancelled);
    assert_eq!(load(&failing, weights(None), LoadOptions::new(8)).code(), "cancelled");
    let no = FakeBackend::new("fake").with_support(Support::No("too new".into()));
    assert!(load(&no, weights(None), LoadOptions::new(8)).to_string().contains("too new"));
    let remote = Support::Yes(Capabilities::new().with_needs_weights(false));
    let remote = FakeBackend::new("fake").with_support(remote);
    pollster::block_on(remote.load(weights(None), LoadOptions::new(8))).unwrap();
    let gone = FakeBackend::new("fake").with_unavailable("no such chip");
    assert!(gone.devices().unwrap_err().to_string().contains("no such chip"));
}

#[test]
fn models_hold_what_was_estimated_until_they_are_let_go() {
    let gate = Arc::new(Gate::new());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let backend = FakeBackend::new("fake")
        .with_estimate_fn(|_, o| MemoryEstimate::new(100, o.context_length as u64))
        .with_device_memory("cpu", |held| DeviceMemory::new(1000, 900 - held))
        .with_unload_gate(gate.clone())
        .with_listener(move |happening| hears.lock().unwrap().push(happening.clone()));
    let mut cx = Context::from_waker(std::task::Waker::noop());
    pollster::block_on(async {
        let (first, second) = (weights(one_tensor()).with_reservation(Box::new(gate.clone())), weights(one_tensor()));
        let (first, second) = (
            backend.load(first, LoadOptions::new(8)).await.unwrap(),
            backend.load(second, LoadOptions::new(8)).await.unwrap(),
        );
        assert_eq!((backend.held(), backend.device_memory("cpu").unwrap().unwrap().available), (200, 700));
        let mut generation = first.generate(GenerateRequest::new("ab"));
        assert_eq!((first.memory(), backend.held_on("cpu")), (MemoryReport::new(100, 8), 208));
        while poll_fn(|cx| pin!(&mut generation).poll_next(cx)).await.is_some() {}
        assert_eq!((first.memory().kv_cache, backend.held_on("gpu")), (0, 0));
        let held_by = Arc::strong_count(&gate);
        {
            let mut unload = pin!(first.unload());
            assert!(unload.as_mut().poll(&mut cx).is_pending());
        }
        drop(second);
        assert_eq!((backend.held(), backend.calls().live(), gate.parked_unloads()), (200, 2, 2));
        assert_eq!(Arc::strong_count(&gate), held_by);
        // Whoever gave up waiting does not keep it here.
        gate.let_through(1);
        assert_eq!((backend.held(), backend.calls().live(), Arc::strong_count(&gate)), (100, 1, held_by - 1));
        first.unload().await.unwrap();
        gate.open();
        assert_eq!((backend.held(), backend.calls().live()), (0, 0));
    });
    let m = || "m".to_owned();
    let load = || [Happening::LoadBegan(m()), Happening::Loaded(m())];
    let unload =
        [Happening::UnloadBegan(m()), Happening::UnloadBegan(m()), Happening::Unloaded(m()), Happening::Unloaded(m())];
    assert_eq!(*heard.lock().unwrap(), [&load()[..], &load(), &unload].concat());
}

#[test]
fn loads_fail_as_they_are_told() {
    let backend = FakeBackend::new("fake")
        .with_estimate_fn(|_, o| MemoryEstimate::new(100, o.context_length as u64))
        .with_out_of_memory_above(250);
    let load = |context| pollster::block_on(backend.load(weights(one_tensor()), LoadOptions::new(context)));
    let _first = load(50).unwrap();
    let error = load(51).map(drop).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }) && error.to_string().contains("251 bytes"), "{error}");
    let _second = load(50).unwrap();
    assert_eq!((backend.calls().failed, backend.calls().live()), (1, 2));
}
