//! `perch man DIR`: writes the manual pages of `perch` and `fly`, for those who install them.
//!
//! Both come from the definitions that the programs read their arguments by.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use perch_cli::manual::{self, Page};

use crate::command::definition;

/// Entry point of `perch man`.
pub(crate) fn main(dir: &Path) -> ExitCode {
    match write(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn write(dir: &Path) -> anyhow::Result<()> {
    for Page { name, text } in manual::of(definition()) {
        write_page(dir, &name, &text)?;
    }
    // `fly` may be somebody else's; ours is always there as `perch fly`.
    for Page { name, text } in manual::of_fly() {
        write_page(dir, &format!("perch-{name}"), &text)?;
    }
    Ok(())
}

fn write_page(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = dir.join(format!("{name}.1"));
    std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))
}
