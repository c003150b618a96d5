//! `THIRD-PARTY-LICENSES`: the notices of everything that is linked into the binary, as its licences demand.
//!
//! Which crates are linked says `cargo tree`, with the features that are really on (`cargo metadata` names more); where
//! they lie and what they declare says `cargo metadata`. The texts are the crates' own files, each text once. A crate
//! that brings none stops the build, unless `deny.toml` says which file of ours has its text, and why. What is linked
//! and no crate (Rust's library, C's) is listed there too. The same lock file makes the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use toml_edit::{DocumentMut, Item, Table};

use crate::shell;

/// Its name, beside the binary and where documents are installed.
pub(crate) const NAME: &str = "THIRD-PARTY-LICENSES";
/// How files with licences begin, in any case.
const BEGINNINGS: [&str; 7] =
    ["licen", "copying", "copyright", "notice", "unlicense", "patents", "authors"];
/// How they end, if not with nothing or a version.
const ENDINGS: [&str; 3] = ["md", "txt", "rst"];
/// Below these, crates keep the code of others with its licence.
const FOREIGN: [&str; 2] = ["src", "third_party"];
const RULE: &str =
    "--------------------------------------------------------------------------------";

/// Something that is linked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    name: String,
    version: String,
    expression: String,
    /// A crate's directory; none for what is no crate.
    dir: Option<PathBuf>,
}

/// What `deny.toml` says of texts.
#[derive(Debug, Default)]
struct Known {
    /// Files of ours, by the crate that has no text of its own.
    texts: BTreeMap<String, PathBuf>,
    /// What is linked and no crate, with a file of ours.
    besides: Vec<(Part, PathBuf)>,
}

/// Writes the file beside a binary.
pub(crate) fn write_beside(binary: &Path) -> Result<()> {
    let known = Known::read(&shell::root())?;
    let file = binary.with_file_name(NAME);
    let text = notices(&crates()?, &known)?;
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

/// Those that are linked on this target, without ours.
fn crates() -> Result<Vec<Part>> {
    let triple = shell::host_triple()?;
    let mut tree = shell::cargo(&["tree", "--locked", "--package", "perch", "--target", &triple]);
    tree.args(["--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"]);
    let linked = linked(&shell::output(&mut tree)?);
    let mut metadata = shell::cargo(&["metadata", "--format-version=1", "--locked"]);
    metadata.args(["--filter-platform", &triple]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut metadata)?)?;
    described(&linked, &metadata)
}

/// Names and versions in what `cargo tree` prints: `name v1.2.3 (*)`.
fn linked(tree: &str) -> BTreeSet<(String, String)> {
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    };
    tree.lines().filter_map(pair).collect()
}

fn described(linked: &BTreeSet<(String, String)>, metadata: &Value) -> Result<Vec<Part>> {
    let packages = metadata["packages"].as_array().context("no packages in metadata")?;
    let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let mut parts = Vec::new();
    for (name, version) in linked {
        let is_it = |it: &&Value| it["name"] == name.as_str() && it["version"] == version.as_str();
        let package = packages.iter().find(is_it);
        let package = package.with_context(|| format!("cargo metadata has no {name} {version}"))?;
        // A package without a source is one of ours.
        if package["source"].is_null() {
            continue;
        }
        let manifest = PathBuf::from(text(package, "manifest_path"));
        let dir = manifest.parent().map(Path::to_path_buf);
        let expression = text(package, "license");
        parts.push(Part { name: name.clone(), version: version.clone(), expression, dir });
    }
    ensure!(!parts.is_empty(), "cargo tree names no crate that is linked");
    Ok(parts)
}

impl Part {
    fn title(&self) -> String {
        [self.name.as_str(), &self.version].join(" ").trim_end().to_owned()
    }
}

impl Known {
    fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join("deny.toml")).context("reading deny.toml")?;
        Self::parse(&text, root)
    }

    fn parse(text: &str, root: &Path) -> Result<Self> {
        let policy: DocumentMut = text.parse().context("parsing deny.toml")?;
        let mut known = Self::default();
        for table in tables(&policy, "text") {
            let (name, file) = (word(table, "name")?, word(table, "file")?);
            word(table, "reason")?;
            known.texts.insert(name, root.join(file));
        }
        for table in tables(&policy, "besides") {
            let (name, expression) = (word(table, "name")?, word(table, "expression")?);
            word(table, "reason")?;
            let part = Part { name, version: String::new(), expression, dir: None };
            known.besides.push((part, root.join(word(table, "file")?)));
        }
        Ok(known)
    }
}

