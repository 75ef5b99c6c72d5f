//! What an engine may fetch: an allow-list of the application's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use llm_local_core::{ArtifactRef, Error, Manifest, Result, Unpack, Want};
use llm_local_source_common::{
    transfer::Files,
    unpack::{ArchiveFormat, Limits},
};
use llm_local_weights::{is_gguf, is_pickle, is_safetensors, is_trainer_state};

/// A form that weights come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// `.safetensors`.
    Safetensors,
    /// `.gguf`.
    Gguf,
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Gguf => "gguf",
        })
    }
}

/// What an engine may fetch and use. What no rule speaks of is allowed; with a rule, only what it lists. Each is checked as
/// soon as what it is about is known, and before any byte of a file moves: schemes and owners by the ref, before its
/// source is asked; hosts by each request, redirects too; sizes, formats and licences by the source's listing. What an
/// archive holds is checked when it is unpacked, before it is used; if it is refused then, it is not kept, unless it was
/// before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    schemes: Option<BTreeSet<String>>,
    owners: Option<BTreeSet<String>>,
    hosts: Option<BTreeSet<String>>,
    formats: Option<BTreeSet<WeightFormat>>,
    licenses: Option<BTreeSet<String>>,
    model_bytes: Option<u64>,
    adapter_bytes: Option<u64>,
}

impl Policy {
    /// A policy that allows everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows refs of these schemes: `file`, `hf`, `github`.
    pub fn allow_schemes<T: Into<String>>(mut self, schemes: impl IntoIterator<Item = T>) -> Self {
        extend(&mut self.schemes, schemes.into_iter().map(Into::into));
        self
    }

    /// Allows what these owners or organisations publish: the first part of a ref's locator, whatever the case
    /// (`mistralai` of `hf:mistralai/Mistral-7B`), or with the scheme before it to mean those of one source alone
    /// (`github:acme`). Files of this machine have no owner, and no rule on owners is about them.
    ///
    /// Both the owner that the ref names and the one that its source answers for must be allowed, where the source tells
    /// ([`Manifest::owner`]; GitHub does): a repository that was given to another owner is found by its old name as long as
    /// its host redirects that.
    pub fn allow_owners<T: Into<String>>(mut self, owners: impl IntoIterator<Item = T>) -> Self {
        extend(&mut self.owners, owners.into_iter().map(|owner| owner.into().to_lowercase()));
        self
    }

    /// Allows requests to these hosts, redirects too: `huggingface.co`, or `*.hf.co` for every host below one.
    ///
    /// It binds the requests for files, wherever they are, and those of sources that the engine makes of plugins. A source
    /// that is given as an instance ([`crate::EngineBuilder::source`]) asks for its lists with a network of its own, which is
    /// bound by its own settings alone: give it one with the same hosts (`GitHubBuilder::network` with
    /// [`crate::NetworkConfig::with_allowed_hosts`], and likewise of other sources).
    pub fn allow_hosts<T: Into<String>>(mut self, hosts: impl IntoIterator<Item = T>) -> Self {
        extend(&mut self.hosts, hosts.into_iter().map(|host| host.into().to_lowercase()));
        self
    }

    /// Allows weights of these forms.
    pub fn allow_formats(mut self, formats: impl IntoIterator<Item = WeightFormat>) -> Self {
        extend(&mut self.formats, formats.into_iter());
        self
    }

    /// Allows artifacts under these licences, in the words of the source, whatever the case: `apache-2.0`, `mit`. One whose
    /// source tells no licence is then not allowed; files of this machine, which have none to tell, are.
    pub fn allow_licenses<T: Into<String>>(mut self, licenses: impl IntoIterator<Item = T>) -> Self {
        extend(&mut self.licenses, licenses.into_iter().map(|license| license.into().to_lowercase()));
        self
    }

    /// Allows models of at most so many bytes: in what is fetched, and in what comes out of archives.
    pub fn max_model_bytes(mut self, bytes: u64) -> Self {
        self.model_bytes = Some(bytes);
        self
    }

