//! Values that differ by module, such as PEFT's `rank_pattern` and `alpha_pattern`.

use super::matcher::Pattern;

/// Values by module, of which the first that matches counts.
///
/// Source of the rule: PEFT `src/peft/utils/other.py`, `get_pattern_key`: `re.match(r"(.*\.)?(KEY)$", module)`.
pub(in crate::lora) struct Overrides<T> {
    entries: Vec<(Pattern, T)>,
}

impl<T: Copy> Overrides<T> {
    /// The values of `field`, by regular expressions of the end of a module's path, in the order of the config. The error
    /// names the field.
    pub(in crate::lora) fn new(field: &str, values: Vec<(String, T)>) -> Result<Self, String> {
        let entry = |(key, value): (String, T)| Ok((Pattern::at_end(field, &key)?, value));
        Ok(Self { entries: values.into_iter().map(entry).collect::<Result<_, String>>()? })
    }

    /// The value of `module`, if one is given; the error names the field whose expression takes too many steps.
    pub(in crate::lora) fn get(&self, module: &str) -> Result<Option<T>, String> {
        for (pattern, value) in &self.entries {
            if pattern.is_match(module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// Whether no value is given for any module.
    pub(in crate::lora) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(keys: &[&str]) -> Overrides<usize> {
        Overrides::new("rank_pattern", keys.iter().map(|k| (*k).to_owned()).zip(1..).collect()).unwrap()
    }

    #[test]
    fn the_first_key_that_matches_the_end_of_a_path_counts() {
        // Compared with PEFT's get_pattern_key over the same keys and modules.
        let of = |keys: &[&str], module| overrides(keys).get(module).unwrap();
        let module = "model.layers.0.self_attn.q_proj";
        assert_eq!(of(&["q_proj", module], module), Some(1));
        assert_eq!(of(&[module, "q_proj"], module), Some(1));
        assert_eq!(of(&["k_proj", "self_attn.q_proj", "q_proj"], module), Some(2));
        assert_eq!(of(&["^model.layers.0.self_attn.q_proj"], module), Some(1));
        assert_eq!(of(&["^layers.0.self_attn.q_proj", "_proj", "self_attn"], module), None);
        assert_eq!(of(&[r".*\.layers\.[01]\..*", "q_proj"], module), Some(1));
        assert_eq!(of(&["k_proj|q_proj"], module), Some(1));
        assert_eq!(of(&["layers.0", "layers.0.*"], module), Some(2));
        assert_eq!(of(&["experts.down_proj"], "model.layers.0.mlp.experts.down_proj"), Some(1));
        assert_eq!(of(&["model.layers.1.mlp"], "model.layers.11.mlp"), None);
        assert!(overrides(&[]).is_empty());
    }

    #[test]
    fn a_key_that_is_broken_or_never_decided_is_refused_with_the_field() {
        let broken = Overrides::new("rank_pattern", vec![("(".to_owned(), 1)]).err().unwrap();
        assert!(broken.contains("`rank_pattern`") && broken.contains("`(`"), "{broken}");
        let hostile = overrides(&[r"(?=m)(?:(?:[a-z0-9_.]|[a-z0-9_.](?=.|$))+)+!"]);
        let reason = hostile.get("model.layers.0.self_attn.q_proj").unwrap_err();
        assert!(reason.contains("`rank_pattern`") && reason.contains("too many steps"), "{reason}");
    }
}
