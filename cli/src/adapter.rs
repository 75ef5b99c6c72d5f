//! `adapter`: versions of adapters.

use std::{fmt::Write, process::ExitCode, time::SystemTime};

use indicatif::{DecimalBytes, HumanDuration};
use llm_local::{
    Adapters, Result,
    adapters::{AdapterVersion, HoldKind, InstalledAdapter},
};

use crate::{
    args::{Adapter, AdapterRef},
    bar, print,
    run::cancel_on_interrupt,
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
            said(&format!("{reference} is pinned to {}", version.title()))
        }
        Adapter::Unpin(adapter) => {
            let reference = adapter.reference()?;
            adapters.unpin(&reference).await?;
            said(&format!("{reference} is not pinned"))
        }
        Adapter::Rollback(adapter) => {
            let reference = adapter.reference()?;
            let version = adapters.rollback(&reference).await?;
            said(&format!("{reference} is at {} again, until it is updated", version.title()))
        }
        Adapter::Rm { adapter, version } => {
            let reference = adapter.reference()?;
            let deleted = adapters.delete(&reference, version.as_deref()).await?;
            said(&format!("{reference}: {} freed", DecimalBytes(deleted.bytes)))
        }
        Adapter::Inspect(adapter) => print(&adapters.inspect(&adapter.reference()?).await?.to_string()),
    }
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
        let _ = writeln!(lines, "{}{hold}", adapter.reference);
        for version in &adapter.versions {
            let _ = writeln!(lines, "  {}", line(version, now));
        }
    }
    print(&lines)
}

/// One line: version, revision, size, when it was used, and whether it is the current one.
fn line(version: &AdapterVersion, now: SystemTime) -> String {
    let revision: String = version.revision.chars().take(20).collect();
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
    format!("{name:<16} {revision:<20} {kept}{current}")
}

fn said(text: &str) -> Result<ExitCode> {
    eprintln!("{text}");
    Ok(ExitCode::SUCCESS)
}