    /// Allows adapters of at most so many bytes, as [`Policy::max_model_bytes`] has it.
    pub fn max_adapter_bytes(mut self, bytes: u64) -> Self {
        self.adapter_bytes = Some(bytes);
        self
    }

    /// The hosts that may be asked, if there is a rule.
    pub(crate) fn hosts(&self) -> Option<Vec<String>> {
        self.hosts.as_ref().map(|hosts| hosts.iter().cloned().collect())
    }

    /// Checks what a ref says.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] that names the rule.
    pub(crate) fn check_ref(&self, reference: &ArtifactRef) -> Result<()> {
        let scheme = reference.scheme();
        if let Some(schemes) = &self.schemes
            && !schemes.contains(scheme)
        {
            let reason = format!("its scheme `{scheme}` is none of {}", listed(schemes));
            return Err(Error::not_allowed(reference, reason));
        }
        if reference.is_file() {
            return Ok(());
        }
        self.check_owner(reference, reference.locator().split('/').next().unwrap_or_default(), "its owner")
    }

    /// Checks that `owner`, which `who` says whose it is, is allowed.
    fn check_owner(&self, reference: &ArtifactRef, owner: &str, who: &str) -> Result<()> {
        let (scheme, owner) = (reference.scheme(), owner.to_lowercase());
        match &self.owners {
            Some(owners) if !owners.contains(&owner) && !owners.contains(&format!("{scheme}:{owner}")) => {
                Err(Error::not_allowed(reference, format!("{who} `{owner}` is none of {}", listed(owners))))
            }
            _ => Ok(()),
        }
    }

    /// Checks what a source lists.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] that names the rule.
    pub(crate) fn check_manifest(&self, manifest: &Manifest) -> Result<()> {
        let reference = &manifest.reference;
        if let Some(owner) = &manifest.owner {
            self.check_owner(reference, owner, "its source now has it from the owner")?;
        }
        self.check_size(manifest, manifest.total_bytes(), "has")?;
        // A part is weights of the form that its whole is, under a name that says nothing.
        let joined = manifest.unpack.iter().filter_map(|step| match step {
            Unpack::Join { into, .. } => Some(into.as_str()),
            _ => None,
        });
        self.check_formats(reference, manifest.files.iter().map(|file| file.path.as_str()).chain(joined))?;
        let Some(licenses) = self.licenses.as_ref().filter(|_| !reference.is_file()) else { return Ok(()) };
        match &manifest.license {
            Some(license) if licenses.contains(&license.to_lowercase()) => Ok(()),
            Some(license) => {
                Err(Error::not_allowed(reference, format!("its licence `{license}` is none of {}", listed(licenses))))
            }
            None => {
                let reason = format!("its source tells no licence, and only {} are allowed", listed(licenses));
                Err(Error::not_allowed(reference, reason))
            }
        }
    }

    /// Checks what was made of the archives of an artifact, which no listing tells: files, by their sizes in bytes.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] that names the rule.
    pub(crate) fn check_made(&self, manifest: &Manifest, sizes: &BTreeMap<String, u64>) -> Result<()> {
        self.check_formats(&manifest.reference, sizes.keys().map(String::as_str))?;
        self.check_size(manifest, sizes.values().copied().fold(0, u64::saturating_add), "unpacked has")
    }

    /// As [`Policy::check_made`], of what was kept before.
    ///
    /// # Errors
    /// Those, and [`Error::Io`] for a file that is not there; within [`Error::AdapterMergeFailed`] for an adapter.
    pub(crate) fn check_unpacked(&self, manifest: &Manifest, files: &Files) -> Result<()> {
        if manifest.unpack.is_empty() {
            return Ok(());
        }
        let size = |path| Ok(fs_err::metadata(path).map_err(|e| Error::io("read", path, e))?.len());
        let sizes = files.iter().map(|(name, path)| Ok((name.clone(), size(path)?))).collect::<Result<_>>();
        let checked = sizes.and_then(|sizes| self.check_made(manifest, &sizes));
        match manifest.want {
            Want::Adapter => checked.map_err(|e| e.into_adapter(&manifest.reference)),
            _ => checked,
        }
    }

