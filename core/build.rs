//! Needed by cargo because of `links`; there is nothing to build.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
