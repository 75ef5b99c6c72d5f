//! The worker with a model that computes nothing: it logs its steps, waits at gates, and breaks on purpose.

mod adapters;
mod anew;
mod conformance;
mod driven;
mod ends;
mod failures;
mod fairness;
mod fake;
mod generating;
mod inbox;
mod lifetime;
mod outlet;
mod random;
mod replaced;
mod sessions;
mod sharing;
mod sleep;
