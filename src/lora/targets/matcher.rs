//! Module paths against names, regular expressions and layer indexes.
//!
//! The expressions are Python's, look-around and back-references included, so the engine is one that backtracks. How
//! far is bounded: an expression comes with a download.

use fancy_regex::{Regex, RegexBuilder};

/// Steps back that one match may take. A few hundred are usual for a path.
const BACKTRACK_LIMIT: usize = 100_000;

/// A choice of modules, ready to match.
pub(super) enum Matcher {
    Names(Vec<String>),
    Pattern(Pattern),
}

impl Matcher {
    pub(super) fn names(names: Vec<String>) -> Self {
        Self::Names(names)
    }

    /// A regular expression that must match a whole path, as Python's `re.fullmatch`.
    pub(super) fn pattern(field: &str, text: &str) -> Result<Self, String> {
        Pattern::new(field, text, &format!(r"\A(?:{text})\z")).map(Self::Pattern)
    }

    /// Whether `module` is chosen; the error names the field whose expression takes too many steps.
    pub(super) fn matches(&self, module: &str) -> Result<bool, String> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| ends_with_path(module, name))),
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }

    /// Whether it can choose nothing, being a list without names.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }

    /// Whether `module` itself stands in a list of names.
    pub(super) fn is_whole_path(&self, module: &str) -> bool {
        matches!(self, Self::Names(names) if names.iter().any(|name| name == module))
    }

    /// The names that match none of `modules`; the error names all of them, or the expression, if nothing matches.
    pub(super) fn without_match<'a, I: Iterator<Item = &'a str>>(
        &self,
        modules: impl Fn() -> I,
    ) -> Result<Vec<String>, NoMatch> {
        match self {
            Self::Names(names) => {
                let none = |name: &&String| !modules().any(|m| ends_with_path(m, name));
                let unmatched: Vec<_> = names.iter().filter(none).cloned().collect();
                if unmatched.len() == names.len() { Err(NoMatch::Nothing(unmatched)) } else { Ok(unmatched) }
            }
            Self::Pattern(pattern) => {
                for module in modules() {
                    if pattern.is_match(module).map_err(NoMatch::Undecided)? {
                        return Ok(Vec::new());
                    }
                }
                Err(NoMatch::Nothing(vec![pattern.text.clone()]))
            }
        }
    }
}

/// Why a choice chooses nothing.
pub(super) enum NoMatch {
    /// These names, or this expression, match no module.
    Nothing(Vec<String>),
    /// The expression takes too many steps: the reason, naming the field.
    Undecided(String),
}

/// Whether `module` is `path`, or ends with it after a dot.
pub(in crate::lora) fn ends_with_path(module: &str, path: &str) -> bool {
    module.strip_suffix(path).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// A regular expression of a config.
pub(super) struct Pattern {
    field: String,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles `regex`, made of the `text` of `field`.
    fn new(field: &str, text: &str, regex: &str) -> Result<Self, String> {
        let compile = |regex: &str| RegexBuilder::new(regex).backtrack_limit(BACKTRACK_LIMIT).build();
        // The text is compiled alone first: parentheses that close what stands around it must not pass.
        let regex = compile(text).and_then(|_| compile(regex)).map_err(|error| {
            format!(
                "`{field}` is the regular expression `{text}`, which is broken or uses what only Python's engine \
                 knows; name the modules instead: {error}"
            )
        })?;
        Ok(Self { field: field.to_owned(), text: text.to_owned(), regex })
    }

    /// The expression `text` of `field`, which must match the end of a path from a segment's start on: in Python
    /// `re.match(r"(.*\.)?(TEXT)$", path)`.
    pub(super) fn at_end(field: &str, text: &str) -> Result<Self, String> {
        Self::new(field, text, &format!(r"\A(.*\.)?({text})\z"))
    }

    /// The expression `text` of `field`, which must match whole segments of a path, or all of them, that end where one of the
    /// path does: in Python `re.match(r"(^|.*\.)TEXT($|\..*)", path)`.
    pub(super) fn of_segments(field: &str, text: &str) -> Result<Self, String> {
        Self::new(field, text, &format!(r"\A(?:|.*\.)(?:{text})(?:\z|\.)"))
    }

    pub(super) fn is_match(&self, module: &str) -> Result<bool, String> {
        self.regex.is_match(module).map_err(|error| self.undecided(module, &error))
    }

    /// What the group `index` matches.
    fn index<'m>(&self, module: &'m str) -> Result<Option<&'m str>, String> {
        let captures = self.regex.captures(module).map_err(|error| self.undecided(module, &error))?;
        Ok(captures.and_then(|c| c.name("index")).map(|index| index.as_str()))
    }

    fn undecided(&self, module: &str, error: &fancy_regex::Error) -> String {
        format!(
            "`{}` is the regular expression `{}`, which takes too many steps on the module `{module}`; name the \
             modules instead: {error}",
            self.field, self.text
        )
    }
}

/// The layers that an adapter is confined to.
pub(super) struct LayerFilter {
    layers: Vec<usize>,
    patterns: Vec<Pattern>,
}

impl LayerFilter {
    /// `layers`, found in a path by the number after a segment that matches one of `patterns`, or after any segment
    /// that is not the path's first.
    pub(super) fn new(layers: Vec<usize>, patterns: &[String]) -> Result<Self, String> {
        let patterns = if patterns.is_empty() {
            vec![Pattern::new("layers_pattern", "", r"\A.*?\.[^.]*\.(?P<index>\d+)\.")?]
        } else {
            let of = |p: &String| Pattern::new("layers_pattern", p, &format!(r"\A(?:\A|.*?\.){p}\.(?P<index>\d+)\."));
            patterns.iter().map(of).collect::<Result<_, _>>()?
        };
        Ok(Self { layers, patterns })
    }

    /// Whether `module` is in one of the layers; the error is as that of [`Matcher::matches`].
    pub(super) fn matches(&self, module: &str) -> Result<bool, String> {
        Ok(self.layer_of(module)?.is_some_and(|layer| self.layers.contains(&layer)))
    }

    /// The layers that none of `modules` is in.
    pub(super) fn without_match(&self, modules: &[&str]) -> Result<Vec<usize>, String> {
        let present = modules.iter().map(|m| self.layer_of(m)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.layers.iter().copied().filter(|layer| !present.contains(&Some(*layer))).collect())
    }

    /// The first number after a segment that fits: in a mixture of experts the layer's index comes before the expert's.
    fn layer_of(&self, module: &str) -> Result<Option<usize>, String> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.index(module)? {
                return Ok(index.parse().ok());
            }
        }
        Ok(None)
    }
}
