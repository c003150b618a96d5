//! Licences, bans and sources of the dependencies, read from `cargo metadata` and `deny.toml`.
//!
//! cargo-deny does more and costs minutes to build on two cores; decision 0002 says why we have
//! our own hundred lines. It looks at what is linked or run on this target, not at other systems.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use toml_edit::{DocumentMut, Item, Table};

use crate::shell;

/// Checks all dependencies and prints each violation; whether there was none.
pub(crate) fn run() -> Result<bool> {
    let policy = Policy::read(&shell::root().join("deny.toml"))?;
    let packages = packages()?;
    let problems = policy.problems(&packages);
    for problem in &problems {
        println!("deny: {problem}");
    }
    println!("deny: {} packages, {} problems", packages.len(), problems.len());
    Ok(problems.is_empty())
}

struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest: String,
}

struct Clarification {
    expression: String,
    file: String,
    contains: String,
}

struct Policy {
    allowed: BTreeSet<String>,
    clarified: BTreeMap<String, Clarification>,
    multiple: BTreeSet<String>,
    denied: BTreeMap<String, String>,
    sources: BTreeSet<String>,
}

fn packages() -> Result<Vec<Package>> {
    let triple = shell::host_triple()?;
    let mut command = shell::cargo(&["metadata", "--format-version=1", "--locked"]);
    command.args(["--filter-platform", &triple]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut command)?)?;
    let packages = metadata["packages"].as_array().context("no packages in metadata")?;
    Ok(packages.iter().map(Package::new).collect())
}

impl Package {
    fn new(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Self {
            name: text("name").unwrap_or_default(),
            version: text("version").unwrap_or_default(),
            license: text("license"),
            source: text("source"),
            manifest: text("manifest_path").unwrap_or_default(),
        }
    }
}

impl Policy {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context("reading deny.toml")?;
        let policy: DocumentMut = text.parse().context("parsing deny.toml")?;
        let licenses = &policy["licenses"];
        let bans = &policy["bans"];
        Ok(Self {
            allowed: strings(&licenses["allow"]),
            clarified: tables(licenses, "clarify").filter_map(clarification).collect(),
            multiple: reasons(&bans["multiple"]),
            denied: tables(bans, "deny").filter_map(denied).collect(),
            sources: strings(&policy["sources"]["allow"]),
        })
    }

    fn problems(&self, packages: &[Package]) -> Vec<String> {
        let mut problems: Vec<String> =
            packages.iter().filter_map(|package| self.problem(package)).collect();
        problems.extend(self.duplicates(packages));
        problems
    }

    fn problem(&self, package: &Package) -> Option<String> {
        let Package { name, version, .. } = package;
        if let Some(reason) = self.denied.get(name) {
            return Some(format!("{name} {version} is banned: {reason}"));
        }
        // A package without a source is one of ours.
        let source = package.source.as_deref()?;
        if !self.sources.contains(source) {
            return Some(format!("{name} {version} comes from {source}, which is not allowed"));
        }
        let expression = match self.licence_of(package) {
            Ok(expression) => expression,
            Err(problem) => return Some(problem),
        };
        let fits = satisfies(&expression, &self.allowed);
        (!fits).then(|| format!("{name} {version}: licence `{expression}` is not on the list"))
    }

    fn licence_of(&self, package: &Package) -> Result<String, String> {
        let Package { name, version, manifest, .. } = package;
        if let Some(expression) = &package.license {
            return Ok(expression.clone());
        }
        let Some(clarification) = self.clarified.get(name) else {
            return Err(format!("{name} {version} names no licence; read it and add a clarify"));
        };
        let file = Path::new(manifest).with_file_name(&clarification.file);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.contains(&clarification.contains) {
            return Ok(clarification.expression.clone());
        }
        Err(format!("{name} {version}: {} changed; read it again", clarification.file))
    }

    fn duplicates(&self, packages: &[Package]) -> Vec<String> {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for package in packages {
            versions.entry(&package.name).or_default().push(&package.version);
        }
        let is_new = |name: &str, count: usize| 1 < count && !self.multiple.contains(name);
        let new = versions.iter().filter(|(name, versions)| is_new(name, versions.len()));
        let text = |name, versions: &[&str]| {
            format!("{name} is there more than once: {}", versions.join(", "))
        };
        new.map(|(name, versions)| text(name, versions)).collect()
    }
}

fn clarification(table: &Table) -> Option<(String, Clarification)> {
    let text = |key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
    text("reason")?;
    let clarification = Clarification {
        expression: text("expression")?,
        file: text("file")?,
        contains: text("contains")?,
    };
    Some((text("name")?, clarification))
}

fn denied(table: &Table) -> Option<(String, String)> {
    let text = |key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
    Some((text("name")?, text("reason")?))
}

fn strings(item: &Item) -> BTreeSet<String> {
    let values = item.as_array().into_iter().flatten();
    values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// Names of an array of inline tables, those only that give a reason.
fn reasons(item: &Item) -> BTreeSet<String> {
    let tables = item.as_array().into_iter().flatten().filter_map(|value| value.as_inline_table());
    let justified = tables.filter(|table| table.contains_key("reason"));
    justified.filter_map(|table| table.get("name")?.as_str().map(str::to_owned)).collect()
}

fn tables<'a>(item: &'a Item, key: &str) -> impl Iterator<Item = &'a Table> {
    item.get(key).and_then(Item::as_array_of_tables).into_iter().flatten()
}

/// Whether an SPDX expression can be met by allowed licences alone. `AND` binds tighter than `OR`;
/// an old-style slash means `OR`.
fn satisfies(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let fits = any_of(&tokens, &mut at, allowed);
    fits && at == tokens.len()
}

fn any_of(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut fits = all_of(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        fits |= all_of(tokens, at, allowed);
    }
    fits
}

fn all_of(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut fits = one(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        fits &= one(tokens, at, allowed);
    }
    fits
}

fn one(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let token = tokens.get(*at);
    *at += 1;
    let Some(token) = token else { return false };
    if *token == "(" {
        let fits = any_of(tokens, at, allowed);
        *at += 1;
        return fits;
    }
    let mut name = (*token).to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", tokens.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(expression: &str) -> bool {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
        satisfies(expression, &allowed.map(str::to_owned).into())
    }

    #[test]
    fn every_part_of_an_and_must_be_allowed() {
        assert!(!fits("MIT AND GPL-3.0"));
        assert!(!fits("(MIT OR Apache-2.0) AND GPL-3.0"));
        assert!(fits("(MIT OR Apache-2.0) AND Unicode-3.0"));
    }

    #[test]
    fn one_part_of_an_or_is_enough() {
        assert!(fits("MPL-2.0 OR MIT"));
        assert!(fits("Unlicense/MIT"));
        assert!(fits("Apache-2.0 WITH LLVM-exception OR X"));
        assert!(!fits("Apache-1.0 WITH LLVM-exception"));
    }

    #[test]
    fn an_empty_expression_is_refused() {
        assert!(!fits(""));
        assert!(!fits("MIT OR"));
        assert!(!fits("MIT MIT"));
    }
}
