//! `adapter`: versions of adapters.

use std::{fmt::Write, process::ExitCode, time::SystemTime};

use indicatif::{DecimalBytes, HumanDuration};
use llm_local::{
    Adapters, ArtifactRef, Result,
    adapters::{AdapterVersion, HoldKind, InstalledAdapter},
    lora::WriteFormat,
};

use crate::{
    args::{Adapter, AdapterRef, Check, Convert, Format},
    bar, print,
    run::{cancel_on_interrupt, unless_cancelled},
    stored::resumable,
};

pub(crate) async fn adapter(adapters: &Adapters, command: Adapter) -> Result<ExitCode> {
    match command {
        Adapter::List => list(&adapters.list().await?),
        Adapter::Versions(adapter) => {
            let versions = adapters.versions(&adapter.reference()?).await?;
            print(&versions.iter().map(|version| line(version, SystemTime::now()) + "\n").collect::<String>())
        }
        Adapter::Update(adapter) => update(adapters, &adapter).await,
        Adapter::Pin { adapter, version } => {
            let (reference, cancel) = (adapter.reference()?, cancel_on_interrupt()?);
            let pinning = adapters.pin(&reference, version.as_deref(), Some(bar::progress()));
            let version = resumable(pinning, &cancel).await?;
            said(&format!("{} is pinned to {}", of_any_revision(&reference), version.title()))
        }
        Adapter::Unpin(adapter) => {
            let reference = adapter.reference()?;
            adapters.unpin(&reference).await?;
            said(&format!("{} is not pinned", of_any_revision(&reference)))
        }
        Adapter::Rollback(adapter) => {
            let reference = adapter.reference()?;
            let version = adapters.rollback(&reference).await?;
            let (of, title) = (of_any_revision(&reference), version.title());
            said(&format!("{of} is at {title} again, until it is updated"))
        }
        Adapter::Rm { adapter, version } => {
            let reference = adapter.reference()?;
            let deleted = adapters.delete(&reference, version.as_deref()).await?;
            said(&format!("{reference}: {} freed", DecimalBytes(deleted.bytes)))
        }
        Adapter::Inspect(adapter) => print(&adapters.inspect(&adapter.spec()?).await?.to_string()),
        Adapter::Check(how) => check(adapters, &how).await,
        Adapter::Convert(how) => convert(adapters, &how).await,
    }
}

/// A report goes to standard output, and fails the program if the adapter does not fit.
async fn check(adapters: &Adapters, how: &Check) -> Result<ExitCode> {
    let (base, adapter, cancel) = (how.base()?, how.adapter.spec()?, cancel_on_interrupt()?);
    let report = match how.effect {
        true => resumable(adapters.measure(&base, &adapter), &cancel).await?,
        false => resumable(adapters.check(&base, &adapter), &cancel).await?,
    };
    let text = match how.json {
        true => serde_json::json!(report).to_string() + "\n",
        false => report.to_string(),
    };
    let printed = print(&text)?;
    Ok(if report.fits { printed } else { ExitCode::FAILURE })
}

/// The files that were written go to standard output, what the format says otherwise to standard error.
async fn convert(adapters: &Adapters, how: &Convert) -> Result<ExitCode> {
    let (adapter, base, cancel) = (how.adapter.spec()?, how.base()?, cancel_on_interrupt()?);
    let format = match how.to {
        Format::Peft => WriteFormat::Peft,
        Format::MlxLm => WriteFormat::MlxLm,
        Format::Gguf => WriteFormat::Gguf,
    };
    let converting = adapters.convert(&adapter, format, base.as_ref(), &how.into, Some(bar::progress()));
    let written = unless_cancelled(converting, &cancel).await?;
    written.notes.iter().for_each(|note| eprintln!("note: {note}"));
    print(&written.files.iter().map(|file| format!("{}\n", file.display())).collect::<String>())
}

async fn update(adapters: &Adapters, adapter: &AdapterRef) -> Result<ExitCode> {
    let (reference, cancel) = (adapter.reference()?, cancel_on_interrupt()?);
    let version = resumable(adapters.update(&reference, Some(bar::progress())), &cancel).await?;
    said(&format!("{reference} is at {}", version.title()))
}

/// Every adapter with its versions.
fn list(adapters: &[InstalledAdapter]) -> Result<ExitCode> {
    let (mut lines, now) = (String::new(), SystemTime::now());
    for adapter in adapters {
        let hold = match adapter.hold {
            None => "",
            Some(HoldKind::RolledBack) => "  rolled back",
            Some(_) => "  pinned",
        };
        let _ = writeln!(lines, "{}{hold}", of_any_revision(&adapter.reference));
        for version in &adapter.versions {
            let _ = writeln!(lines, "  {}", line(version, now));
        }
    }
    print(&lines)
}

/// One line: version, revision, size, when it was used, and whether it is the current one.
fn line(version: &AdapterVersion, now: SystemTime) -> String {
    let kept = match version.last_used {
        Some(used) if version.installed => {
            let ago = HumanDuration(now.duration_since(used).unwrap_or_default());
            format!("{:>10}  used {ago} ago", DecimalBytes(version.bytes).to_string())
        }
        Some(_) => "INCOMPLETE; update or pull it".to_owned(),
        None => "not on this machine".to_owned(),
    };
    let current = if version.current { "  current" } else { "" };
    let name = version.version.as_deref().unwrap_or("-");
    // All of it: it is what `pin` and `rm` take.
    format!("{name:<16} {:<20} {kept}{current}", version.revision)
}

/// `reference` without the revision that it asks for: what is said of all versions is not said of that one.
fn of_any_revision(reference: &ArtifactRef) -> String {
    let part = reference.revision().and_then(|revision| revision.split_once(':')).map(|(_, part)| part);
    let part = part.filter(|part| !part.is_empty()).map(|part| format!(":{part}"));
    let fragment = reference.fragment().map(|fragment| format!("#{fragment}"));
    let (part, fragment) = (part.unwrap_or_default(), fragment.unwrap_or_default());
    format!("{}:{}{part}{fragment}", reference.scheme(), reference.locator())
}

fn said(text: &str) -> Result<ExitCode> {
    eprintln!("{text}");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_is_named_without_its_revision_and_with_its_part() {
        for (text, expected) in [
            ("github:o/r@v1", "github:o/r"),
            ("github:o/r@v1#a.zip", "github:o/r#a.zip"),
            ("github:o/r", "github:o/r"),
            ("hf:o/r@main:sub", "hf:o/r:sub"),
            ("hf:o/r:sub@main", "hf:o/r:sub"),
            ("/a:b", "file:/a:b"),
        ] {
            assert_eq!(of_any_revision(&text.parse().unwrap()), expected);
        }
    }
}
