//! Says where there is an MLX to call: `cfg(mlx)`.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(mlx)");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let apple_silicon = is("CARGO_CFG_TARGET_VENDOR", "apple") && is("CARGO_CFG_TARGET_ARCH", "aarch64");
    if apple_silicon || env::var_os("CARGO_FEATURE_LINUX_CPU").is_some() {
        println!("cargo:rustc-cfg=mlx");
    }
}
