//! Which modules an adapter says it applies to.

/// The modules that an adapter says it applies to, in the words of its format and not yet matched against a base.
///
/// Source of the rules: PEFT `src/peft/tuners/tuners_utils.py`, `check_target_module_exists`; mlx-lm `tuner/utils.py`,
/// `linear_to_lora_layers`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeclaredTargets {
    /// The modules.
    pub modules: ModuleSelector,
    /// Modules that are none of them, whatever `modules` says.
    pub exclude: Option<ModuleSelector>,
    /// Only these layers, counted from 0; empty for all of them.
    pub layers: Vec<usize>,
    /// Regular expressions of the path segment before a layer's index (`layers`); empty for any.
    pub layers_pattern: Vec<String>,
    /// Only so many layers, counted from the base's last one (mlx-lm's `num_layers`); `None` for all of them. A module that
    /// is of no layer, or whose whole path stands in `modules`, is not confined by it.
    pub last_layers: Option<usize>,
    /// Bare parameters (PEFT's `target_parameters`): tensors of the base whose name is one of these, or ends with `.` and one
    /// of these. None of the fields above confines them.
    pub parameters: Vec<String>,
    /// Modules that are saved in full (PEFT's `modules_to_save`): regular expressions of whole segments of a path. What they
    /// match, and what is in it, is none of the modules.
    pub saved: Vec<String>,
}

impl DeclaredTargets {
    /// `modules` of every layer.
    pub fn new(modules: ModuleSelector) -> Self {
        Self {
            modules,
            exclude: None,
            layers: Vec::new(),
            layers_pattern: Vec::new(),
            last_layers: None,
            parameters: Vec::new(),
            saved: Vec::new(),
        }
    }

    /// Sets the modules that are left out.
    pub fn with_exclude(mut self, exclude: ModuleSelector) -> Self {
        self.exclude = Some(exclude);
        self
    }

    /// Sets the layers, counted from 0, and the regular expressions of what stands before a layer's index.
    pub fn with_layers(mut self, layers: Vec<usize>, layers_pattern: Vec<String>) -> Self {
        (self.layers, self.layers_pattern) = (layers, layers_pattern);
        self
    }

    /// Confines it to so many layers, counted from the base's last one.
    pub fn with_last_layers(mut self, last_layers: usize) -> Self {
        self.last_layers = Some(last_layers);
        self
    }

    /// Sets the bare parameters.
    pub fn with_parameters(mut self, parameters: Vec<String>) -> Self {
        self.parameters = parameters;
        self
    }

    /// Sets the modules that are saved in full.
    pub fn with_saved(mut self, saved: Vec<String>) -> Self {
        self.saved = saved;
        self
    }
}

/// A choice of modules.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModuleSelector {
    /// What the format chooses for the architecture when nothing is said.
    ArchitectureDefault,
    /// Modules whose path is one of these, or ends with `.` and one of these.
    Names(Vec<String>),
    /// Modules whose whole path matches this regular expression.
    Pattern(String),
    /// Every linear module except the output head.
    AllLinear,
}