    fn check_size(&self, manifest: &Manifest, bytes: u64, has: &str) -> Result<()> {
        let what = if manifest.want == Want::Adapter { "an adapter" } else { "a model" };
        match self.most(manifest.want) {
            Some(most) if bytes > most => {
                let reason = format!("{what} may have {most} bytes, and it {has} {bytes}");
                Err(Error::not_allowed(&manifest.reference, reason))
            }
            _ => Ok(()),
        }
    }

    fn most(&self, want: Want) -> Option<u64> {
        if want == Want::Adapter { self.adapter_bytes } else { self.model_bytes }
    }

    /// `limits`, and no more than may be in anything that is wanted as `want`. So an archive that holds much more than that
    /// is given up while it is unpacked, and not once it is.
    pub(crate) fn unpack_limits(&self, limits: &Limits, want: Want) -> Limits {
        let Some(most) = self.most(want) else { return limits.clone() };
        let rule = if want == Want::Adapter { "`Policy::max_adapter_bytes`" } else { "`Policy::max_model_bytes`" };
        // In a compressed tar what is skipped counts too, like the states of an optimizer: it may be beside as much again.
        limits.clone().with_policy(rule, most, most.saturating_mul(2))
    }

    /// Checks the names of the files that an artifact has; archives among them are let through, to be checked once they
    /// are unpacked.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] that names the file and the rule.
    fn check_formats<'a>(&self, reference: &ArtifactRef, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let Some(formats) = &self.formats else { return Ok(()) };
        for name in names.filter(|name| ArchiveFormat::of_name(name).is_none()) {
            let format = match name {
                _ if is_safetensors(name) => WeightFormat::Safetensors,
                _ if is_gguf(name) => WeightFormat::Gguf,
                _ if is_pickle(name) && !is_trainer_state(name) => {
                    let reason = format!("`{name}` is a pickle, which is none of {}", listed(formats));
                    return Err(Error::not_allowed(reference, reason));
                }
                _ => continue,
            };
            if !formats.contains(&format) {
                let reason = format!("`{name}` is {format}, which is none of {}", listed(formats));
                return Err(Error::not_allowed(reference, reason));
            }
        }
        Ok(())
    }
}

fn extend<T: Ord>(rule: &mut Option<BTreeSet<T>>, values: impl Iterator<Item = T>) {
    rule.get_or_insert_default().extend(values);
}

