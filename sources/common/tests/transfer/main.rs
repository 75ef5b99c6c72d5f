//! The transfer engine against a hub that fails as it is told.

mod assets;
mod cancel;
mod connections;
mod contents;
mod credentials;
mod faults;
mod faults_small;
#[cfg(unix)]
mod noted;
mod progress;
mod proxies;
mod reads;
mod refusals;
mod resume;
mod secrets;
mod several;
mod small;
mod sources;
mod space;
mod support;
mod trust;
mod unpacked;
mod unpacked_refused;
mod waits;
