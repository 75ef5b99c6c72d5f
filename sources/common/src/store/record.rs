//! The form of a record.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use llm_local_core::{ArtifactRef, Digest, Error, Manifest, ManifestFile, Placement, Result, Unpack, Want};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Store,
    below::Below,
    entry::{Fetched, Origin, Place, RecordFile, place},
    group::asks_for,
};

/// The version of the form that is written. 2 knew no archives; 1 said of an artifact as a whole whether it was brought
/// here.
const VERSION: u32 = 3;
/// The oldest version that is read.
const OLDEST: u32 = 1;

/// What is known of an artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) reference: ArtifactRef,
    pub(super) want: Want,
    pub(super) revision: String,
    /// The revision's name for people, where its owner promises that it always means the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) named: Option<String>,
    pub(super) files: Vec<RecordFile>,
    /// The files as the source has them, where others were made of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) origins: Vec<Origin>,
    /// How those were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) unpack: Vec<Unpack>,
    /// The other tool's cache that holds it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cache: Option<Cache>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) license: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gated: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
    /// Version 1: whether we brought any of it here. What it says moves to the files when it is read.
    #[serde(default, rename = "fetched", skip_serializing)]
    all_fetched: bool,
    pub(super) pinned: bool,
    /// Milliseconds since 1970.
    pub(super) created: u64,
    /// Milliseconds since 1970, and later than any earlier use of anything: a clock that was set back does not make the
    /// latest use the oldest.
    pub(super) last_used: u64,
}

/// A cache of another tool, as [`Placement`] tells of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Cache {
    pub(super) root: PathBuf,
    pub(super) links: Below,
    pub(super) refs: Vec<(Below, String)>,
}

/// Why a text is no record.
#[derive(Debug)]
pub(super) struct Unparsed {
    pub(super) reason: String,
    /// Whether a newer version of the program wrote it.
    pub(super) is_newer: bool,
}

impl Record {
    /// The record of `manifest`, whose files lie where `files` says, or where they will be published if that says
    /// nothing of any.
    pub(super) fn new(
        store: &Store,
        manifest: &Manifest,
        files: Option<&BTreeMap<String, PathBuf>>,
        computed: &BTreeMap<String, Digest>,
        placement: Option<&Placement>,
    ) -> Result<Self> {
        let bad = |reason: String| Error::invalid_spec(format!("record of {}", manifest.reference), reason);
        if placement.is_some_and(|p| p.files.len() != manifest.files.len()) {
            return Err(bad("its placement does not have one place for each file".into()));
        }
        let place = |(i, file): (usize, &ManifestFile)| -> Result<RecordFile> {
            let used =
                files.map(|files| files.get(&file.path).ok_or_else(|| bad(format!("`{}` lies nowhere", file.path))));
            let place = place(store, manifest, file, placement.map(|p| (p, i)), used.transpose()?)?;
            let computed = computed.get(&file.path).copied();
            let (path, size, digest) = (file.path.clone(), file.size, file.digest);
            Ok(RecordFile { path, size, digest, computed, fetched: None, former: false, place })
        };
        let mut record = Self::without_files(manifest, placement)?;
        record.files = manifest.files.iter().enumerate().map(place).collect::<Result<_>>()?;
        Ok(record)
    }

    /// The record of `manifest`, but for its files.
    pub(super) fn without_files(manifest: &Manifest, placement: Option<&Placement>) -> Result<Self> {
        Ok(Self {
            version: VERSION,
            reference: manifest.reference.clone(),
            want: manifest.want,
            revision: manifest.revision.clone(),
            named: manifest.version.clone(),
            files: Vec::new(),
            origins: Origin::all(manifest, &BTreeMap::new()),
            unpack: manifest.unpack.clone(),
            cache: placement.map(Cache::new).transpose()?,
            license: manifest.license.clone(),
            gated: manifest.gated,
            owner: manifest.owner.clone(),
            all_fetched: false,
            pinned: false,
            created: 0,
            last_used: 0,
        })
    }