fn tables<'a>(policy: &'a DocumentMut, key: &str) -> impl Iterator<Item = &'a Table> {
    let found =
        policy.get("licenses").and_then(|it| it.get(key)).and_then(Item::as_array_of_tables);
    found.into_iter().flatten()
}

fn word(table: &Table, key: &str) -> Result<String> {
    let word = table.get(key).and_then(Item::as_str);
    Ok(word.with_context(|| format!("an entry of [[licenses.…]] in deny.toml lacks {key}"))?.into())
}

/// The whole file.
fn notices(crates: &[Part], known: &Known) -> Result<String> {
    let mut texts: BTreeMap<String, BTreeSet<&Part>> = BTreeMap::new();
    for part in crates {
        for text in texts_of(part, known)? {
            texts.entry(text).or_default().insert(part);
        }
    }
    for (part, file) in &known.besides {
        texts.entry(read(file)?).or_default().insert(part);
    }
    let unused = known.texts.keys().find(|name| crates.iter().all(|it| it.name != **name));
    if let Some(name) = unused {
        bail!("deny.toml gives {name} a licence text, and {name} is not linked; remove the entry");
    }
    let parts = known.besides.iter().map(|(part, _file)| part).chain(crates);
    Ok(page(parts, texts))
}

fn page<'a>(
    parts: impl Iterator<Item = &'a Part>,
    texts: BTreeMap<String, BTreeSet<&Part>>,
) -> String {
    let mut page = "Perch is one file, into which the work of others is linked. This is whose, and under which licence;\n\
                    the texts follow, each once. Perch's own licence is in LICENSE (Debian: copyright).\n\n"
        .to_owned();
    for part in parts {
        page.push_str(&[&part.title(), ": ", &part.expression, "\n"].concat());
    }
    let mut sections: Vec<(BTreeSet<&Part>, String)> =
        texts.into_iter().map(|(text, users)| (users, text)).collect();
    sections.sort();
    for (users, text) in sections {
        let users: Vec<String> = users.iter().map(|part| part.title()).collect();
        let users = users.join(", ");
        page.push_str(&["\n", RULE, "\n", &users, "\n", RULE, "\n\n", &text, "\n"].concat());
    }
    page
}

/// The texts that a crate brings, or that we have for it.
fn texts_of(part: &Part, known: &Known) -> Result<Vec<String>> {
    let Part { name, version, expression, dir } = part;
    let mut files = Vec::new();
    if let Some(dir) = dir {
        files.extend(licence_files(dir)?);
        if let Some(ours) = known.texts.get(name) {
            let own = files.first();
            if let Some(own) = own {
                bail!(
                    "{name} {version} brings {}: remove its [[licenses.text]] from deny.toml",
                    own.display()
                );
            }
            files.push(ours.clone());
        }
        for inner in FOREIGN {
            foreign_files(&dir.join(inner), &mut files)?;
        }
    }
    if files.is_empty() {
        bail!(
            "{name} {version} ({expression}) brings no licence text; add [[licenses.text]] with the file that has it to deny.toml"
        );
    }
    files.iter().map(|file| read(file)).collect()
}

/// The licence files of one directory, and those of a directory `LICENSES` in it, in order.
fn licence_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in entries(dir)? {
        if !is_licence(&path) {
            continue;
        }
        match path.is_dir() {
            true => files.extend(entries(&path)?.into_iter().filter(|it| it.is_file())),
            false => files.push(path),
        }
    }
    // A list of authors alone is no licence.
    let is_list = |file: &PathBuf| lower_name(file).starts_with("authors");
    Ok(if files.iter().all(is_list) { Vec::new() } else { files })
}

