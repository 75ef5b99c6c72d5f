//! The report as text.

use std::fmt;

use super::{CompatibilityReport, IdentityCheck, TensorReport, TensorState};
use crate::lora::message::shape_text;

impl fmt::Display for CompatibilityReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |words: Vec<String>, none: &str| if words.is_empty() { none.to_owned() } else { words.join(", ") };
        writeln!(f, "adapter   {}", self.adapter)?;
        writeln!(f, "base      {}", self.base)?;
        writeln!(f, "verdict   {}", if self.fits { "it fits" } else { "it does not fit" })?;
        for defect in &self.defects {
            match defect.allowance {
                Some(allowance) if self.allowed.contains(&allowance) => {
                    writeln!(f, "  let pass ({allowance})  {}", defect.reason)?;
                }
                Some(allowance) => writeln!(f, "  error ({allowance} would let it pass)  {}", defect.reason)?,
                None => writeln!(f, "  error  {}", defect.reason)?,
            }
        }
        writeln!(f, "format    {}", self.format)?;
        writeln!(f, "features  {}", or(self.features.iter().map(ToString::to_string).collect(), "plain pairs alone"))?;
        writeln!(f, "rank      {}", or(self.ranks.iter().map(ToString::to_string).collect(), "none"))?;
        writeln!(f, "alpha     {}", self.alpha.map_or("not known".to_owned(), |alpha| alpha.to_string()))?;
        writeln!(f, "scale     {}", or(self.scales.iter().map(ToString::to_string).collect(), "none"))?;
        self.write_identity(f)?;
        self.write_tensors(f)?;
        self.write_targets(f)?;
        for note in &self.notes {
            writeln!(f, "note      {note}")?;
        }
        self.write_effects(f)
    }
}

impl CompatibilityReport {
    fn write_identity(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = &self.identity;
        writeln!(f, "base by   {:<14} {:<9} trained on -> this one", "", "verdict")?;
        for (what, IdentityCheck { verdict, adapter, base }) in [
            ("name", &identity.name),
            ("revision", &identity.revision),
            ("config digest", &identity.config_digest),
            ("vocabulary", &identity.vocabulary),
            ("architecture", &identity.architecture),
        ] {
            let (adapter, base) = (adapter.as_deref().unwrap_or("?"), base.as_deref().unwrap_or("?"));
            writeln!(f, "          {what:<14} {:<9} {adapter} -> {base}", verdict.as_str())?;
        }
        Ok(())
    }

    fn write_tensors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |is: fn(&TensorState) -> bool| self.tensors.iter().filter(|tensor| is(&tensor.state)).count();
        writeln!(
            f,
            "tensors   {} applied, {} unused, {} misshaped, {} refused",
            count(|state| *state == TensorState::Applied),
            count(|state| *state == TensorState::Unused),
            count(|state| matches!(state, TensorState::Misshaped { .. })),
            count(|state| *state == TensorState::Refused),
        )?;
        for TensorReport { name, shape, state, .. } in self.not_applied() {
            let shape = shape_text(shape);
            match state {
                TensorState::Misshaped { expected } => {
                    writeln!(f, "  misshaped  {name} {shape}, expected {}", shape_text(expected))?;
                }
                TensorState::Unused => writeln!(f, "  unused     {name} {shape}")?,
                _ => writeln!(f, "  refused    {name} {shape}")?,
            }
        }
        Ok(())
    }

    fn write_targets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing: Vec<_> = self.targets.iter().filter(|target| !target.is_covered).collect();
        if self.targets.is_empty() {
            writeln!(f, "targets   none declared that the base has")?;
        } else {
            let covered = self.targets.len() - missing.len();
            writeln!(f, "targets   {covered} with tensors, {} without", missing.len())?;
        }
        for target in missing {
            writeln!(f, "  without    {}", target.module)?;
        }
        for name in &self.unmatched_targets {
            writeln!(f, "  unmatched  {name}")?;
        }
        Ok(())
    }

    fn write_effects(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(effects) = &self.effects else { return Ok(()) };
        writeln!(f, "effect    norm of the change / norm of the weight")?;
        for effect in effects {
            let ratio = effect.ratio.map_or("of zeros".to_owned(), |ratio| format!("{ratio:.6}"));
            writeln!(f, "  {ratio:>10}  {}", effect.name)?;
        }
        Ok(())
    }
}
