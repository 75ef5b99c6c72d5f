//! `plan`: what a run would use.

use std::process::ExitCode;

use llm_local::{Engine, ModelSpec, Result};

use crate::print;

/// Shows the plan of `spec`; where memory is short, what it would take by part, and then the error, which says what would fit.
pub(crate) async fn plan(engine: &Engine, spec: &ModelSpec) -> Result<ExitCode> {
    let planned = engine.plan(spec).await;
    if planned.as_ref().is_err_and(|error| error.is_out_of_memory())
        && let Ok(estimate) = engine.estimate(spec).await
    {
        print(&estimate.to_string())?;
    }
    print(&planned?.to_string())
}
