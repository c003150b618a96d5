//! `cargo x fuzz`: libFuzzer over the targets in `fuzz/`, one after the other.
//!
//! On a stable toolchain, without sanitizers: the proxy has no unsafe code, and its promises are assertions. What it
//! finds lies in `fuzz/artifacts/TARGET`; a finding that is mended goes to `fuzz/seeds/TARGET`, where each
//! `cargo x test` tries it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

const SECONDS_DEFAULT: u64 = 60;
/// Heads have 16 KiB at most; what is longer says little new and takes long.
const INPUT_BYTES_MAX: &str = "-max_len=20000";

/// Runs what is named, everything by default; whether nothing was found.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    let known = targets()?;
    let (mut wanted, mut seconds) = (Vec::new(), SECONDS_DEFAULT);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let text = args.next().context("--seconds wants a number")?;
            seconds = text.parse().context("--seconds wants a number")?;
        } else {
            ensure!(
                known.contains(arg),
                "there is no target `{arg}`; there are {}",
                known.join(", ")
            );
            wanted.push(arg.clone());
        }
    }
    if !has_cargo_fuzz() {
        bail!("cargo-fuzz is not installed\n\n    cargo install cargo-fuzz");
    }
    let wanted = if wanted.is_empty() { known } else { wanted };
    let mut clean = true;
    for target in wanted {
        println!("fuzz {target}, {seconds} s");
        clean &= one(&target, seconds)?;
    }
    Ok(clean)
}

fn targets() -> Result<Vec<String>> {
    let dir = shell::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let names = paths.iter().filter_map(|path| path.file_stem()?.to_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn has_cargo_fuzz() -> bool {
    let mut version = shell::cargo(&["fuzz", "--version"]);
    version.output().is_ok_and(|output| output.status.success())
}

fn one(target: &str, seconds: u64) -> Result<bool> {
    let root = shell::root();
    let (found, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
    fs::create_dir_all(root.join(&found)).with_context(|| format!("making {found}"))?;
    let time = format!("-max_total_time={seconds}");
    let run = ["fuzz", "run", "--sanitizer", "none", target, &found, &seeds, "--", &time];
    let mut command: Command = shell::cargo(&run);
    shell::succeeds(command.args([INPUT_BYTES_MAX, "-print_final_stats=1"]))
}
