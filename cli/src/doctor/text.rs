//! The report for people.

use std::fmt::Write;

use llm_local::{
    core::DecimalBytes as Bytes,
    memory::{Budget, ContextTiers, DeviceStatus},
};

use super::{
    fits::{Models, Short, Verdict},
    found::{Cache, Found, Known, Source},
};

pub(super) fn of(found: &Found, models: &Models) -> String {
    let mut lines = Lines(String::new());
    memory(&mut lines, found);
    for device in &found.status.devices {
        lines.add("device", &device_text(device));
        lines.add("", &context_reason(device, &found.policy.context_tiers));
    }
    for (name, why) in &found.unavailable {
        lines.add("absent", &format!("backend `{name}`: {why}"));
    }
    pressure(&mut lines, &found.pressure);
    lines.add("cache", &cache(&found.cache));
    for fit in &models.models {
        let (label, text) = verdict(&fit.verdict);
        lines.add(label, &format!("{}: {text}", fit.model));
    }
    match &models.unlisted {
        Some(why) => lines.add("unknown", &format!("which models are kept: {why}")),
        None if models.models.is_empty() => {
            lines.add("fits", "no model is kept here; `llm-local doctor REF` asks for one")
        }
        None => {}
    }
    lines.0
}

/// Lines with a label, as plans have them.
struct Lines(String);

impl Lines {
    fn add(&mut self, label: &str, text: &str) {
        // A String takes all.
        let _ = writeln!(self.0, "{label:<8} {text}");
    }
}

fn memory(lines: &mut Lines, found: &Found) {
    match &found.memory {
        Err(why) => lines.add("memory", &format!("not known, and so not bounded: {why}")),
        Ok(memory) => {
            lines.add("memory", &format!("{}, {} available", Bytes(memory.total), Bytes(memory.available)));
            let limit = match &memory.limit {
                Some(limit) => format!("{}, {} left: {}", Bytes(limit.bytes), Bytes(limit.available), limit.by),
                None => "none for this program".to_owned(),
            };
            lines.add("limit", &limit);
        }
    }
    let budget = match found.policy.budget {
        Budget::Bytes(bytes) => Bytes(bytes).to_string(),
        Budget::Share(share) => format!("{share} of what there is"),
        other => format!("{other:?}"),
    };
    lines.add("budget", &format!("{budget}, for all models together"));
}

fn device_text(device: &DeviceStatus) -> String {
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string());
    let mut text = format!(
        "{} ({}) of {}: memory {}, budget {}, room now {}",
        device.device.id,
        device.device.name,
        device.backend,
        known(device.usable),
        known(device.budget),
        known(device.room)
    );
    if device.models > 0 {
        let _ = write!(text, ", {} promised to {} models", Bytes(device.promised), device.models);
    }
    text
}

/// The context that models have on `device` by themselves, and why.
pub(super) fn context_reason(device: &DeviceStatus, tiers: &ContextTiers) -> String {
    let row = tiers.row(device.usable);
    let why = match (device.usable, row.from_bytes) {
        (None, _) => "as its memory is not known".to_owned(),
        (Some(_), 0) => match tiers.rows().get(1) {
            Some(next) => format!("as it has less than {} GB", next.from_bytes as f64 / 1e9),
            None => "on any device".to_owned(),
        },
        (Some(_), from) => format!("as it has {} GB or more", from as f64 / 1e9),
    };
    format!("contexts of {} tokens at most where none is asked for, {why}", device.context_length)
}

fn pressure(lines: &mut Lines, sources: &[Source]) {
    let there: Vec<_> = sources.iter().filter(|s| s.missing.is_none()).map(|s| s.name.as_str()).collect();
    let there = if there.is_empty() { "no source of memory pressure".to_owned() } else { there.join(", ") };
    lines.add("pressure", &there);
    for source in sources {
        if let Some(why) = &source.missing {
            lines.add("", &format!("not {}: {why}", source.name));
        }
    }
}

fn cache(cache: &Cache) -> String {
    let told = |bytes: &Known<u64>, what: &str| match bytes {
        Ok(bytes) => format!("{} {what}", Bytes(*bytes)),
        Err(why) => format!("unknown how much is {what}: {why}"),
    };
    format!("{}: {}, {}", cache.folder.display(), told(&cache.bytes, "kept"), told(&cache.free, "free on its disk"))
}

fn verdict(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Fits { required, context_length, reason, .. } => {
            ("fits", format!("{}, context {context_length} tokens: {reason}", Bytes(*required)))
        }
        Verdict::Short(short) => (if short.fits_alone() { "not now" } else { "no" }, short_text(short)),
        Verdict::Unknown(why) => ("error", why.clone()),
    }
}

fn short_text(short: &Short) -> String {
    let Short { wanted, required, available, budget, largest_context } = short;
    let mut text = format!("{} at least, and {} there are now", Bytes(*required), Bytes(*available));
    if let Some(wanted) = wanted.filter(|wanted| wanted > required) {
        let _ = write!(text, "; {} with the context that it would have", Bytes(wanted));
    }
    if let Some(tokens) = largest_context {
        let _ = write!(text, "; --context-length {tokens} would fit");
    }
    match budget {
        Some(budget) if short.fits_alone() => {
            let _ = write!(text, "; it fits into the budget of {} once others give memory back", Bytes(*budget));
        }
        Some(budget) if budget <= required => {
            let _ = write!(text, "; the budget is {}", Bytes(*budget));
        }
        _ => {}
    }
    text
}
