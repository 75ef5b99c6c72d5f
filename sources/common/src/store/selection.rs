//! Which version of an artifact is the one to use, and which were before.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use llm_local_core::{ArtifactRef, Error, Manifest, Result, Want};
use serde::{Deserialize, Serialize};

use super::{
    Kept, Store,
    group::Group,
    ledger::{Ledger, files_ending},
    record::{Record, from_millis, to_millis},
    tree,
};
use crate::disk::write_text_atomically;

/// The version of the form that is written and read.
const VERSION: u32 = 1;
/// So many selections are remembered of an artifact.
const MOST: usize = 32;

/// What was selected of the versions of an artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selection {
    /// The versions that were selected, one after the other; the last is the one to use. None follows itself.
    pub history: Vec<Selected>,
    /// Why that one stays selected, whatever is newer.
    pub hold: Option<HoldKind>,
}

/// A version that was selected.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Selected {
    /// The immutable revision.
    pub revision: String,
    /// Its name for people, where it has one.
    pub version: Option<String>,
    /// When it was selected.
    pub at: SystemTime,
}

/// Why a version stays selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HoldKind {
    /// Its user wants this one.
    Pinned,
    /// Its user went back to it from a later one.
    RolledBack,
}

/// A selection on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Form {
    version: u32,
    /// A ref of the group, for people who look.
    reference: ArtifactRef,
    want: Want,
    history: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<HoldKind>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    revision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Milliseconds since 1970.
    at: u64,
}

impl Selection {
    /// The version to use, if one was selected.
    pub fn current(&self) -> Option<&Selected> {
        self.history.last()
    }

    /// Whether it says the same as `other` of which version to use, and why.
    pub fn is_as(&self, other: &Self) -> bool {
        let says = |selection: &Self| (selection.current().map(|c| c.revision.clone()), selection.hold);
        says(self) == says(other)
    }

    /// No two in a row of one revision, and no hold of nothing.
    fn tidy(&mut self) {
        self.history.dedup_by(|later, earlier| later.revision == earlier.revision);
        self.history.drain(..self.history.len().saturating_sub(MOST));
        self.hold = self.hold.filter(|_| !self.history.is_empty());
    }
}

impl Selected {
    /// As people name it.
    pub fn title(&self) -> &str {
        self.version.as_deref().unwrap_or(&self.revision)
    }
}

/// What is left of a selection when some versions go.
pub(super) struct Left {
    path: PathBuf,
    reference: ArtifactRef,
    want: Want,
    /// `None` if nothing is.
    selection: Option<Selection>,
}

impl Store {
    /// What was selected of the versions of what `reference` names, wanted as `want`, whatever revision it asks for. Empty
    /// if nothing was.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidSpec`] that names the file, if it is broken or of a newer version of the program.
    pub fn selection(&self, reference: &ArtifactRef, want: Want) -> Result<Selection> {
        read(&self.selection_path(&Group::of(reference, want)))
    }

    /// Selects the version that `manifest` is, and holds it there for the reason `hold`, or lets what was held go. It need
    /// not be here. Selecting what is selected changes the hold alone.
    ///
    /// # Errors
    /// As [`Store::selection`]; [`Error::Cancelled`] as [`Store::with_cancel`].
    pub fn select(
        &self,
        reference: &ArtifactRef,
        want: Want,
        manifest: &Manifest,
        hold: Option<HoldKind>,
    ) -> Result<()> {
        self.select_after(reference, want, manifest, hold, None).map(drop)
    }

