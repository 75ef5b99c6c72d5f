//! The format: `factors.json`, which has the factors of each module as numbers.
//!
//! ```json
//! { "kind": "factors", "scale": 1.0, "modules": { "voice": { "a": [[1.0]], "b": [[2.0]] } } }
//! ```

use llm_local_core::{
    Error, LoraAdapter, LoraModule, Result,
    lora::{AdapterFiles, AdapterFormat, Floats},
    serde_json::{self, Value},
};

/// The file.
pub(crate) const FILE: &str = "factors.json";
/// The format's name, and the `kind` that the file says.
pub(crate) const NAME: &str = "factors";

/// The format `factors`.
#[derive(Debug)]
pub struct Factors;

impl AdapterFormat for Factors {
    fn name(&self) -> &str {
        NAME
    }

    fn recognizes(&self, files: &AdapterFiles<'_>) -> Result<bool> {
        Ok(json(files)?.is_some_and(|json| json["kind"] == NAME))
    }

    fn read(&self, files: &AdapterFiles<'_>) -> Result<LoraAdapter> {
        let error = |reason: String| Error::adapter(files.reference, format!("{FILE}: {reason}"));
        let json = json(files)?.ok_or_else(|| error("it is not there any more".into()))?;
        let scale = json["scale"].as_f64().ok_or_else(|| error("expected a number as `scale`".into()))?;
        let modules = json["modules"].as_object().ok_or_else(|| error("expected an object as `modules`".into()))?;
        let modules = modules.iter().map(|(name, factors)| {
            module(name, factors, scale).map_err(|reason| error(format!("the module `{name}`: {reason}")))
        });
        // The engine takes the digest of what was read itself.
        Ok(LoraAdapter::new(files.reference.to_string(), "", modules.collect::<Result<_>>()?).with_format(NAME))
    }
}

/// The content of the file, if it is there and JSON.
fn json(files: &AdapterFiles<'_>) -> Result<Option<Value>> {
    let Some(path) = files.files.get(FILE) else { return Ok(None) };
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn module(name: &str, factors: &Value, scale: f64) -> Result<LoraModule, String> {
    let (rank, in_features, a) = matrix(&factors["a"]).ok_or("expected rows of numbers as `a`, (rank, in)")?;
    let (out_features, columns, b) = matrix(&factors["b"]).ok_or("expected rows of numbers as `b`, (out, rank)")?;
    if columns != rank {
        return Err(format!("`a` has {rank} rows and `b` {columns} columns; expected as many"));
    }
    Ok(LoraModule::new(name, (rank, in_features, out_features), a, b, scale))
}

/// Rows, columns and values of rows of numbers.
fn matrix(rows: &Value) -> Option<(usize, usize, Floats)> {
    let rows: Vec<Vec<f32>> = rows.as_array()?.iter().map(row).collect::<Option<_>>()?;
    let columns = rows.first().map(Vec::len).filter(|columns| *columns > 0)?;
    let is_whole = rows.iter().all(|row| row.len() == columns);
    is_whole.then(|| (rows.len(), columns, Floats::F32(rows.concat())))
}

fn row(row: &Value) -> Option<Vec<f32>> {
    row.as_array()?.iter().map(|number| number.as_f64().map(|number| number as f32)).collect()
}
