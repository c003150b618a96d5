//! The program that asks the API's description whether it is true: installed once, by pip, into the
//! target directory.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

/// The pinned list, from the root of the workspace.
const LIST: &str = "tests/e2e/schemathesis.txt";

/// Makes sure that it is there, in the versions of the list; returns its program.
pub(crate) fn ensure() -> Result<PathBuf> {
    let list = shell::root().join(LIST);
    let wanted = fs::read_to_string(&list).with_context(|| format!("reading {LIST}"))?;
    let home = shell::target_dir()?.join("schemathesis");
    let (program, mark) = (home.join("bin/schemathesis"), home.join("installed.txt"));
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) && program.exists() {
        return Ok(program);
    }
    packages::ensure(packages::PYTHON)?;
    ensure_venv()?;
    println!("installing schemathesis into {}", home.display());
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"];
    run(Command::new(home.join("bin/python")).args(pip).arg(&list))?;
    fs::write(&mark, wanted).with_context(|| format!("writing {}", mark.display()))?;
    Ok(program)
}

/// Debian has the module without its parts, until the package is there.
fn ensure_venv() -> Result<()> {
    let there = || shell::succeeds(Command::new("python3").args(["-c", "import ensurepip"]));
    if there()? {
        return Ok(());
    }
    packages::install(&["python3-venv"])?;
    if !there()? {
        bail!("the package python3-venv did not bring Python's ensurepip");
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    if !shell::succeeds(command)? {
        bail!("{command:?} failed");
    }
    Ok(())
}