    /// As [`Store::select`], unless something else was selected, held or let go since `seen`: then nothing changes, and
    /// it is false unless just this was selected. Whoever decided long ago what to select overrules nobody who did so since.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn select_if(
        &self,
        reference: &ArtifactRef,
        want: Want,
        manifest: &Manifest,
        hold: Option<HoldKind>,
        seen: &Selection,
    ) -> Result<bool> {
        self.select_after(reference, want, manifest, hold, Some(seen))
    }

    fn select_after(
        &self,
        reference: &ArtifactRef,
        want: Want,
        manifest: &Manifest,
        hold: Option<HoldKind>,
        seen: Option<&Selection>,
    ) -> Result<bool> {
        let is_current = |selection: &Selection| selection.current().is_some_and(|c| c.revision == manifest.revision);
        let is_done = |selection: &Selection| is_current(selection) && selection.hold == hold;
        // Most calls change nothing, and a store that is read-only can tell so, too.
        if is_done(&self.selection(reference, want)?) {
            return Ok(true);
        }
        let _changing = self.change()?;
        let mut selection = self.selection(reference, want)?;
        if seen.is_some_and(|seen| !selection.is_as(seen)) {
            return Ok(is_done(&selection));
        }
        if !is_current(&selection) {
            let (revision, version) = (manifest.revision.clone(), manifest.version.clone());
            selection.history.push(Selected { revision, version, at: self.now() });
        }
        selection.hold = hold;
        self.write_selection(reference, want, selection)?;
        Ok(true)
    }

    /// The version that [`Store::roll_back`] goes back to: the newest of those that were selected before the current one and
    /// are here, all of it.
    ///
    /// # Errors
    /// [`Error::NotFound`], which says what is kept, if there is none; as [`Store::select`].
    pub fn version_before(&self, reference: &ArtifactRef, want: Want) -> Result<Kept> {
        self.earlier(reference, want).map(|(_, _, kept)| kept)
    }

    /// Selects [`Store::version_before`] and holds it there, if its revision still is `revision`; else it changes nothing and
    /// gives `None`. What was selected after it is forgotten.
    ///
    /// # Errors
    /// As [`Store::version_before`].
    pub fn roll_back(&self, reference: &ArtifactRef, want: Want, revision: &str) -> Result<Option<Kept>> {
        let _changing = self.change()?;
        let (mut selection, at, kept) = self.earlier(reference, want)?;
        if kept.manifest.revision != revision {
            return Ok(None);
        }
        selection.history.truncate(at + 1);
        selection.hold = Some(HoldKind::RolledBack);
        self.write_selection(reference, want, selection)?;
        Ok(Some(kept))
    }

    /// Lets the version that is selected be followed by a newer one again.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn release(&self, reference: &ArtifactRef, want: Want) -> Result<()> {
        if self.selection(reference, want)?.hold.is_none() {
            return Ok(());
        }
        let _changing = self.change()?;
        let selection = Selection { hold: None, ..self.selection(reference, want)? };
        self.write_selection(reference, want, selection)
    }

    /// The selection, the number of the entry to go back to, and what it names.
    fn earlier(&self, reference: &ArtifactRef, want: Want) -> Result<(Selection, usize, Kept)> {
        let selection = self.selection(reference, want)?;
        let ledger = self.ledger()?;
        let mut kept = self.kept_of(&ledger, reference, want)?;
        kept.retain(|kept| kept.whole);
        let current = selection.current().map(|current| current.revision.as_str());
        for (number, entry) in selection.history.iter().enumerate().rev() {
            let of_entry = kept.iter().position(|kept| kept.manifest.revision == entry.revision);
            if let Some(at) = of_entry.filter(|_| Some(entry.revision.as_str()) != current) {
                let kept = kept.swap_remove(at);
                return Ok((selection, number, kept));
            }
        }
        let group = Group::of(reference, want);
        let selected = match selection.current() {
            Some(current) => format!("`{}` is selected", current.title()),
            None => "none was selected".into(),
        };
        let reason = format!("{selected}, none before it is here whole, and {}", ledger.kept_text(&group));
        Err(Error::not_found(format!("an earlier version of {reference}"), reason))
    }

    /// What is left of the selections when the records of these numbers go. Only for those who have the right to change
    /// the store.
    ///
    /// # Errors
    /// [`Error::Io`] of kind `ResourceBusy` if one that is held would go and not all versions with it; as
    /// [`Store::selection`].
    pub(super) fn selections_without(&self, ledger: &Ledger, going: &[usize]) -> Result<Vec<Left>> {
        let (mut all, mut seen) = (Vec::new(), Vec::new());
        for number in going {
            let record = &ledger.records[*number];
            let group = record.group();
            if seen.contains(&group) {
                continue;
            }
            seen.push(group);
            let path = self.selection_path(&group);
            let (reference, want) = (record.reference.clone(), record.want);
            let stays = |record: &Record| going.iter().all(|i| ledger.records[*i].key() != record.key());
            let staying: Vec<_> = ledger.of_group(&group).filter(|record| stays(record)).collect();
            if staying.is_empty() {
                all.push(Left { path, reference, want, selection: None });
                continue;
            }
            let mut selection = read(&path)?;
            let goes = |selected: &Selected| {
                let is = |record: &&Record| record.revision == selected.revision;
                ledger.of_group(&group).any(|record| is(&record)) && !staying.iter().any(is)
            };
            if let Some(current) = selection.current().filter(|current| selection.hold.is_some() && goes(current)) {
                let kind = if selection.hold == Some(HoldKind::Pinned) { "pinned" } else { "rolled back to" };
                let reason = format!(
                    "the version `{}` of {} is {kind}; release it or select another first, or delete all versions",
                    current.title(),
                    record.reference
                );
                return Err(Error::io("delete", path, io::Error::new(io::ErrorKind::ResourceBusy, reason)));
            }
            if selection.history.iter().any(goes) {
                selection.history.retain(|selected| !goes(selected));
                all.push(Left { path, reference, want, selection: Some(selection) });
            }
        }
        Ok(all)
    }

    /// Writes what is left.
    pub(super) fn leave(&self, left: &Left) -> Result<()> {
        let selection = left.selection.clone().unwrap_or_default();
        write(&left.path, &left.reference, left.want, selection)
    }

    /// The numbers of the records of versions that are held.
    pub(super) fn selected_and_held(&self, ledger: &Ledger) -> Result<Vec<usize>> {
        let mut numbers = Vec::new();
        for path in files_ending(&self.selections(), ".json")? {
            let is_held = |record: &Record| match read(&path) {
                Ok(selection) => {
                    let current = selection.current().filter(|_| selection.hold.is_some());
                    current.is_some_and(|current| current.revision == record.revision)
                }
                // Nobody can say, so what it may name stays.
                Err(_) => fs::read(&path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(&record.revision)),
            };
            let of_group = |record: &Record| self.selection_path(&record.group()) == path;
            let all = ledger.records.iter().enumerate();
            numbers.extend(all.filter(|(_, record)| of_group(record) && is_held(record)).map(|(number, _)| number));
        }
        Ok(numbers)
    }

    fn write_selection(&self, reference: &ArtifactRef, want: Want, selection: Selection) -> Result<()> {
        write(&self.selection_path(&Group::of(reference, want)), reference, want, selection)
    }

    fn selection_path(&self, group: &Group<'_>) -> PathBuf {
        self.selections().join(format!("{}.json", group.key()))
    }

    fn selections(&self) -> PathBuf {
        self.root().join("selected")
    }
}

