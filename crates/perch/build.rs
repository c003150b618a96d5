//! Compiles the two programs that run inside Machines, so that one file holds everything.
//!
//! `perch-init` is PID 1 of each Machine and `perch-hello` is the example app of the quickstart.
//! Both are std-only. Cargo cannot embed another binary on stable, hence the direct call of rustc;
//! the crates are workspace members all the same, so that format, lints and tests see them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in ["init", "hello"] {
        compile(name, &out.join(format!("perch-{name}")));
    }
    println!("cargo:rerun-if-changed=build.rs");
}

fn compile(name: &str, target_file: &Path) {
    // Asked now and not when this script was compiled: target directories are shared by work trees.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let dir = Path::new(&manifest).join("..").join(name);
    println!("cargo:rerun-if-changed={}", dir.join("src").display());
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "bin", "--target", &target])
        .args(["--crate-name", &format!("perch_{name}"), "--cap-lints", "warn"])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Ccodegen-units=1"])
        .args(["-Clto=fat", "-Ctarget-feature=+crt-static", "-Crelocation-model=static"])
        .arg("-o")
        .arg(target_file)
        .arg(dir.join("src/main.rs"))
        .status()
        .expect("rustc, which is building this crate, can be started");
    assert!(status.success(), "perch-{name} did not compile; see the error above");
}
