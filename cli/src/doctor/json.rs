//! The report for programs. Bytes are numbers; what could not be told has an `error`.

use llm_local::{core::serde_json::Value, memory::Budget};
use serde_json::json;

use super::{
    fits::{Fit, Models, Verdict},
    found::{Found, Known},
    text::context_reason,
};

pub(super) fn of(found: &Found, models: &Models) -> Value {
    let memory = match &found.memory {
        Err(why) => json!({ "error": why }),
        Ok(memory) => {
            let limit = memory.limit.as_ref();
            let limit = limit.map(|l| json!({ "bytes": l.bytes, "available": l.available, "by": l.by }));
            json!({ "total": memory.total, "available": memory.available, "limit": limit })
        }
    };
    let budget = match found.policy.budget {
        Budget::Bytes(bytes) => json!({ "bytes": bytes }),
        Budget::Share(share) => json!({ "share": share }),
        other => json!({ "error": format!("{other:?}") }),
    };
    let device = |d: &llm_local::memory::DeviceStatus| {
        json!({
            "backend": d.backend,
            "id": d.device.id,
            "kind": d.device.kind,
            "name": d.device.name,
            "memory": d.usable,
            "budget": d.budget,
            "promised": d.promised,
            "room": d.room,
            "context_length": d.context_length,
            "context_reason": context_reason(d, &found.policy.context_tiers),
        })
    };
    let devices: Vec<_> = found.status.devices.iter().map(device).collect();
    let unavailable = found.unavailable.iter().map(|(name, why)| json!({ "backend": name, "reason": why }));
    let pressure = found.pressure.iter().map(|s| json!({ "source": s.name, "missing": s.missing }));
    json!({
        "memory": memory,
        "budget": budget,
        "devices": devices,
        "unavailable": unavailable.collect::<Vec<_>>(),
        "pressure": pressure.collect::<Vec<_>>(),
        "cache": {
            "folder": found.cache.folder,
            "bytes": known(&found.cache.bytes),
            "free": known(&found.cache.free),
        },
        "models": match &models.unlisted {
            Some(why) if models.models.is_empty() => json!({ "error": why }),
            _ => models.models.iter().map(model).collect(),
        },
    })
}

fn known(bytes: &Known<u64>) -> Value {
    match bytes {
        Ok(bytes) => json!(bytes),
        Err(why) => json!({ "error": why }),
    }
}

/// `fits` is `now`, `alone` (if nothing else took memory), `no`, or null where that is not known.
fn model(fit: &Fit) -> Value {
    let mut of = json!({ "model": fit.model, "asked": fit.asked });
    let more = match &fit.verdict {
        Verdict::Fits { required, room, context_length, reason } => json!({
            "fits": "now",
            "required": required,
            "room": room,
            "context_length": context_length,
            "context_reason": reason,
        }),
        Verdict::Short(short) => json!({
            "fits": if short.fits_alone() { "alone" } else { "no" },
            "required": short.required,
            "required_for_whole_context": short.wanted,
            "room": short.available,
            "budget": short.budget,
            "largest_context": short.largest_context,
        }),
        Verdict::Unknown(why) => json!({ "fits": null, "error": why }),
    };
    if let (Value::Object(of), Value::Object(more)) = (&mut of, more) {
        of.extend(more);
    }
    of
}