    /// The record that `text` holds, or why it holds none.
    pub(super) fn parse(text: &str) -> std::result::Result<Self, Unparsed> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let broken = |reason| Unparsed { reason, is_newer: false };
        let no_record = |e: serde_json::Error| broken(format!("it is not a record: {e}"));
        let Version { version } = serde_json::from_str(text).map_err(no_record)?;
        if !(OLDEST..=VERSION).contains(&version) {
            let reason = format!(
                "it has version {version}, and this program knows versions {OLDEST} to {VERSION}; update the program"
            );
            return Err(Unparsed { reason, is_newer: version > VERSION });
        }
        let mut record: Self = serde_json::from_str(text).map_err(no_record)?;
        record.version = VERSION;
        if std::mem::take(&mut record.all_fetched) {
            record.files.iter_mut().for_each(|file| file.fetched = Some(Fetched { modified: None }));
        }
        record.checked()
    }

    /// This, if it can be believed.
    pub(super) fn checked(self) -> std::result::Result<Self, Unparsed> {
        self.check().map_err(|reason| Unparsed { reason, is_newer: false })?;
        Ok(self)
    }

    /// A record is data from disk: what deletes must not believe more of it than this.
    fn check(&self) -> std::result::Result<(), String> {
        self.manifest().map_err(|e| e.to_string())?;
        let stray = |file: &&RecordFile| matches!(&file.place, Place::Blob(blob) if blob.part_below("blobs").is_none());
        if let Some(file) = self.files.iter().find(stray) {
            return Err(format!("the content of `{}` is not where this store has such", file.path));
        }
        let Some(cache) = &self.cache else {
            let linked = self.files.iter().any(|f| matches!(f.place, Place::Linked { .. }));
            return if linked { Err("it has links, but no cache that holds them".into()) } else { Ok(()) };
        };
        if !cache.root.is_absolute() || cache.root.parent().is_none() {
            return Err(format!("`{}` is not the folder of a cache", cache.root.display()));
        }
        let plain = |part| !matches!(part, std::path::Component::ParentDir | std::path::Component::CurDir);
        if !cache.root.components().all(plain) {
            return Err(format!("the folder `{}` of its cache has a `..`", cache.root.display()));
        }
        for file in &self.files {
            if let Place::Linked { blob, link } = &file.place
                && (tree_of(link, cache).is_none() || blob.part_below(cache.links.as_str()).is_some())
            {
                return Err(format!("the link or the content of `{}` is not where its cache has such", file.path));
            }
        }
        Ok(())
    }

    /// Takes over what `old`, of the same artifact, knows and this does not. Files that it no longer lists, since other
    /// ones are wanted now, are still its own while they are there: nobody else would ever delete them.
    pub(super) fn take_over(&mut self, old: Self, store: &Path) {
        (self.created, self.pinned) = (old.created, old.pinned);
        self.named = self.named.take().or_else(|| old.named.clone());
        // A source that is offline does not tell.
        (self.license, self.gated) = (self.license.take().or_else(|| old.license.clone()), self.gated.or(old.gated));
        self.owner = self.owner.take().or_else(|| old.owner.clone());
        self.take_over_files(&old, store);
        if let (Some(cache), Some(old)) = (&mut self.cache, old.cache) {
            let refs = old.refs.into_iter().filter(|(path, _)| cache.refs.iter().all(|(p, _)| p != path));
            let refs: Vec<_> = refs.collect();
            cache.refs.extend(refs);
        }
    }

    /// Takes over what `old`, a record or a note of the same artifact, knows of its files.
    pub(super) fn take_over_files(&mut self, old: &Self, store: &Path) {
        for file in &mut self.files {
            let before = old.files.iter().find(|f| f.path == file.path && f.size == file.size);
            file.computed = file.computed.or(before.and_then(|f| f.computed));
            file.fetched = file.fetched.or(before.filter(|f| f.place == file.place).and_then(|f| f.fetched));
        }
        for file in &old.files {
            let is_new = self.files.iter().all(|f| f.path != file.path);
            // What an archive is taken for goes when it was unpacked, and is no file of the artifact.
            let was_taken = self.origins.iter().any(|origin| origin.path == file.path);
            if is_new && !was_taken && old.used_path(store, file).exists() {
                self.files.push(RecordFile { former: true, ..file.clone() });
            }
        }
    }

    /// What of it says which files the artifact needs; the same for every hold of it.
    pub(super) fn into_needs(mut self) -> Self {
        self.files.iter_mut().for_each(|file| (file.computed, file.fetched) = (None, None));
        self.origins.iter_mut().for_each(|origin| origin.computed = None);
        Self { license: None, gated: None, owner: None, pinned: false, created: 0, last_used: 0, ..self }
    }

    /// The manifest, as its source resolved it.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for names that no manifest has, in a record that somebody changed.
    pub(super) fn manifest(&self) -> Result<Manifest> {
        let file = |path: &String, size, digest: Option<Digest>| {
            let file = ManifestFile::new(path, size);
            digest.map_or(file.clone(), |digest| file.with_digest(digest))
        };
        let files = if self.unpack.is_empty() {
            self.own_files().map(|f| file(&f.path, f.size, f.digest)).collect()
        } else {
            self.origins.iter().map(|o| file(&o.path, o.size, o.digest)).collect()
        };
        let mut manifest = Manifest::new(self.reference.clone(), self.want, &*self.revision, files)?
            .with_unpack(self.unpack.clone())?;
        (manifest.version, manifest.license) = (self.named.clone(), self.license.clone());
        (manifest.gated, manifest.owner) = (self.gated, self.owner.clone());
        Ok(manifest)
    }

    /// The files that the artifact has, without those of former times.
    pub(super) fn own_files(&self) -> impl Iterator<Item = &RecordFile> {
        self.files.iter().filter(|file| !file.former)
    }

    /// The files as their source has them: path, size, and the digest that it told, or else that they had.
    pub(super) fn sourced(&self) -> impl Iterator<Item = (&String, u64, Option<Digest>)> {
        let origins = self.origins.iter().map(|o| (&o.path, o.size, o.digest.or(o.computed)));
        let files = self.own_files().filter(|_| self.unpack.is_empty());
        origins.chain(files.map(|f| (&f.path, f.size, f.digest.or(f.computed))))
    }

    /// Whether all files are there, by their sizes.
    pub(super) fn is_whole(&self, store: &Path) -> bool {
        let is_there = |file: &RecordFile| {
            fs::metadata(self.used_path(store, file)).is_ok_and(|m| m.is_file() && m.len() == file.size)
        };
        self.own_files().all(is_there)
    }

    /// As text.
    pub(super) fn to_text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map_err(|e| Error::invalid_spec(format!("record of {}", self.reference), e.to_string()))
    }

    /// The name of its files.
    pub(super) fn key(&self) -> String {
        let (mut hash, reference) = (Sha256::new(), self.reference.to_string());
        let want = if self.want == Want::Model { "model" } else { "adapter" };
        // In two caches it is there twice.
        let root = self.cache_root().as_os_str().as_encoded_bytes();
        for part in [reference.as_bytes(), want.as_bytes(), self.revision.as_bytes(), root] {
            hash.update(part);
            hash.update([0]);
        }
        let digest = Digest::Sha256(hash.finalize().into()).to_string();
        digest.trim_start_matches("sha256:").to_owned()
    }

    /// Whether `which` names it: the same place and part, and its revision, as it was asked for, named or pinned, if
    /// `which` has one.
    pub(super) fn is(&self, which: &ArtifactRef) -> bool {
        self.reference.fragment() == which.fragment()
            && asks_for(which, &self.reference, &self.revision, self.named.as_deref())
    }

    /// The path through which `file` is used.
    pub(super) fn used_path(&self, store: &Path, file: &RecordFile) -> PathBuf {
        match &file.place {
            Place::Blob(blob) => blob.at(store),
            Place::Linked { link, .. } => link.at(self.cache_root()),
            Place::Elsewhere(path) => path.clone(),
        }
    }

    /// The name of the tree of links that `file` is in, if it is in one.
    pub(super) fn tree<'a>(&'a self, file: &'a RecordFile) -> Option<&'a str> {
        match (&file.place, &self.cache) {
            (Place::Linked { link, .. }, Some(cache)) => tree_of(link, cache),
            _ => None,
        }
    }

    /// The root of its cache; nothing for those that have none, which have no links either.
    pub(super) fn cache_root(&self) -> &Path {
        self.cache.as_ref().map_or(Path::new(""), |cache| &cache.root)
    }
}

impl Cache {
    fn new(placement: &Placement) -> Result<Self> {
        let refs = placement.refs.iter();
        let refs = refs.map(|(path, text)| Ok((Below::new(&placement.root, path)?, text.clone())));
        let links = Below::new(&placement.root, &placement.links)?;
        Ok(Self { root: placement.root.clone(), links, refs: refs.collect::<Result<_>>()? })
    }
}

/// The name of the tree of links that `link` is in: the folder right below that of all trees.
fn tree_of<'a>(link: &'a Below, cache: &Cache) -> Option<&'a str> {
    let tree = link.part_below(cache.links.as_str())?;
    (link.as_str().len() > cache.links.as_str().len() + 1 + tree.len()).then_some(tree)
}

/// Milliseconds since 1970; 0 before that.
pub(super) fn to_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time so many milliseconds after 1970, as far as the system has one.
pub(super) fn from_millis(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}