fn foreign_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for path in entries(dir)? {
        if path.is_dir() {
            foreign_files(&path, files)?;
        } else if is_licence(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let paths: Result<Vec<_>, _> = found.map(|entry| entry.map(|it| it.path())).collect();
    let mut paths = paths.with_context(|| format!("reading {}", dir.display()))?;
    paths.sort_unstable();
    Ok(paths)
}

/// By its name: `LICENSE`, `LICENSE-MIT`, `COPYING.md`, `license-apache-2.0`, not `license.rs`.
fn is_licence(path: &Path) -> bool {
    let name = lower_name(path);
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let is_text = ENDINGS.contains(&ending) || !ending.starts_with(|c: char| c.is_alphabetic());
    let is_text = is_text || ending.starts_with("apache") || ending.starts_with("mit");
    is_text && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

fn lower_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// A text without what differs between copies of it: ends of lines, blank ends.
fn read(file: &Path) -> Result<String> {
    let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let text = lines.join("\n").trim_matches('\n').to_owned();
    ensure!(!text.trim().is_empty(), "{} is empty", file.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
            fs::write(file, text).expect("written");
        }
        dir
    }

    fn part(name: &str, dir: &tempfile::TempDir) -> Part {
        let dir = Some(dir.path().to_path_buf());
        Part { name: name.into(), version: "1.0.0".into(), expression: "MIT".into(), dir }
    }

    #[test]
    fn a_text_is_there_once_whoever_uses_it_and_however_its_lines_end() {
        let one = dir_with(&[("LICENSE-MIT", "may be used\n"), ("NOTICE", "by one")]);
        let two = dir_with(&[("license.md", "may be used  \r\n\r\n"), ("license.rs", "fn code")]);
        let known = Known::default();
        let made = notices(&[part("one", &one), part("two", &two)], &known).expect("made");
        assert_eq!(made.matches("may be used").count(), 1, "{made}");
        assert!(made.contains("\none 1.0.0, two 1.0.0\n"), "{made}");
        assert!(made.contains("by one") && !made.contains("fn code"), "{made}");
        let again = notices(&[part("two", &two), part("one", &one)], &known).expect("made");
        let body = |page: &str| page.split_once(RULE).map(|(_, rest)| rest.to_owned());
        assert_eq!(body(&made), body(&again));
    }

    #[test]
    fn a_crate_without_a_text_stops_the_build_unless_one_is_named() {
        let bare = dir_with(&[("README.md", "MIT"), ("AUTHORS", "us"), ("LICENSE.rs", "code")]);
        let parts = [part("bare", &bare)];
        let error = notices(&parts, &Known::default()).expect_err("no text").to_string();
        assert!(error.contains("bare 1.0.0") && error.contains("deny.toml"), "{error}");
        let root = dir_with(&[("texts/bare", "found upstream")]);
        let entry = "[[licenses.text]]\nname = 'bare'\nfile = 'texts/bare'\nreason = 'none'\n";
        let known = Known::parse(entry, root.path()).expect("parsed");
        assert!(notices(&parts, &known).expect("made").contains("found upstream"));
        // Entries that nothing needs would hide what changes.
        let full = dir_with(&[("COPYING", "own")]);
        assert!(notices(&[part("bare", &full)], &known).is_err());
        assert!(notices(&[part("other", &full)], &known).is_err());
        assert!(Known::parse(&entry.replace("reason", "why"), root.path()).is_err());
    }

    #[test]
    fn code_of_others_inside_a_crate_is_named_too() {
        let inner = [("LICENSE", "own"), ("src/spin/LICENSE", "theirs"), ("tests/LICENSE", "no")];
        let made = notices(&[part("outer", &dir_with(&inner))], &Known::default()).expect("made");
        assert!(made.contains("theirs") && !made.contains("\nno\n"), "{made}");
        let empty = dir_with(&[("LICENSE", " \n")]);
        assert!(notices(&[part("empty", &empty)], &Known::default()).is_err());
    }

    #[test]
    fn what_is_linked_is_read_from_the_tree_and_ours_is_left_out() {
        let tree = "perch v0.1.0 (/here)\na v1.0.0\na v1.0.0 (*)\n\nb v2.0.0+x\n";
        let packages = serde_json::json!({"packages": [
            {"name": "perch", "version": "0.1.0", "source": null, "manifest_path": "/p/Cargo.toml"},
            {"name": "a", "version": "0.9.0", "source": "r", "manifest_path": "/old/Cargo.toml"},
            {"name": "a", "version": "1.0.0", "source": "r", "license": "MIT", "manifest_path": "/a/Cargo.toml"},
            {"name": "b", "version": "2.0.0+x", "source": "r", "manifest_path": "/b/Cargo.toml"},
            {"name": "unused", "version": "1.0.0", "source": "r", "manifest_path": "/u/Cargo.toml"},
        ]});
        let parts = described(&linked(tree), &packages).expect("described");
        let dirs: Vec<_> = parts.iter().filter_map(|part| part.dir.clone()).collect();
        assert_eq!(dirs, [Path::new("/a"), Path::new("/b")]);
        assert!(described(&linked("c v1.0.0\n"), &packages).is_err());
    }

    #[test]
    fn this_very_graph_has_a_text_for_everything() {
        let known = Known::read(&shell::root()).expect("deny.toml");
        let crates = crates().expect("the graph");
        let made = notices(&crates, &known).expect("all texts");
        for (name, sign) in [("tokio", "Tokio"), ("rusqlite", "rusqlite"), ("prctl", "Pitucha")] {
            assert!(made.contains(&format!("\n{name} ")) && made.contains(sign), "{name}");
        }
        assert!(made.contains("GNU LESSER GENERAL PUBLIC LICENSE"), "C's library is linked");
        assert!(!crates.iter().any(|part| part.name == "syn"), "a macro is not linked");
    }
}