/// Makes `selection` of `reference` that at `path`.
fn write(path: &Path, reference: &ArtifactRef, want: Want, mut selection: Selection) -> Result<()> {
    selection.tidy();
    if selection.history.is_empty() {
        return tree::remove(path).map(drop);
    }
    let entry = |s: Selected| Entry { revision: s.revision, version: s.version, at: to_millis(s.at) };
    let history = selection.history.into_iter().map(entry).collect();
    let form = Form { version: VERSION, reference: reference.clone(), want, history, hold: selection.hold };
    let text = serde_json::to_string_pretty(&form);
    let text = text.map_err(|e| Error::invalid_spec(format!("selection of {reference}"), e.to_string()))?;
    write_text_atomically(path, &text)
}

/// The selection at `path`.
fn read(path: &Path) -> Result<Selection> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bad = |reason: String| Error::invalid_spec(format!("selection {}", path.display()), reason);
    let broken = |e: serde_json::Error| {
        bad(format!("it cannot be read: {e}; remove the file, and nothing is selected, while what is kept stays"))
    };
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Selection::default()),
        other => other.map_err(|e| Error::io("read", path, e))?,
    };
    let Version { version } = serde_json::from_slice(&text).map_err(broken)?;
    if version != VERSION {
        return Err(bad(format!("it has version {version}, and this program knows {VERSION}; update the program")));
    }
    let form: Form = serde_json::from_slice(&text).map_err(broken)?;
    let selected = |e: Entry| Selected { revision: e.revision, version: e.version, at: from_millis(e.at) };
    Ok(Selection { history: form.history.into_iter().map(selected).collect(), hold: form.hold })
}
