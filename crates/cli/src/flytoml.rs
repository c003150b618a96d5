//! `fly.toml` (or `fly.json`): finding it, reading it, checking it, and what it means for Machines.
//!
//! ```text
//! text ─parse─► tree ─legacy─► tree ─read─► Config ─check─► problems
//!                                              ├─ machine_config(group) ─► Machine config
//!                                              └─ to_json / to_toml ─────► shown, stored, written
//! ```
//!
//! Three kinds of failure, as with flyctl: a text that cannot be parsed stops every command; a value of
//! the wrong type leaves a config that knows the app's name only (T-05); a value that breaks a rule is a
//! problem of `validate` and `deploy`. Unknown keys are kept apart and tell nobody by default (T-06).

mod check;
mod config;
mod duration;
mod gotext;
mod legacy;
mod machine;
mod problem;
mod section;
mod shown;
mod size;
mod tree;

use problem::{Problems, position};
use section::{Notes, Section};
use std::path::{Path, PathBuf};
use tree::{Map, Place, SyntaxError};

pub use config::{
    AutoStop, Build, Check, Concurrency, Config, Deploy, Experimental, File, MachineCheck, Metrics,
    Mount, Port, Restart, Service, Static, Vm,
};
pub use duration::{BadDuration, format as format_duration, parse as parse_duration};
pub use machine::ConvertError;
pub use problem::{Level, Problem};
pub use shown::{header, to_json, to_toml};

/// Names looked for in a directory, first wins (T-01).
const NAMES: [&str; 3] = ["fly.toml", "fly.json", "fly.yaml"];
/// A configuration file is written by hand; beyond this it is some other file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A configuration file that was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where it was read from.
    pub path: PathBuf,
    /// What it says; with errors of type only the app's name.
    pub config: Config,
    /// Everything that is wrong with it, in the order of the rules.
    pub problems: Vec<Problem>,
    /// Keys that are not known, in the order of the file.
    pub unknown: Vec<String>,
}

/// Why a file could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The path given with `-c` is not there.
    #[error("could not find the configuration file {0}")]
    Missing(PathBuf),
    /// It is there and cannot be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any configuration file.
    #[error("{0} is larger than 4 MiB, which no configuration file is")]
    TooLarge(PathBuf),
    /// Not TOML or JSON.
    #[error("{path}:{line}:{column}: {message}\n{excerpt}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// The line with a mark under the place.
        excerpt: String,
    },
    /// YAML is not read yet.
    #[error("{0} is YAML, which is not supported yet; write it as fly.toml or fly.json")]
    Yaml(PathBuf),
}

/// The configuration file to use: the path given, or the first of the known names in the directory.
/// `None` when nothing was given and nothing is there.
pub fn find(dir: &Path, given: Option<&Path>) -> Result<Option<PathBuf>, LoadError> {
    let Some(given) = given else {
        return Ok(NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file()));
    };
    let path = dir.join(given);
    if path.is_dir() {
        let inside = NAMES.iter().map(|name| path.join(name)).find(|path| path.is_file());
        return inside.map(Some).ok_or_else(|| LoadError::Missing(path.join(NAMES[0])));
    }
    match path.exists() {
        true => Ok(Some(path)),
        false => Err(LoadError::Missing(path)),
    }
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge(path.to_owned()));
    }
    parse(path, &std::fs::read_to_string(path).map_err(read)?)
}

/// Reads and checks a text; the path tells the format and is named in errors.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, LoadError> {
    let tree = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => tree::parse_json(text),
        Some("yaml") => return Err(LoadError::Yaml(path.to_owned())),
        _ => tree::parse_toml(text),
    };
    let tree = tree.map_err(|error| syntax_error(path, text, &error))?;
    Ok(read(path, text, tree))
}

fn read(path: &Path, text: &str, mut tree: Map) -> Loaded {
    let mut problems = Problems::new(text);
    let untouched = tree.clone();
    legacy::patch(&mut tree, &mut problems);
    let notes = Notes::new(problems);
    let mut config = Config::read(Section::root(tree, &notes));
    let unknown = notes.unknown.borrow().clone();
    if notes.problems.borrow().has_errors() {
        let silent = Notes::new(Problems::new(text));
        config = Config::read_name(Section::root(untouched, &silent));
    } else {
        check::check(&config, &notes);
    }
    let problems = notes.problems.into_inner().into_list();
    Loaded { path: path.to_owned(), config, problems, unknown }
}

fn syntax_error(path: &Path, text: &str, error: &SyntaxError) -> LoadError {
    let (line, column) = match error.at {
        Place::Byte(byte) => position(text, byte),
        Place::Line(line, column) => (line, column),
    };
    let source = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let excerpt = format!("{line:>4} | {source}\n     | {}^", " ".repeat(column.saturating_sub(1)));
    let message = error.message.trim().replace('\n', ", ");
    LoadError::Syntax { path: path.to_owned(), line, column, message, excerpt }
}

/// Sections that flyctl's strict mode does not look into.
const NOT_STRICT: [&str; 4] = ["services[", "vm[", "mounts[", "metrics["];

impl Loaded {
    /// The unknown keys that `config validate --strict` refuses: flyctl's strict mode does not look
    /// inside services, vm, mounts and metrics, and files that pass there pass here.
    pub fn strict_unknown(&self) -> Vec<&str> {
        let strict = |key: &&str| !NOT_STRICT.iter().any(|section| key.starts_with(section));
        self.unknown.iter().map(String::as_str).filter(strict).collect()
    }

    /// Whether something stops validation and deploy.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.level == Level::Error)
    }
}

#[cfg(test)]
mod tests;
