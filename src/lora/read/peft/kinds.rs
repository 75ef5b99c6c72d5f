//! PEFT's kinds other than LoRA, each with why it is not read.
//!
//! Source: PEFT `src/peft/utils/peft_types.py`.

use serde_json::Value;

use crate::lora::read::value::shown;

/// Kinds that add inputs or layers: no weights of the base could be changed to the same effect.
const ADDS: &[(&str, &str)] = &[
    ("PROMPT_TUNING", "prompt tuning puts trained vectors before the prompt"),
    ("MULTITASK_PROMPT_TUNING", "multitask prompt tuning puts trained vectors before the prompt"),
    ("P_TUNING", "p-tuning puts trained vectors before the prompt"),
    ("PREFIX_TUNING", "prefix tuning puts trained vectors before the keys and values"),
    ("CPT", "context-aware prompt tuning puts trained vectors before the prompt"),
    ("CARTRIDGE", "a cartridge puts trained vectors before the keys and values"),
    ("ADAPTION_PROMPT", "LLaMA-Adapter adds gated attention to trained vectors"),
    ("XLORA", "X-LoRA mixes adapters anew for each token"),
    ("POLY", "Poly mixes adapters by the task of a request"),
    ("SHADOW", "shadow adapters run beside the base"),
];

/// Kinds that change weights by another rule than LoRA's.
const CHANGES: &[&str] = &[
    "ADALORA",
    "ADAMSS",
    "BEFT",
    "BOFT",
    "BONE",
    "C3A",
    "DEFT",
    "DELORA",
    "FOURIERFT",
    "FROD",
    "GLORA",
    "GRALORA",
    "HIRA",
    "HRA",
    "IA3",
    "LILY",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "MISS",
    "OFT",
    "OSF",
    "PEANUT",
    "PSOFT",
    "PVERA",
    "RANDLORA",
    "ROAD",
    "SHIRA",
    "SUPERTUNING",
    "TINYLORA",
    "TRAINABLE_TOKENS",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
];

/// Whether `peft_type` is LoRA; the error says what else it is.
pub(super) fn check(peft_type: Option<&Value>) -> Result<(), String> {
    let Some(Value::String(kind)) = peft_type else {
        let found = shown(peft_type.unwrap_or(&Value::Null));
        return Err(format!(
            "`peft_type` is {found}; expected the name of a kind, of which only \"LORA\" is supported"
        ));
    };
    let upper = kind.to_ascii_uppercase();
    if upper == "LORA" {
        return Ok(());
    }
    let why = if let Some((_, what)) = ADDS.iter().find(|(name, _)| *name == upper) {
        format!("{what}, which no change of weights can stand for")
    } else if CHANGES.contains(&upper.as_str()) {
        "it changes weights by another rule than LoRA".to_owned()
    } else {
        "it is not a kind of PEFT that is known".to_owned()
    };
    Err(format!("`peft_type` is \"{kind}\": {why}; of PEFT's kinds only \"LORA\" is supported"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_but_lora_is_refused_by_name_and_why() {
        assert_eq!(check(Some(&json!("LORA"))), Ok(()));
        assert_eq!(check(Some(&json!("lora"))), Ok(()));
        for (kind, why) in [
            (json!("PREFIX_TUNING"), "before the keys and values"),
            (json!("prompt_tuning"), "before the prompt"),
            (json!("IA3"), "another rule than LoRA"),
            (json!("ADALORA"), "another rule than LoRA"),
            (json!("XLORA"), "for each token"),
            (json!("FUTURE"), "not a kind of PEFT that is known"),
            (json!(3), "expected the name of a kind"),
        ] {
            let reason = check(Some(&kind)).unwrap_err();
            assert!(reason.contains(&format!("`peft_type` is {kind}")) && reason.contains(why), "{reason}");
            assert!(reason.contains("only \"LORA\""), "{reason}");
        }
        assert!(check(None).unwrap_err().contains("`peft_type` is null"));
    }
}
