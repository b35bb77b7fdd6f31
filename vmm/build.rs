//! Builds the micro guest, a workspace of its own, and tells the crate where its image lies:
//! `include_bytes!(env!("LOCKSTEP_MICRO_GUEST"))`. Always a release build: the guest is part of the product.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const IMAGE: &str = "lockstep-micro-guest";

fn main() {
    let guest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo always sets this")).join("guest");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo always sets this")).join("guest-target");
    for source in ["src", "Cargo.toml", "Cargo.lock", "build.rs", "link.ld"] {
        println!("cargo:rerun-if-changed={}", guest.join(source).display());
    }

    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo always sets this"));
    cargo.current_dir(&guest).args([
        "build",
        "--release",
        "--locked",
        "--features",
        "image",
        "--bin",
        IMAGE,
    ]);
    cargo.arg("--target-dir").arg(&target);
    // What the host's build was told about flags, wrappers and profiles is not meant for the guest.
    for (name, _) in env::vars_os() {
        if is_for_the_host(&name.to_string_lossy()) {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .status()
        .expect("cargo runs this very script, so it can be started");
    assert!(
        status.success(),
        "the micro guest in {} did not build",
        guest.display()
    );
    println!(
        "cargo:rustc-env=LOCKSTEP_MICRO_GUEST={}",
        target.join("release").join(IMAGE).display()
    );
}

fn is_for_the_host(name: &str) -> bool {
    const PREFIXES: [&str; 3] = ["CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_BUILD_"];
    const NAMES: [&str; 5] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
