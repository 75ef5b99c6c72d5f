//! The transfer engine against a hub that fails as it is told.

mod cancel;
mod connections;
mod contents;
mod credentials;
mod progress;
mod proxies;
mod refusals;
mod resume;
mod several;
mod sources;
mod space;
mod support;
mod waits;
