//! Figures of another engine, measured by a script.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use serde::Deserialize;

use crate::{Result, files};

/// What the script wrote.
#[derive(Deserialize)]
pub(super) struct Beside {
    engine: String,
    threads: usize,
    results: BTreeMap<String, Figures>,
}

/// Medians for one file, in tokens per second.
#[derive(Deserialize)]
pub(super) struct Figures {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

impl Beside {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let read: Self = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let here = files::threads();
        if read.threads != here {
            let path = path.display();
            return Err(format!("{path}: it is of {} threads, and this run is of {here}", read.threads).into());
        }
        Ok(read)
    }

    pub(super) fn figures(&self, file: &str) -> Option<&Figures> {
        self.results.get(file)
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.engine)
    }
}
