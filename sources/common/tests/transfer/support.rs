//! A hub, a source of its files, and an engine whose time does not pass.

use std::{
    collections::BTreeMap,
    fs, mem,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::BoxFuture;
use llm_local_core::{
    ArtifactRef, ArtifactSource, CancellationToken, Digest, Error, FetchContext, Manifest, ManifestFile, Opened,
    Placement, ProgressEvent, Refusal, Request, Result, Want, async_trait,
};
use llm_local_source_common::{
    network::{Network, NetworkConfig, Timer, Wait, testing::FakeTimer},
    store::Store,
    transfer::{Files, Job, Transfer, TransferConfig},
};
use llm_local_testkit::hub::{Content, Fault, Host, Hub, Recorded, Repo};

pub(crate) const TOKEN: &str = "hf_very-secret-token";
pub(crate) const REPO: &str = "org/tiny";
/// The large file's size, and that of its segments.
pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const SEGMENT: u64 = SIZE / 4;
pub(crate) const MODEL: &str = "model.bin";
pub(crate) const CONFIG: &str = "config.json";
/// How long something is waited for that has to come: as long as the hub waits for requests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks for files of a hub by their URLs.
pub(crate) struct HubSource {
    pub(crate) endpoint: String,
    pub(crate) words: Option<&'static str>,
    pub(crate) placement: Option<Placement>,
}

#[async_trait]
impl ArtifactSource for HubSource {
    fn scheme(&self) -> &str {
        "test"
    }

    async fn resolve(&self, reference: &ArtifactRef, _: Want, _: &FetchContext) -> Result<Manifest> {
        Err(Error::not_found(reference, "these tests make their manifests themselves"))
    }

    async fn open(&self, _: &Manifest, file: &ManifestFile, _: Range<u64>, _: &FetchContext) -> Result<Opened> {
        let url = format!("{}/{REPO}/resolve/main/{}", self.endpoint, file.path);
        let request = Request::new(url).with_header("Authorization", format!("Bearer {TOKEN}"));
        Ok(Opened::Request(request.with_header("X-Api-Key", TOKEN)))
    }

    fn placement(&self, _: &Manifest) -> Result<Option<Placement>> {
        Ok(self.placement.clone())
    }

    fn explain(&self, _: &Manifest, file: &ManifestFile, refusal: &Refusal) -> Option<Error> {
        let reason = format!("{} {}", refusal.status, self.words?);
        Some(Error::Unauthorized { what: file.path.clone(), reason })
    }
}

/// A hub with [`CONFIG`], a plain file, and [`MODEL`], which the second host serves; and a store.
pub(crate) struct Setup {
    pub(crate) hub: Hub,
    pub(crate) root: tempfile::TempDir,
    pub(crate) timer: FakeTimer,
    /// Whether so much time passes between two looks at the clock that each event of progress is told.
    pub(crate) is_hurried: bool,
    pub(crate) network: NetworkConfig,
    pub(crate) config: TransferConfig,
    pub(crate) source: HubSource,
    pub(crate) contents: BTreeMap<String, Content>,
    /// Other contents that a file without a digest may have in the end: nobody can tell that it should not.
    pub(crate) versions: Vec<Content>,
    pub(crate) files: Vec<ManifestFile>,
    pub(crate) want: Want,
    pub(crate) events: Arc<Mutex<Vec<ProgressEvent>>>,
    pub(crate) cancel: CancellationToken,
}

pub(crate) fn sha256(content: &Content) -> Digest {
    format!("sha256:{}", content.sha256()).parse().unwrap()
}

pub(crate) fn git_blob(content: &Content) -> Digest {
    format!("git-sha1:{}", content.git_blob()).parse().unwrap()
}

impl Setup {
    /// One range and one file at a time, so that requests come in order.
    pub(crate) fn new() -> Self {
        let (config, model) = (Content::from("{\"a\": 1}"), Content::generated(SIZE, 7));
        let repo = Repo::new(REPO).with_file(CONFIG, config.clone()).with_lfs(MODEL, model.clone());
        let hub = Hub::builder().with_token(TOKEN).with_repo(repo).start();
        let source = HubSource { endpoint: hub.endpoint(), words: None, placement: None };
        let files = vec![
            ManifestFile::new(CONFIG, config.size()).with_digest(git_blob(&config)),
            ManifestFile::new(MODEL, model.size()).with_digest(sha256(&model)),
        ];
        Self {
            hub,
            root: tempfile::tempdir().unwrap(),
            timer: FakeTimer::new(),
            is_hurried: false,
            network: NetworkConfig::new(),
            config: TransferConfig::new().with_segment_bytes(SEGMENT).with_ranges_per_file(1).with_files_at_once(1),
            source,
            contents: [(CONFIG.to_owned(), config), (MODEL.to_owned(), model)].into(),
            versions: Vec::new(),
            files,
            want: Want::Model,
            events: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// Only this file.
    pub(crate) fn only(mut self, path: &str) -> Self {
        self.files.retain(|file| file.path == path);
        self
    }

    pub(crate) fn with_fault(self, fault: Fault) -> Self {
        self.hub.fault(fault);
        self
    }

    pub(crate) fn transfer(&self) -> Transfer {
        let timer: Arc<dyn Timer> = match self.is_hurried {
            true => Arc::new(Hurried(self.timer.clone())),
            false => Arc::new(self.timer.clone()),
        };
        let network = Network::new(self.network.clone()).with_timer(timer);
        Transfer::new(network, Store::new(self.root.path()), self.config.clone())
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest::new("test:org/tiny".parse().unwrap(), self.want, "1", self.files.clone()).unwrap()
    }

    pub(crate) fn job(&self) -> Job {
        let source = HubSource {
            endpoint: self.source.endpoint.clone(),
            words: self.source.words,
            placement: self.source.placement.clone(),
        };
        Job::new(Arc::new(source), self.manifest())
    }

    pub(crate) fn cx(&self) -> FetchContext {
        let events = self.events.clone();
        let handler = move |event: &ProgressEvent| events.lock().unwrap().push(event.clone());
        FetchContext::new().with_cancel(self.cancel.clone()).with_progress(Arc::new(handler))
    }

    /// Fetches, and whatever comes of it looks that nothing wrong was published, that no secret is in the error, and
    /// that no request carried a credential to the second host.
    pub(crate) fn fetch(&self) -> Result<Files> {
        let result = pollster::block_on(self.transfer().fetch(vec![self.job()], &self.cx()));
        let result = result.map(|mut files| files.remove(0));
        self.check(&result);
        result
    }

    /// As [`Setup::fetch`], and finds of each request that it stalls once `stalls` says so of it.
    pub(crate) fn fetch_past_stalls(&self, stalls: impl Fn(&Recorded) -> bool) -> Result<Files> {
        thread::scope(|scope| {
            let _end = EndOnPanic(self);
            let fetched = scope.spawn(|| self.fetch());
            let mut seen = 0;
            until("the fetch ends", || {
                let stalled = self.hub.requests().iter().filter(|request| stalls(request)).count();
                self.timer.end_stalls(stalled - mem::replace(&mut seen, stalled));
                fetched.is_finished()
            });
            fetched.join().unwrap()
        })
    }

    pub(crate) fn check(&self, result: &Result<Files>) {
        let is = |bytes: &[u8], content: &Content| bytes == content.read(0..content.size()).unwrap();
        for (path, bytes) in self.published() {
            let right = self.contents.values().chain(&self.versions).any(|content| is(&bytes, content));
            assert!(right, "{} is wrong", path.display());
        }
        match result {
            Ok(files) => {
                assert_eq!(files.len(), self.files.len());
                for file in &self.files {
                    let bytes = fs::read(&files[&file.path]).unwrap();
                    let others = self.versions.iter().filter(|_| file.digest.is_none());
                    let right = others.chain([&self.contents[&file.path]]).any(|content| is(&bytes, content));
                    assert!(right, "{} is wrong", file.path);
                }
                assert!(!self.root.path().join("partials").read_dir().is_ok_and(|mut d| d.next().is_some()));
            }
            Err(error) => {
                for text in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
                    for secret in [TOKEN, "Bearer", "Signature", "Expires", "?"] {
                        assert!(!text.contains(secret), "{secret} in {text}");
                    }
                }
            }
        }
        for request in self.hub.requests() {
            let secrets = ["authorization", "x-api-key", "cookie"].map(|name| request.header(name).is_some());
            let expected = request.host == Host::Hub;
            assert_eq!(secrets, [expected, expected, false], "{request:?}");
        }
    }

    /// What is in the store's blobs, by its path.
    pub(crate) fn published(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let Ok(blobs) = fs::read_dir(self.root.path().join("blobs")) else { return Vec::new() };
        blobs.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Asserts that no file is being fetched: nobody has the lock of one.
    pub(crate) fn assert_unlocked(&self) {
        let locks = self.locks();
        assert!(locks.iter().all(|lock| lock.try_lock().is_ok()), "a worker still has a file");
    }

    /// The locks of the files.
    pub(crate) fn locks(&self) -> Vec<fs::File> {
        let Ok(locks) = fs::read_dir(self.root.path().join("locks")) else { return Vec::new() };
        let paths = locks.map(|entry| entry.unwrap().path());
        let of_files = paths.filter(|path| path.file_name().is_some_and(|name| name != "store.lock"));
        of_files.map(|path| fs::File::open(path).unwrap()).collect()
    }

    /// The requests that were for the bytes of a file: those of the host that has them.
    pub(crate) fn asked(&self, path: &str) -> Vec<Recorded> {
        let host = if path == MODEL { Host::Cdn } else { Host::Hub };
        self.hub.requests_for(path).into_iter().filter(|request| request.host == host).collect()
    }

    /// The bytes sent of the large file.
    pub(crate) fn served(&self) -> u64 {
        // What was sent is written down a moment after it is here.
        self.hub.wait_until_idle();
        self.asked(MODEL).iter().filter(|r| matches!(r.status, 200 | 206)).map(|r| r.body_bytes_sent).sum()
    }

    /// The waits between attempts.
    pub(crate) fn waits(&self) -> Vec<Duration> {
        self.timer.sleeps(Wait::Backoff)
    }
}

/// A clock that goes on by a tenth of a second whenever it is looked at.
struct Hurried(FakeTimer);

impl Timer for Hurried {
    fn now(&self) -> Duration {
        self.0.advance(Duration::from_millis(100));
        self.0.now()
    }

    fn wall(&self) -> SystemTime {
        self.0.wall()
    }

    fn sleep(&self, duration: Duration, wait: Wait) -> BoxFuture<'static, ()> {
        self.0.sleep(duration, wait)
    }
}

/// Ends the fetches of its setup when a test panics beside them, since it is up to that test that they end.
pub(crate) struct EndOnPanic<'a>(pub(crate) &'a Setup);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.cancel.cancel();
            // Where a cancel is what does not work.
            self.0.hub.clear_faults();
            self.0.hub.release();
        }
    }
}

/// Waits until `done` holds, for what no server sees.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::yield_now();
    }
}

/// The ranges that were asked for.
pub(crate) fn ranges(requests: &[Recorded]) -> Vec<Option<String>> {
    requests.iter().map(|r| r.header("range").map(str::to_owned)).collect()
}
