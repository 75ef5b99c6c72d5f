//! Which assets of a release are the adapter or the model, by their names.

use llm_local_core::{ArtifactRef, Error, Result, Unpack, Want};
use llm_local_source_common::unpack::{ArchiveFormat, Parts, split_parts};
use llm_local_weights::{
    ADAPTER_CONFIG, GGUF_TEXT_FILES, MODEL_CONFIG, MODEL_TEXT_FILES, ShardIndex, is_adapter_checkpoint,
    is_adapter_file, is_gguf, is_pickle, is_safetensors,
};

use crate::{
    api::{Asset, Release},
    pinned::Pinned,
    reference::{ReleaseRef, Which},
};

/// How many names a message lists.
const LISTED: usize = 40;

/// The assets that are an artifact.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// The assets to fetch, sorted by name.
    pub(crate) assets: Vec<&'a Asset>,
    /// What is made of them.
    pub(crate) unpack: Vec<Unpack>,
}

/// The assets of `release` that `want` needs. Where none is an adapter by its name, the one that is named or alone is one if
/// `any` may be.
///
/// # Errors
/// [`Error::NotFound`] where nothing of what is wanted is there or a part is missing, [`Error::LoadFailed`] where one of
/// several must be meant, [`Error::UnsupportedModelFormat`] for what is neither, and [`Error::DownloadFailed`], which may
/// be tried again, for an asset that is still being uploaded.
pub(crate) fn choose<'a>(
    reference: &ArtifactRef,
    at: &ReleaseRef,
    want: Want,
    any: bool,
    release: &'a Release,
) -> Result<Chosen<'a>> {
    let pinned = match &at.which {
        Which::Pinned(pinned) => Some(pinned),
        _ => None,
    };
    let assets = match pinned {
        Some(pinned) => of_pinned(reference, pinned, release)?,
        None => release.assets.iter().collect(),
    };
    let at = at.at_tag(&release.tag_name);
    let listing = Listing::new(reference, &at, &assets);
    let units = match (want, &at.asset) {
        (Want::Adapter, Some(name)) if any => {
            listing.asked(want, name).or_else(|error| listing.any(Some(name)).ok_or(error))?
        }
        (Want::Adapter, None) if any && listing.adapters().is_empty() => {
            listing.only(want, Vec::new()).or_else(|error| listing.any(None).ok_or(error))?
        }
        (Want::Adapter | Want::Model, Some(name)) => listing.asked(want, name)?,
        (Want::Adapter, None) => listing.only(want, listing.adapters())?,
        (Want::Model, None) => listing.only(want, listing.models())?,
        (other, _) => {
            return Err(Error::unsupported(format!("{other:?} from GitHub"), "it gives an adapter or a model"));
        }
    };
    let chosen = listing.chosen(&units)?;
    match pinned {
        Some(pinned) if chosen.pinned(release) != *pinned => Err(Error::not_found(
            reference,
            format!(
                "these assets are not {} as it is chosen now, which would be `{}`; were they renamed?",
                called(want),
                chosen.pinned(release)
            ),
        )),
        _ => Ok(chosen),
    }
}

/// The assets that `pinned` names.
///
/// # Errors
/// [`Error::NotFound`] if the release does not have them any more.
fn of_pinned<'a>(reference: &ArtifactRef, pinned: &Pinned, release: &'a Release) -> Result<Vec<&'a Asset>> {
    let assets: Vec<_> = release.assets.iter().filter(|asset| pinned.assets.contains(&asset.id)).collect();
    let is_gone = |id: &&u64| !assets.iter().any(|asset| asset.id == **id);
    let gone: Vec<_> = pinned.assets.iter().filter(is_gone).map(u64::to_string).collect();
    if gone.is_empty() {
        return Ok(assets);
    }
    let (tag, has) = (release.tag_name.escape_debug(), release.assets.iter().map(|asset| asset.name.clone()));
    let reason = format!(
        "of this revision the release `{tag}` no longer has the assets with the ids {}: they were deleted, or replaced by \
         others; it has {}",
        gone.join(", "),
        listed(has.collect()),
    );
    Err(Error::not_found(reference, reason))
}

fn called(want: Want) -> &'static str {
    if want == Want::Adapter { "an adapter" } else { "a model" }
}

