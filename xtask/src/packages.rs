//! Installs the Debian packages that tests need, when that is possible and something is missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// A program, or a file that is no program, and the Debian package that brings it.
pub(crate) type Need = (&'static str, &'static str);

/// What the component and host tests call.
pub(crate) const TESTS: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("busybox", "busybox-static"),
    ("python3", "python3-minimal"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("jq", "jq"),
    ("openssl", "openssl"),
    ("ldd", "libc-bin"),
    ("redis-cli", "redis-tools"),
    ("mandoc", "mandoc"),
    ("script", "bsdutils"),
    ("xz", "xz-utils"),
    ("node", "nodejs"),
    ("gunicorn", "gunicorn"),
    ("uvicorn", "uvicorn"),
    ("/usr/lib/python3/dist-packages/websockets/__init__.py", "python3-websockets"),
    ("pg_ctlcluster", "postgresql"),
    ("h2load", "nghttp2-client"),
    ("wrk", "wrk"),
    ("stdbuf", "coreutils"),
    ("chromium-headless-shell", "chromium-headless-shell"),
    ("haproxy", "haproxy"),
    ("/usr/lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio"),
    ("/usr/lib/python3/dist-packages/prometheus_client/__init__.py", "python3-prometheus-client"),
];

/// What unit tests call; where it is missing they skip, unless they must not.
pub(crate) const UNIT: &[Need] = &[("nginx", "nginx-light")];

/// What makes a Python environment, beside the package that has no program.
pub(crate) const PYTHON: &[Need] = &[("python3", "python3")];

/// What the benchmarks compare with and measure by.
pub(crate) const BENCHES: &[Need] = &[
    ("runc", "runc"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("systemd-socket-activate", "systemd"),
    ("ip", "iproute2"),
    ("python3", "python3"),
];

/// Makes sure that all programs are there; installs what is missing as root on Debian.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.1).collect();
    if !shell::is_root() || !Path::new("/etc/debian_version").exists() {
        bail!("missing programs; on Debian: sudo apt-get install -y {}", names.join(" "));
    }
    install(&names)?;
    match self::missing(needs).as_slice() {
        [] => Ok(()),
        [(program, package), ..] => bail!("package {package} did not bring {program}"),
    }
}

fn missing(needs: &[Need]) -> Vec<Need> {
    needs.iter().copied().filter(|need| !shell::has_program(need.0)).collect()
}

/// Installs packages.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    println!("installing {}", names.join(" "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        command
    };
    let install = [&["install", "-y", "--no-install-recommends"], names].concat();
    if shell::succeeds(&mut apt(&install))? {
        return Ok(());
    }
    // A fresh machine has no package lists yet.
    if shell::succeeds(&mut apt(&["update"]))? && shell::succeeds(&mut apt(&install))? {
        return Ok(());
    }
    bail!("apt-get could not install {}", names.join(" "))
}
