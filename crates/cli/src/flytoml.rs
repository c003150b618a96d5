//! `fly.toml`, `fly.json`, `fly.yaml`: finding it, reading it, checking it, and what it means for
//! Machines.
//!
//! ```text
//! text ─parse─► tree ─legacy─► tree ─read─► Config ─check─► problems
//!                               │              ├─ machine_config(group) ─► Machine config
//!                               └─strict       └─ to_json / to_toml ─────► shown, stored, written
//! ```
//!
//! Three kinds of failure, as with flyctl: a text that cannot be parsed stops every command; a value of
//! the wrong type leaves a config that knows the app's name only (T-05); a value that breaks a rule is a
//! problem of `validate` and `deploy`. Unknown keys are kept apart and are at most worth a hint (T-06).
//! What flyctl would accept and cannot run here is refused by `deploy` alone.

mod check;
mod config;
mod described;
mod duration;
mod gotext;
mod hint;
mod json;
mod legacy;
mod limits;
mod machine;
mod problem;
mod rules;
mod section;
mod shown;
mod size;
mod strict;
mod tree;
mod verdict;
mod words;
mod yaml;

use problem::{Problems, position};
use section::{Notes, Section};
use std::path::{Path, PathBuf};
use tree::{Dialect, Map, Place, SyntaxError};

pub use config::{
    Allow, AutoStop, Build, Check, Concurrency, Config, Deploy, Experimental, File, MachineCheck,
    Metrics, Mount, Port, Restart, Service, Static, Vm,
};
pub use described::described;
pub use duration::{BadDuration, GoDuration, format as format_duration, parse as parse_duration};
pub use machine::ConvertError;
pub use problem::{Level, Problem};
pub use shown::{header, header_of, to_json, to_toml};
pub(crate) use size::{Preset, memory_mb, preset, presets, volume_gb};
pub use verdict::Verdict;
pub(crate) use words::split as split_words;

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
    /// Keys that are not known, in the order met.
    pub unknown: Vec<String>,
    /// Those that `config validate --strict` refuses, with their places.
    pub strict_unknown: Vec<(String, Option<(usize, usize)>)>,
    /// What is to be told when the app turns out to have private addresses only.
    pub when_private: Vec<Problem>,
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
    /// Not TOML, JSON or YAML.
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
    parse_bytes(path, &std::fs::read(path).map_err(read)?)
}

/// Reads and checks a file's content; the path tells the format and is named in errors.
pub fn parse_bytes(path: &Path, bytes: &[u8]) -> Result<Loaded, LoadError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(path, text),
        // Go's JSON decoder replaces each byte that is no text; its other parsers refuse it.
        Err(_) if Dialect::of_path(path) == Dialect::Json => {
            let chunks = bytes.utf8_chunks();
            let text = chunks.map(|chunk| {
                format!("{}{}", chunk.valid(), "\u{fffd}".repeat(chunk.invalid().len()))
            });
            parse(path, &text.collect::<String>())
        }
        Err(error) => {
            let text = String::from_utf8_lossy(bytes);
            let error = SyntaxError::at_byte("is not valid UTF-8", error.valid_up_to());
            Err(syntax_error(path, &text, &error))
        }
    }
}

/// Reads and checks a text; the path tells the format and is named in errors.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, LoadError> {
    let dialect = Dialect::of_path(path);
    let tree = match dialect {
        Dialect::Json => json::parse(text),
        Dialect::Yaml => yaml::parse(text),
        Dialect::Toml => tree::parse_toml(text),
    };
    let tree = tree.map_err(|error| syntax_error(path, text, &error))?;
    Ok(read(path, text, tree, dialect))
}

fn read(path: &Path, text: &str, mut tree: Map, dialect: Dialect) -> Loaded {
    let mut problems = Problems::new(text);
    let untouched = tree.clone();
    legacy::patch(&mut tree, dialect, &mut problems);
    // flyctl's strict mode fails altogether where a patch does.
    let strict = if problems.has(Level::Shape) { Vec::new() } else { strict::unknown(&tree) };
    let notes = Notes::new(problems);
    let mut config = Config::read(Section::root(tree, &notes));
    hint::about_keys(&untouched, &notes);
    if notes.problems.borrow().has(Level::Shape) {
        config = Config { app: name_of(&untouched), ..Config::default() };
    } else {
        config.dir = path.parent().map(Path::to_owned).unwrap_or_default();
        check::check(&config, &notes);
        limits::check(&config, &notes);
        hint::about_meaning(&config, &notes);
    }
    let place = |key: &String| notes.place(key).map(|span| position(text, span.start));
    let strict_unknown = strict.into_iter().map(|key| (key.clone(), place(&key))).collect();
    let unknown = notes.unknown.borrow().clone();
    let problems = notes.problems.replace(Problems::new(text)).into_list();
    hint::about_private_app(&config, &notes);
    let when_private = notes.problems.into_inner().into_list();
    Loaded { path: path.to_owned(), config, problems, unknown, strict_unknown, when_private }
}

/// The app's name and nothing else: what is left when the rest is wrong (T-05).
fn name_of(tree: &Map) -> Option<String> {
    match &tree.get("app")?.node {
        tree::Node::Text(name) => Some(name.clone()),
        _ => None,
    }
}

/// Longer lines are cut in an excerpt.
const EXCERPT_CHARS_MAX: usize = 200;

fn syntax_error(path: &Path, text: &str, error: &SyntaxError) -> LoadError {
    let (line, column) = match error.at {
        Place::Byte(byte) => position(text, byte),
        Place::Line(line, column) => (line.max(1), column.max(1)),
    };
    let source: String = text
        .lines()
        .nth(line.saturating_sub(1))
        .unwrap_or_default()
        .chars()
        .take(EXCERPT_CHARS_MAX)
        .collect();
    let mark = " ".repeat(column.saturating_sub(1).min(EXCERPT_CHARS_MAX));
    let excerpt = format!("{line:>4} | {source}\n     | {mark}^");
    let message = error.message.trim().replace('\n', ", ");
    LoadError::Syntax { path: path.to_owned(), line, column, message, excerpt }
}

impl Loaded {
    /// What flyctl says about the file.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.problems)
    }

    /// Whether something stops validation.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }

    /// Whether `deploy` would refuse it, also for what `config validate` lets pass as flyctl does.
    pub fn cannot_run(&self) -> bool {
        self.problems.iter().any(|it| it.is_error() || it.level == problem::Level::Refused)
    }
}

#[cfg(test)]
mod tests;