impl Chosen<'_> {
    /// They as the text of a revision has them.
    pub(crate) fn pinned(&self, release: &Release) -> Pinned {
        Pinned { release: release.id, assets: self.assets.iter().map(|asset| asset.id).collect() }
    }
}

/// A file that a release has: an asset, or several that are its parts.
#[derive(Debug)]
struct Unit<'a> {
    name: String,
    parts: Vec<&'a Asset>,
    split: Option<Parts>,
}

struct Listing<'r, 'a> {
    reference: &'r ArtifactRef,
    at: &'r ReleaseRef,
    units: Vec<Unit<'a>>,
    /// The parts of files that are there whole too, which are what is used.
    spare: Vec<Parts>,
}

impl<'r, 'a> Listing<'r, 'a> {
    fn new(reference: &'r ArtifactRef, at: &'r ReleaseRef, assets: &[&'a Asset]) -> Self {
        let names: Vec<_> = assets.iter().map(|asset| asset.name.as_str()).collect();
        let split = split_parts(&names);
        let by_name = |name: &String| assets.iter().copied().find(|asset| asset.name == *name);
        let is_whole = |asset: &&'a Asset| !split.iter().any(|split| split.parts.contains(&asset.name));
        let whole = |asset: &'a Asset| Unit { name: asset.name.clone(), parts: vec![asset], split: None };
        let mut units: Vec<_> = assets.iter().copied().filter(is_whole).map(whole).collect();
        let (spare, split): (Vec<_>, Vec<_>) = split.into_iter().partition(|split| by_name(&split.name).is_some());
        units.extend(split.into_iter().map(|split| Unit {
            name: split.name.clone(),
            parts: split.parts.iter().filter_map(by_name).collect(),
            split: Some(split),
        }));
        units.sort_by(|a, b| a.name.cmp(&b.name));
        Self { reference, at, units, spare }
    }

    fn get(&self, name: &str) -> Option<&Unit<'a>> {
        self.units.iter().find(|unit| unit.name == name)
    }

