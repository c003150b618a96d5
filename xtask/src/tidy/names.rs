//! Names: files, directories of the machine that builds, and the ids of rules.

use std::collections::BTreeSet;

use super::{File, Violation, machine_paths};

/// A file with such a name collects what has no place.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc"];

/// Where every rule that code may cite is written down.
const RULES: &str = "docs/rules.md";

/// Checks all files.
pub(crate) fn check(files: &[File]) -> Vec<Violation> {
    let mut violations: Vec<Violation> = files.iter().filter_map(file_name).collect();
    let paths = machine_paths();
    violations.extend(files.iter().flat_map(|file| machine_path(file, &paths)));
    violations.extend(rule_ids(files));
    violations
}

fn file_name(file: &File) -> Option<Violation> {
    let name = file.path.rsplit('/').next()?.strip_suffix(".rs")?;
    let text = match name {
        "mod" => "use x.rs beside x/, not mod.rs".to_owned(),
        _ if EMPTY_NAMES.contains(&name) => format!("`{name}` says nothing; name what is in it"),
        _ => return None,
    };
    Some(Violation { file: file.path.clone(), line: 1, text })
}

fn machine_path(file: &File, paths: &[String]) -> Vec<Violation> {
    let found = |line: &str| paths.iter().find(|path| line.contains(path.as_str())).cloned();
    let lines = file.text.lines().enumerate();
    lines
        .filter_map(|(at, line)| {
            let text = format!("`{}` exists on this machine only", found(line)?);
            Some(Violation { file: file.path.clone(), line: at + 1, text })
        })
        .collect()
}

fn rule_ids(files: &[File]) -> Vec<Violation> {
    let rules = files.iter().find(|file| file.path == RULES);
    let known: BTreeSet<&str> = rules.into_iter().flat_map(|file| ids(&file.text)).collect();
    let prefixes: BTreeSet<&str> = known.iter().map(|id| &id[..2]).collect();
    let is_source = |file: &&File| file.path.ends_with(".rs");
    let mut violations = Vec::new();
    for file in files.iter().filter(is_source) {
        for (at, line) in file.text.lines().enumerate() {
            let cited = ids(line).into_iter().filter(|id| prefixes.contains(&id[..2]));
            for id in cited.filter(|id| !known.contains(id)) {
                let text = format!("rule {id} is not in {RULES}");
                violations.push(Violation { file: file.path.clone(), line: at + 1, text });
            }
        }
    }
    violations
}

/// Words of the form `AS-31` or `AS-120`.
fn ids(text: &str) -> Vec<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(move |c| !is_part(c)).filter(|word| is_id(word)).collect()
}

fn is_id(word: &str) -> bool {
    let Some((prefix, number)) = word.split_once('-') else { return false };
    prefix.len() == 2
        && prefix.bytes().all(|byte| byte.is_ascii_uppercase())
        && matches!(number.len(), 2 | 3)
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_file_is_named_after_what_is_in_it() {
        assert!(file_name(&file("crates/net/src/helpers.rs", "")).is_some());
        assert!(file_name(&file("crates/net/src/mod.rs", "")).is_some());
        assert!(file_name(&file("crates/net/src/plane.rs", "")).is_none());
    }

    #[test]
    fn a_rule_that_is_cited_must_exist() {
        let rules = file(RULES, "| AS-31 | one at a time |");
        let prefix = "AS";
        let code = file(
            "crates/core/src/a.rs",
            &format!("// {prefix}-31\n// see {prefix}-99 and SHA-256\n"),
        );
        let found = rule_ids(&[rules, code]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 2);
    }

    #[test]
    fn a_directory_of_the_building_machine_is_found() {
        let found = machine_path(&file("README.md", "x\nsee /srv/x/y\n"), &["/srv/x/".to_owned()]);
        assert_eq!(found[0].line, 2);
    }
}
