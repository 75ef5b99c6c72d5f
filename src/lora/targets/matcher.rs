//! Module paths against names, regular expressions and layer indexes.

use regex::Regex;

/// A choice of modules, ready to match.
pub(super) enum Matcher {
    Names(Vec<String>),
    Pattern { text: String, regex: Regex },
}

impl Matcher {
    pub(super) fn names(names: Vec<String>) -> Self {
        Self::Names(names)
    }

    /// A regular expression that must match a whole path, as Python's `re.fullmatch`.
    pub(super) fn pattern(field: &str, text: &str) -> Result<Self, String> {
        Ok(Self::Pattern { text: text.to_owned(), regex: compile(field, text, &format!(r"\A(?:{text})\z"))? })
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| ends_with_path(module, name)),
            Self::Pattern { regex, .. } => regex.is_match(module),
        }
    }

    /// Whether `module` itself stands in a list of names.
    pub(super) fn is_whole_path(&self, module: &str) -> bool {
        matches!(self, Self::Names(names) if names.iter().any(|name| name == module))
    }

    /// The names, or the expression, that match none of `modules`.
    pub(super) fn without_match<'a, I: Iterator<Item = &'a str>>(&self, modules: impl Fn() -> I) -> Vec<String> {
        match self {
            Self::Names(names) => {
                names.iter().filter(|name| !modules().any(|m| ends_with_path(m, name))).cloned().collect()
            }
            Self::Pattern { text, regex } if !modules().any(|m| regex.is_match(m)) => vec![text.clone()],
            Self::Pattern { .. } => Vec::new(),
        }
    }
}

/// Whether `module` is `path`, or ends with it after a dot.
fn ends_with_path(module: &str, path: &str) -> bool {
    module.strip_suffix(path).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Compiles `regex`, made of the `text` of `field`.
fn compile(field: &str, text: &str, regex: &str) -> Result<Regex, String> {
    // The text is compiled alone first: parentheses that close what stands around it must not pass.
    Regex::new(text).and_then(|_| Regex::new(regex)).map_err(|error| {
        format!(
            "`{field}` is the regular expression `{text}`, which is broken or uses what only Python's engine knows \
             (look-around, back-references); list the modules instead: {error}"
        )
    })
}

/// The layers that an adapter is confined to.
pub(super) struct LayerFilter {
    layers: Vec<usize>,
    patterns: Vec<Regex>,
}

impl LayerFilter {
    /// `layers`, found in a path by the number after a segment that matches one of `patterns`, or after any segment
    /// that is not the path's first.
    pub(super) fn new(layers: Vec<usize>, patterns: &[String]) -> Result<Self, String> {
        let patterns = if patterns.is_empty() {
            vec![Regex::new(r"\A.*?\.[^.]*\.(?P<index>\d+)\.").expect("a constant pattern")]
        } else {
            let of = |p: &String| compile("layers_pattern", p, &format!(r"\A(?:\A|.*?\.){p}\.(?P<index>\d+)\."));
            patterns.iter().map(of).collect::<Result<_, _>>()?
        };
        Ok(Self { layers, patterns })
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        self.layer_of(module).is_some_and(|layer| self.layers.contains(&layer))
    }

    /// The layers that none of `modules` is in.
    pub(super) fn without_match<'a>(&self, modules: impl Iterator<Item = &'a str>) -> Vec<usize> {
        let present: Vec<usize> = modules.filter_map(|m| self.layer_of(m)).collect();
        self.layers.iter().copied().filter(|layer| !present.contains(layer)).collect()
    }

    /// The first number after a segment that fits: in a mixture of experts the layer's index comes before the expert's.
    fn layer_of(&self, module: &str) -> Option<usize> {
        let captures = self.patterns.iter().find_map(|p| p.captures(module))?;
        captures.name("index")?.as_str().parse().ok()
    }
}