    fn units(&self, is: impl Fn(&str) -> bool) -> Vec<&Unit<'a>> {
        self.units.iter().filter(|unit| is(&unit.name)).collect()
    }

    /// Whatever may be an adapter, each with all of its files; not what a training that is done had on its way.
    fn adapters(&self) -> Vec<Vec<&Unit<'a>>> {
        let is_left = |name: &str| is_adapter_checkpoint(name, |done| self.get(done).is_some());
        let weights = self.units(|name| is_safetensors(name) && !is_left(name));
        let mut found = self.alone();
        found.extend(weights.into_iter().map(|weights| self.with_config(weights)));
        found
    }

    /// Whatever may be a model, each with all of its files.
    fn models(&self) -> Vec<Vec<&Unit<'a>>> {
        let mut found = self.alone();
        for files in found.iter_mut().filter(|files| is_gguf(&files[0].name)) {
            files.extend(self.units(|name| GGUF_TEXT_FILES.contains(&name)));
        }
        let weights = self.units(|name| is_safetensors(name) && !is_adapter_file(name));
        if self.get(MODEL_CONFIG).is_some() && !weights.is_empty() {
            let text =
                self.units(|name| name == MODEL_CONFIG || name == ShardIndex::FILE || MODEL_TEXT_FILES.contains(&name));
            found.push(text.into_iter().chain(weights).collect());
        }
        found
    }

    /// Archives and GGUF files, each of which is an artifact by itself.
    fn alone(&self) -> Vec<Vec<&Unit<'a>>> {
        self.units(|name| is_archive(name) || is_gguf(name)).into_iter().map(|unit| vec![unit]).collect()
    }

    /// Weights of an adapter, and the config beside them.
    fn with_config<'b>(&'b self, weights: &'b Unit<'a>) -> Vec<&'b Unit<'a>> {
        self.get(ADAPTER_CONFIG).into_iter().chain([weights]).collect()
    }

    /// The file that has an asset called `name`: a part, as GitHub shows it, stands for its whole.
    fn with_part(&self, name: &str) -> Option<&Unit<'a>> {
        let has_it = |unit: &&Unit<'_>| unit.parts.iter().any(|asset| asset.name == name);
        let is_spare = |parts: &&Parts| parts.parts.iter().any(|part| part == name);
        let whole = || self.spare.iter().find(is_spare).and_then(|parts| self.get(&parts.name));
        self.units.iter().find(has_it).or_else(whole)
    }

    /// The files of the asset `name` that the ref asks for.
    fn asked(&self, want: Want, name: &str) -> Result<Vec<&Unit<'a>>> {
        let Some(unit) = self.get(name).or_else(|| self.with_part(name)) else {
            return Err(Error::not_found(self.reference, format!("the release has no asset `{name}`; {}", self.has())));
        };
        let name = unit.name.as_str();
        if is_archive(name) || is_gguf(name) {
            let mut models = self.models().into_iter();
            let with_text = models.find(|files| want == Want::Model && files[0].name == name);
            return Ok(with_text.unwrap_or_else(|| vec![unit]));
        }
        match want {
            Want::Adapter if is_safetensors(name) => Ok(self.with_config(unit)),
            Want::Model if is_safetensors(name) => {
                let mut models = self.models().into_iter();
                models.find(|files| files.iter().any(|unit| unit.name == name)).ok_or_else(|| {
                    Error::load(
                        self.reference,
                        format!("the release has no {MODEL_CONFIG}, which says what model it is of"),
                    )
                })
            }
            _ if is_pickle(name) => Err(self.pickle(name)),
            _ => Err(Error::unsupported_format(
                self.reference,
                format!(
                    "`{name}` is neither an archive (.zip, .tar, .tar.gz, .tar.zst) nor a .safetensors or .gguf file; {}",
                    self.has()
                ),
            )),
        }
    }

    /// The file `name`, or the one there is, as an adapter of a format that is not known here. No pickle is one.
    fn any(&self, name: Option<&String>) -> Option<Vec<&Unit<'a>>> {
        let unit = match (name, &self.units[..]) {
            (Some(name), _) => self.get(name)?,
            (None, [one]) => one,
            _ => return None,
        };
        (!is_pickle(&unit.name)).then(|| vec![unit])
    }

    /// The one of `found`, if there is one alone.
    fn only<'b>(&'b self, want: Want, mut found: Vec<Vec<&'b Unit<'a>>>) -> Result<Vec<&'b Unit<'a>>> {
        let what = called(want);
        if found.len() > 1 {
            let mut names: Vec<_> = found
                .iter()
                .flatten()
                .filter(|unit| is_archive(&unit.name) || is_gguf(&unit.name) || is_safetensors(&unit.name))
                .map(|unit| self.at.with_asset(&unit.name))
                .collect();
            names.dedup();
            let reason = format!("several of the release's assets could be {what}; name one: {}", listed(names));
            return Err(Error::load(self.reference, reason));
        }
        found.pop().ok_or_else(|| match self.units.iter().find(|unit| is_pickle(&unit.name)) {
            Some(unit) => self.pickle(&unit.name),
            None => Error::not_found(self.reference, format!("no asset of the release can be {what}; {}", self.has())),
        })
    }

    fn chosen(&self, units: &[&Unit<'a>]) -> Result<Chosen<'a>> {
        if let Some(Err(flaw)) =
            units.iter().filter_map(|unit| unit.split.as_ref()).map(Parts::check).find(Result::is_err)
        {
            return Err(Error::not_found(self.reference, flaw.to_string()));
        }
        let mut assets: Vec<_> = units.iter().flat_map(|unit| unit.parts.iter().copied()).collect();
        assets.iter().try_for_each(|asset| asset.check_uploaded(self.reference))?;
        assets.sort_by(|a, b| a.name.cmp(&b.name));
        let joins = units.iter().filter(|unit| unit.split.is_some()).map(|unit| Unpack::Join {
            parts: unit.parts.iter().map(|asset| asset.name.clone()).collect(),
            into: unit.name.clone(),
        });
        let archives = units.iter().filter(|unit| is_archive(&unit.name));
        let archives = archives.map(|unit| Unpack::Archive { file: unit.name.clone() });
        Ok(Chosen { assets, unpack: joins.chain(archives).collect() })
    }

    /// The error for weights that are a pickle.
    fn pickle(&self, name: &str) -> Error {
        let reason =
            format!("`{name}` is a pickle, which can run code when read, and therefore never is; {}", self.has());
        Error::unsupported_format(self.reference, reason)
    }

    /// What the release has, for messages.
    fn has(&self) -> String {
        if self.units.is_empty() {
            return "it has no assets".into();
        }
        format!("it has {}", listed(self.units.iter().map(|unit| unit.name.clone()).collect()))
    }
}

fn is_archive(name: &str) -> bool {
    ArchiveFormat::of_name(name).is_some()
}

/// `names`, as many as a message takes.
fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    let shown = names.join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::UPLOADED;

    fn release(names: &[&str]) -> Release {
        let asset = |(id, name): (usize, &&str)| Asset {
            id: id as u64,
            name: (*name).into(),
            size: 1,
            state: if name.starts_with("new") { "starter" } else { UPLOADED }.into(),
            digest: None,
            browser_download_url: String::new(),
        };
        let assets = names.iter().enumerate().map(asset).collect();
        Release { assets, ..serde_json::from_str(r#"{"id": 1, "tag_name": "v1"}"#).unwrap() }
    }

    fn names(text: &str, want: Want, assets: &[&str]) -> Result<(Vec<String>, usize)> {
        let reference: ArtifactRef = text.parse()?;
        let (at, release) = (ReleaseRef::parse(&reference)?, release(assets));
        let chosen = choose(&reference, &at, want, false, &release)?;
        Ok((chosen.assets.iter().map(|asset| asset.name.clone()).collect(), chosen.unpack.len()))
    }

    const PAIR: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

    #[test]
    fn the_one_asset_that_can_be_an_adapter_is_it() {
        let of = |assets: &[&str]| names("github:o/r", Want::Adapter, assets).unwrap();
        assert_eq!(of(&["SHA256SUMS", "a.zip", "notes.txt"]), (vec!["a.zip".into()], 1));
        assert_eq!(of(&["a.tar.gz"]).1, 1);
        assert_eq!(of(&["README.md", "a.gguf"]), (vec!["a.gguf".into()], 0));
        assert_eq!(of(&["a.safetensors"]), (vec!["a.safetensors".into()], 0));
        assert_eq!(of(&[PAIR[1], PAIR[0], "x.sha256"]), (PAIR.map(str::to_owned).to_vec(), 0));
        assert_eq!(of(&["a.zip.001", "a.zip.002"]), (vec!["a.zip.001".into(), "a.zip.002".into()], 2));
    }

    #[test]
    fn what_a_training_wrote_on_its_way_is_no_adapter_beside_the_one_that_it_gave_unless_it_is_named() {
        let of = |text: &str, assets: &[&str]| names(text, Want::Adapter, assets).map(|(names, _)| names);
        let all = ["0000100_adapters.safetensors", "0000200_adapters.safetensors", PAIR[0], "adapters.safetensors"];
        assert_eq!(of("github:o/r", &all).unwrap(), all[2..]);
        assert_eq!(of("github:o/r", &[all[0], all[3]]).unwrap(), all[3..]);
        assert_eq!(of("github:o/r#0000100_adapters.safetensors", &all).unwrap(), [all[0], all[2]]);
        // As that is pinned.
        assert_eq!(of("github:o/r@1~0,2", &all).unwrap(), [all[0], all[2]]);
        // Of a training that is not done, one must be named.
        let error = of("github:o/r", &all[..3]).unwrap_err().to_string();
        assert!(error.contains("several") && all[..2].iter().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn a_part_is_joined_though_it_is_the_only_one_and_stands_for_its_whole() {
        let only = names("github:o/r", Want::Adapter, &["a.zip.001"]).unwrap();
        assert_eq!(only, (vec!["a.zip.001".into()], 2));
        let assets = ["a.gguf.001", "a.gguf.002", "b.zip"];
        for name in ["a.gguf", "a.gguf.001", "a.gguf.002"] {
            let found = names(&format!("github:o/r#{name}"), Want::Adapter, &assets).unwrap();
            assert_eq!(found, (vec!["a.gguf.001".into(), "a.gguf.002".into()], 1), "{name}");
        }
        assert_eq!(names("github:o/r#a.gguf.003", Want::Adapter, &assets).unwrap_err().code(), "not_found");
    }

    #[test]
    fn parts_of_what_is_there_whole_are_left() {
        let assets = ["config.json", "m.safetensors", "m.safetensors.001", "m.safetensors.002"];
        for text in ["github:o/r", "github:o/r#m.safetensors", "github:o/r#m.safetensors.002"] {
            assert_eq!(names(text, Want::Adapter, &assets).unwrap(), (vec!["m.safetensors".into()], 0), "{text}");
        }
        let model = names("github:o/r", Want::Model, &assets).unwrap();
        assert_eq!(model, (vec!["config.json".into(), "m.safetensors".into()], 0));
    }

    #[test]
    fn of_several_one_must_be_named() {
        let both = ["a.zip", "b.gguf", "notes.txt"];
        let error = names("github:o/r@latest", Want::Adapter, &both).unwrap_err().to_string();
        assert!(error.contains("github:o/r@v1#a.zip, github:o/r@v1#b.gguf"), "{error}");
        assert!(!error.contains("notes"), "{error}");
        assert_eq!(names("github:o/r#b.gguf", Want::Adapter, &both).unwrap().0, ["b.gguf"]);
        let named = names("github:o/r#adapter_model.safetensors", Want::Adapter, &[PAIR[0], PAIR[1], "a.zip"]);
        assert_eq!(named.unwrap().0, PAIR);
        let joined = names("github:o/r#a.gguf", Want::Adapter, &["a.gguf.001", "a.gguf.002", "b.zip"]).unwrap();
        assert_eq!(joined, (vec!["a.gguf.001".into(), "a.gguf.002".into()], 1));
    }

    #[test]
    fn a_revision_of_the_source_means_its_assets_whatever_else_there_is_now() {
        let assets = [PAIR[0], PAIR[1], "b.zip", "notes.txt"];
        assert_eq!(names("github:o/r@1~0,1", Want::Adapter, &assets).unwrap().0, PAIR);
        assert_eq!(names("github:o/r@1~2", Want::Adapter, &assets).unwrap(), (vec!["b.zip".into()], 1));
        for (text, part) in [
            ("github:o/r@1~0,7,9", "no longer has the assets with the ids 7, 9"),
            ("github:o/r@1~2,3", "would be `1~2`"),
            ("github:o/r@1~1,0", "would be `1~0,1`"),
            ("github:o/r@1~3", "no asset of the release can be an adapter"),
        ] {
            let error = names(text, Want::Adapter, &assets).unwrap_err();
            assert!(error.code() == "not_found" && error.to_string().contains(part), "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_model_is_a_folder_of_assets_or_one_file() {
        let of = |assets: &[&str]| names("github:o/r", Want::Model, assets).unwrap().0;
        let folder = ["config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(of(&[folder[0], folder[1], folder[2], "LICENSE", PAIR[1]]), folder);
        assert_eq!(of(&["m.gguf", "tokenizer.json", "x.md"]), ["m.gguf", "tokenizer.json"]);
        let named = names("github:o/r#m.gguf", Want::Model, &["m.gguf", "n.gguf", "tokenizer.json"]).unwrap().0;
        assert_eq!(named, ["m.gguf", "tokenizer.json"]);
        assert!(names("github:o/r#model.safetensors", Want::Model, &["model.safetensors"]).is_err());
    }

    #[test]
    fn what_is_there_instead_is_said() {
        for (text, assets, code, part) in [
            ("github:o/r", &["notes.txt"][..], "not_found", "it has notes.txt"),
            ("github:o/r", &[], "not_found", "no assets"),
            ("github:o/r#b.zip", &["a.zip"], "not_found", "it has a.zip"),
            ("github:o/r#adapter.pt", &["adapter.pt"], "unsupported_model_format", "pickle"),
            ("github:o/r", &["adapter.bin"], "unsupported_model_format", "pickle"),
            ("github:o/r#notes.txt", &["notes.txt"], "unsupported_model_format", "neither an archive"),
            ("github:o/r", &["new.zip"], "download_failed", "still being uploaded"),
            ("github:o/r", &["a.zip.001", "a.zip.003"], "not_found", "a.zip.002"),
        ] {
            let error = names(text, Want::Adapter, assets).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.is_retryable(), code == "download_failed");
        }
    }
}
