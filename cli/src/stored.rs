//! `pull`, `list`, `rm`, `verify` and `clean`: what is kept on this machine.

use std::{
    fmt::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use indicatif::{DecimalBytes, HumanDuration};
use llm_local::{
    ArtifactRef, Engine, Error, Result, Store,
    core::{CancellationToken, Want},
    store::{Artifact, MERGED_SCHEME, Outcome},
};

use crate::{
    args::{Pull, Verify},
    bar, print,
    run::{cancel_on_interrupt, unless_cancelled},
};

/// Fetches models or adapters without loading them.
pub(crate) async fn pull(engine: &Engine, args: Pull) -> Result<ExitCode> {
    let want = if args.adapter { Want::Adapter } else { Want::Model };
    let cancel = cancel_on_interrupt()?;
    if let Some(path) = &args.lock {
        let lock = llm_local::lock::read(path)?;
        resumable(engine.download_locked(&lock, Some(bar::progress())), &cancel).await?;
        for artifact in &lock.artifacts {
            eprintln!("{} is on this machine, as it was locked", artifact.reference);
        }
    }
    for reference in args.references() {
        let reference = reference?;
        resumable(engine.download_artifact(&reference, want, Some(bar::progress())), &cancel).await?;
        eprintln!("{reference} is on this machine");
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for `download`, or gives it up when the user interrupts, and says that it can go on.
pub(crate) async fn resumable<T>(download: impl Future<Output = Result<T>>, cancel: &CancellationToken) -> Result<T> {
    let result = unless_cancelled(download, cancel).await;
    if matches!(result, Err(Error::Cancelled)) {
        eprintln!("interrupted; the same command goes on where this one was");
    }
    result
}

/// Lists what is kept.
pub(crate) fn list(store: &Store) -> Result<ExitCode> {
    let listing = store.list()?;
    let mut lines = String::new();
    for artifact in &listing.artifacts {
        let _ = writeln!(lines, "{}", line(artifact, SystemTime::now()));
    }
    for unreadable in &listing.unreadable {
        eprintln!("warning: {}: {}", unreadable.path.display(), unreadable.reason);
    }
    let size = store.size()?;
    let total = size.fetched + size.found;
    let _ = writeln!(lines, "{} in all, in {} and the caches it shares", DecimalBytes(total), store.root().display());
    let unfinished = size.partials + size.unrecorded;
    if unfinished > 0 {
        let _ = writeln!(
            lines,
            "{} of unfinished downloads, which go on when they are pulled again; `llm-local clean` frees old ones",
            DecimalBytes(unfinished)
        );
    }
    print(&lines)
}

/// One line: ref, revision, size, when it was used, and what is particular about it.
fn line(artifact: &Artifact, now: SystemTime) -> String {
    let revision: String = artifact.revision.chars().take(12).collect();
    let used = now.duration_since(artifact.last_used).unwrap_or_default();
    let mut notes = Vec::new();
    if artifact.want == Want::Adapter {
        notes.push("adapter".to_owned());
    }
    notes.extend(artifact.license.clone());
    if artifact.gated == Some(true) {
        notes.push("gated".into());
    }
    match artifact.found.len() {
        0 => {}
        _ if !artifact.fetched => notes.push("found in the cache of another tool".into()),
        found => notes.push(format!("{found} of {} files found in the cache of another tool", artifact.files.len())),
    }
    if artifact.pinned {
        notes.push("pinned".into());
    }
    if !artifact.damaged.is_empty() {
        // No source has it.
        let is_merge = artifact.reference.scheme() == MERGED_SCHEME;
        let remedy = if is_merge { "the next load makes it again" } else { "pull it again" };
        notes.push(format!("DAMAGED: {}; {remedy}", artifact.damaged.join(", ")));
    }
    let size = DecimalBytes(artifact.bytes).to_string();
    let notes = notes.join(", ");
    let line = format!(
        "{:<48} {revision:<12} {size:>10}  used {} ago  {notes}",
        artifact.reference.to_string(),
        HumanDuration(used)
    );
    line.trim_end().to_owned()
}

/// Deletes what `references` name.
pub(crate) fn remove(store: &Store, references: &[ArtifactRef]) -> Result<ExitCode> {
    let store = telling(store);
    for reference in references {
        let deleted = store.delete(reference)?;
        eprintln!("{reference}: {} freed", DecimalBytes(deleted.bytes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Frees what interrupted downloads have left to which nothing was added for so many days.
pub(crate) fn clean(store: &Store, days: u32) -> Result<ExitCode> {
    let older_than = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
    let cleaned = telling(store).clean(older_than, SystemTime::now())?;
    eprintln!("unfinished downloads: {} freed", DecimalBytes(cleaned.bytes));
    let size = store.size()?;
    let left = size.partials + size.unrecorded;
    if left > 0 && days > 0 {
        eprintln!("{} of younger ones stay; --older-than 0 frees all that nobody works on", DecimalBytes(left));
    }
    Ok(ExitCode::SUCCESS)
}

/// `store`, and it says what it waits for.
fn telling(store: &Store) -> Store {
    store.clone().with_on_wait(|reason| eprintln!("waiting: {reason}"))
}

/// Reads every file again and compares it with its digest.
pub(crate) fn verify(store: &Store, args: &Verify) -> Result<ExitCode> {
    let reference = args.reference.as_ref().map(|text| text.parse()).transpose()?;
    let store = telling(store);
    let verified = store.verify(reference.as_ref(), &CancellationToken::new())?;
    let (mut lines, mut damaged) = (String::new(), 0);
    for file in &verified {
        let outcome = match &file.outcome {
            Outcome::Intact => "intact".to_owned(),
            Outcome::Unproven => "has its size; nobody ever knew its digest".to_owned(),
            Outcome::Missing => "MISSING".to_owned(),
            Outcome::WrongSize { expected, found } => format!("DAMAGED: expected {expected} bytes, found {found}"),
            Outcome::WrongDigest { expected, found } => format!("DAMAGED: expected {expected}, found {found}"),
            Outcome::Unreadable { reason } => format!("UNREADABLE: {reason}"),
            other => format!("{other:?}"),
        };
        damaged += usize::from(file.outcome.is_damage());
        let _ = writeln!(lines, "{} {}: {outcome}", file.reference, file.path);
    }
    print(&lines)?;
    if damaged == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    if args.repair {
        let removed = store.remove_damaged(&verified)?;
        eprintln!(
            "damaged files removed: {}; the next pull or run brings them anew, and the next load makes what was merged",
            removed.files
        );
    } else {
        eprintln!(
            "damaged files: {damaged}; --repair removes them, so that the next pull brings them anew, and the next load makes what was merged"
        );
    }
    Ok(ExitCode::FAILURE)
}
