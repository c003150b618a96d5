//! The manual pages that are installed: written by the binary, read by the formatters that people have.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

fn pages() -> Result<(tempfile::TempDir, Vec<PathBuf>)> {
    let dir = tempfile::tempdir()?;
    let perch = std::env::var_os("PERCH_BIN").context("PERCH_BIN is not set")?;
    let written = Command::new(perch).arg("man").arg(dir.path()).status()?;
    ensure!(written.success(), "perch man ends with {written}");
    let pages = std::fs::read_dir(dir.path())?.map(|entry| entry.map(|it| it.path()));
    let pages = pages.collect::<Result<Vec<_>, _>>()?;
    Ok((dir, pages))
}

#[test]
fn formatters_find_nothing_wrong_with_the_manual_pages() -> Result<()> {
    let (_dir, pages) = pages()?;
    ensure!(pages.iter().any(|page| page.ends_with("perch-fly-apps-list.1")), "{pages:?}");
    let lint = Command::new("mandoc").args(["-Tlint", "-Wwarning"]).args(&pages).output()?;
    ensure!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    Ok(())
}

#[test]
fn a_page_reads_as_a_page() -> Result<()> {
    let (dir, _) = pages()?;
    for (page, words) in [("perch.1", "doctor"), ("perch-fly-deploy.1", "--flycast")] {
        let shown = Command::new("mandoc").args(["-Tascii"]).arg(dir.path().join(page)).output()?;
        let text = strip_overstrikes(&shown.stdout);
        ensure!(text.contains("SYNOPSIS") && text.contains(words), "{page}: {text}");
    }
    Ok(())
}

/// A formatter prints bold as a letter, a backspace and the letter again.
fn strip_overstrikes(bytes: &[u8]) -> String {
    let mut plain = Vec::new();
    for byte in bytes {
        match byte {
            8 => drop(plain.pop()),
            byte => plain.push(*byte),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}