fn listed<T: fmt::Display>(values: &BTreeSet<T>) -> String {
    if values.is_empty() {
        return "those allowed, which are none".into();
    }
    values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use llm_local_core::ManifestFile;

    use super::*;

    fn manifest(reference: &str, want: Want, files: &[&str]) -> Manifest {
        let files = files.iter().map(|name| ManifestFile::new(*name, 10)).collect();
        Manifest::new(reference.parse().unwrap(), want, "1", files).unwrap()
    }

    fn refused(result: Result<()>, part: &str) {
        let error = result.unwrap_err();
        assert_eq!(error.code(), "not_allowed");
        assert!(error.to_string().contains(part), "{error}");
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        let policy = Policy::new();
        policy.check_ref(&"any:thing".parse().unwrap()).unwrap();
        policy.check_manifest(&manifest("hf:o/r", Want::Model, &["m.gguf"])).unwrap();
        assert_eq!(policy.hosts(), None);
    }

    #[test]
    fn a_ref_is_judged_by_scheme_and_owner() {
        let check = |policy: &Policy, text: &str| policy.check_ref(&text.parse().unwrap());
        let policy = Policy::new().allow_schemes(["hf", "file"]);
        check(&policy, "hf:o/r").unwrap();
        refused(check(&policy, "github:o/r"), "its scheme `github` is none of `file`, `hf`");
        let policy = Policy::new().allow_owners(["Acme", "github:other"]);
        for allowed in ["hf:ACME/x", "github:acme/x", "github:other/x", "/any/file"] {
            check(&policy, allowed).unwrap();
        }
        refused(check(&policy, "hf:other/x"), "its owner `other` is none of `acme`, `github:other`");
        refused(check(&Policy::new().allow_schemes::<&str>([]), "hf:o/r"), "which are none");
    }

    #[test]
    fn the_owner_that_a_source_answers_for_is_judged_too() {
        let policy = Policy::new().allow_owners(["acme"]);
        let of = |owner: &str| manifest("github:acme/r", Want::Adapter, &["a.gguf"]).with_owner(owner);
        policy.check_manifest(&of("ACME")).unwrap();
        refused(policy.check_manifest(&of("Other")), "its source now has it from the owner `other` is none of `acme`");
        Policy::new().check_manifest(&of("other")).unwrap();
    }

    #[test]
    fn an_archive_may_hold_what_the_rule_of_what_is_wanted_allows() {
        let limits = Limits::default();
        let (adapter, model) = (Policy::new().max_adapter_bytes(10), Policy::new().max_model_bytes(20));
        let both = adapter.clone().max_model_bytes(20);
        let of = |policy: &Policy| [Want::Adapter, Want::Model].map(|want| policy.unpack_limits(&limits, want));
        let an_adapter = limits.clone().with_policy("`Policy::max_adapter_bytes`", 10, 20);
        let a_model = limits.clone().with_policy("`Policy::max_model_bytes`", 20, 40);
        // One rule holds without the other.
        assert_eq!(of(&adapter), [an_adapter.clone(), limits.clone()]);
        assert_eq!(of(&model), [limits.clone(), a_model.clone()]);
        assert_eq!(of(&both), [an_adapter, a_model]);
        assert_eq!(of(&Policy::new()), [limits.clone(), limits.clone()]);
    }

    #[test]
    fn a_listing_is_judged_by_size_format_and_licence() {
        let policy = Policy::new().max_adapter_bytes(19).max_model_bytes(20);
        refused(policy.check_manifest(&manifest("hf:o/r", Want::Adapter, &["a", "b"])), "an adapter may have 19 bytes");
        policy.check_manifest(&manifest("hf:o/r", Want::Model, &["a", "b"])).unwrap();
        refused(policy.check_manifest(&manifest("hf:o/r", Want::Model, &["a", "b", "c"])), "a model may have 20 bytes");
        let policy = Policy::new().allow_formats([WeightFormat::Safetensors]);
        policy.check_manifest(&manifest("hf:o/r", Want::Adapter, &["a.zip", "x.safetensors", "c.json"])).unwrap();
        refused(
            policy.check_manifest(&manifest("hf:o/r", Want::Adapter, &["adapter.bin"])),
            "`adapter.bin` is a pickle",
        );
        refused(policy.check_manifest(&manifest("hf:o/r", Want::Model, &["c.json", "m.gguf"])), "`m.gguf` is gguf");
        let split = |into: &str| {
            let step = Unpack::Join { parts: vec!["x.001".into(), "x.002".into()], into: into.into() };
            manifest("github:o/r", Want::Adapter, &["x.001", "x.002"]).with_unpack(vec![step]).unwrap()
        };
        refused(policy.check_manifest(&split("m.gguf")), "`m.gguf` is gguf");
        policy.check_manifest(&split("m.safetensors")).unwrap();
        let policy = Policy::new().allow_licenses(["MIT"]);
        policy.check_manifest(&manifest("hf:o/r", Want::Model, &["m"]).with_license("mit")).unwrap();
        policy.check_manifest(&manifest("/m", Want::Model, &["m"])).unwrap();
        refused(policy.check_manifest(&manifest("hf:o/r", Want::Model, &["m"]).with_license("gpl")), "licence `gpl`");
        refused(policy.check_manifest(&manifest("hf:o/r", Want::Model, &["m"])), "tells no licence");
    }
}
