//! The rules of this repository that rustc and clippy do not know.
//!
//! Each rule is a function from the tree to violations; each violation names file and line and
//! says what to do. No rule has a list of excused files: an exception is written in the code,
//! with its reason.

mod borders;
mod dependencies;
mod names;
mod shape;

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;
use crate::source::Source;

/// Something to repair.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// Path from the root of the workspace.
    pub(crate) file: String,
    /// From 1.
    pub(crate) line: usize,
    /// What is wrong and what to do instead.
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// One file that git knows or would know.
pub(crate) struct File {
    /// Path from the root of the workspace.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
}

/// One Rust file.
pub(crate) struct RustFile {
    /// Path from the root of the workspace.
    pub(crate) path: String,
    /// Its text with what we know about it.
    pub(crate) source: Source,
}

impl RustFile {
    fn new(file: &File) -> Self {
        let is_test = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
        Self { path: file.path.clone(), source: Source::new(file.text.clone(), is_test) }
    }

    /// A violation in this file.
    pub(crate) fn violation(&self, line: usize, text: impl Into<String>) -> Violation {
        Violation { file: self.path.clone(), line, text: text.into() }
    }
}

/// Checks the whole tree and prints each violation; whether there was none.
pub(crate) fn run() -> Result<bool> {
    let files = files()?;
    let rust: Vec<RustFile> =
        files.iter().filter(|file| file.path.ends_with(".rs")).map(RustFile::new).collect();
    let mut violations = dependencies::check(&files);
    violations.extend(rust.iter().flat_map(borders::check));
    violations.extend(rust.iter().flat_map(shape::check));
    violations.extend(names::check(&files));
    violations.sort();
    for violation in &violations {
        println!("{violation}");
    }
    println!(
        "tidy: {} files, {} violations; {}",
        files.len(),
        violations.len(),
        shape::sizes(&rust)
    );
    Ok(violations.is_empty())
}

/// Text files that are tracked, or new and not ignored.
fn files() -> Result<Vec<File>> {
    let root = shell::root();
    let mut command = Command::new("git");
    command.args(["ls-files", "-co", "--exclude-standard", "-z"]).current_dir(&root);
    let list = shell::output(&mut command).context("listing files with git")?;
    let mut paths: Vec<&str> = list.split('\0').filter(|path| !path.is_empty()).collect();
    paths.sort_unstable();
    paths.dedup();
    let read = |path: &str| {
        let text = std::fs::read(root.join(path)).ok().and_then(|b| String::from_utf8(b).ok());
        text.map(|text| File { path: path.to_owned(), text })
    };
    Ok(paths.into_iter().filter_map(read).collect())
}

/// Directories of the machine that builds; none may be written down in a file.
fn machine_paths() -> Vec<String> {
    let root = shell::root();
    let home =
        ["CARGO_HOME", "CARGO_TARGET_DIR"].map(|key| std::env::var_os(key).map(PathBuf::from));
    let parent = root.parent().filter(|dir| dir.components().count() == 2).map(PathBuf::from);
    let dirs = home.into_iter().flatten().chain([root.clone()]).chain(parent);
    let usual = ["/tmp", "/root", "/home", "/opt", "/srv", "/usr", "/var"];
    let own = dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.display().to_string());
    own.filter(|dir| !usual.contains(&dir.as_str())).map(|dir| format!("{dir}/")).collect()
}
