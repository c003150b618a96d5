//! Which crate may depend on which: `core` below, siblings apart, the binary above.

use toml_edit::{DocumentMut, Item};

use super::{File, Violation};

/// What a crate may use.
enum External {
    /// Any crate of the workspace table.
    Any,
    /// These and no others.
    Only(&'static [&'static str]),
}

struct Rule {
    dir: &'static str,
    ours: &'static [&'static str],
    external: External,
}

const CORE: &str = "perch-core";
/// No crate that starts processes, sets networks up or runs Machines. `nix` only reads to which address a datagram
/// was sent: `rustix` does not say, and `libc` would need unsafe code. `h2` has no sockets of its own, and speaks in types
/// of `bytes` and `http`. `hyper` and its like are only what the fuzzer compares with.
const PROXY: &[&str] = &[
    "bytes",
    "flate2",
    "h2",
    "hickory-proto",
    "http",
    "http-body-util",
    "httparse",
    "hyper",
    "hyper-util",
    "libc",
    "nix",
    "ring",
    "rustix",
    "serde",
    "serde_json",
    "thiserror",
    "tokio",
    "tokio-util",
    "tracing",
];
const ALL: &[&str] =
    &[CORE, "perch-store", "perch-machine", "perch-net", "perch-proxy", "perch-api", "perch-cli"];

const RULES: &[Rule] = &[
    Rule { dir: "crates/core", ours: &[], external: External::Only(&["thiserror"]) },
    Rule { dir: "crates/store", ours: &[CORE], external: External::Any },
    Rule { dir: "crates/machine", ours: &[CORE], external: External::Any },
    Rule { dir: "crates/net", ours: &[CORE], external: External::Any },
    Rule { dir: "crates/proxy", ours: &[CORE], external: External::Only(PROXY) },
    Rule { dir: "crates/api", ours: &[CORE], external: External::Any },
    Rule { dir: "crates/cli", ours: &[CORE, "perch-api"], external: External::Any },
    Rule { dir: "crates/perch", ours: ALL, external: External::Any },
    // Compiled by plain rustc and embedded, so the standard library is all they have.
    Rule { dir: "crates/init", ours: &[], external: External::Only(&[]) },
    Rule { dir: "crates/hello", ours: &[], external: External::Only(&[]) },
    Rule { dir: "tests/sim", ours: &[CORE], external: External::Any },
    Rule { dir: "tests/testkit", ours: &[], external: External::Any },
    Rule { dir: "tests/e2e", ours: &["perch-testkit"], external: External::Any },
    Rule { dir: "tests/model", ours: &["perch-api", "perch-testkit"], external: External::Any },
    Rule { dir: "fuzz", ours: &["perch-proxy"], external: External::Any },
    Rule { dir: "xtask", ours: &["perch-testkit"], external: External::Any },
];

/// Checks every manifest of a member.
pub(crate) fn check(files: &[File]) -> Vec<Violation> {
    let manifests = files.iter().filter(|file| file.path.ends_with("/Cargo.toml"));
    manifests.flat_map(check_manifest).collect()
}

fn check_manifest(file: &File) -> Vec<Violation> {
    let dir = file.path.trim_end_matches("/Cargo.toml");
    let violation = |line, text| Violation { file: file.path.clone(), line, text };
    let Some(rule) = RULES.iter().find(|rule| rule.dir == dir) else {
        let text =
            format!("no dependency rule for {dir}; add one in xtask/src/tidy/dependencies.rs");
        return vec![violation(1, text)];
    };
    let Ok(manifest) = file.text.parse::<DocumentMut>() else {
        return vec![violation(1, "not valid TOML".to_owned())];
    };
    let mut violations = Vec::new();
    for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, item) in
            manifest.get(table).and_then(Item::as_table_like).into_iter().flat_map(|t| t.iter())
        {
            let line = line_of(&file.text, name);
            violations.extend(rule.breach(table, name).map(|text| violation(line, text)));
            if !is_inherited(item) {
                let text = format!("`{name}` has its own version; write `{name}.workspace = true`");
                violations.push(violation(line, text));
            }
        }
    }
    violations
}

impl Rule {
    fn breach(&self, table: &str, name: &str) -> Option<String> {
        let dir = self.dir;
        if name.starts_with("perch-") || name == "perch" {
            let allowed = self.ours.contains(&name);
            return (!allowed).then(|| format!("{dir} must not depend on {name}"));
        }
        let External::Only(list) = &self.external else { return None };
        let allowed = list.contains(&name) || (table == "dev-dependencies" && !list.is_empty());
        (!allowed).then(|| format!("{dir} must not depend on {name}; it may use {list:?} only"))
    }
}

fn is_inherited(item: &Item) -> bool {
    item.get("workspace").and_then(Item::as_bool) == Some(true)
}

fn line_of(text: &str, name: &str) -> usize {
    text.lines().position(|line| line.starts_with(name)).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(dir: &str, text: &str) -> Vec<String> {
        let file = File { path: format!("{dir}/Cargo.toml"), text: text.to_owned() };
        check(&[file]).into_iter().map(|violation| violation.to_string()).collect()
    }

    #[test]
    fn siblings_must_not_depend_on_each_other() {
        let found = manifest("crates/net", "[dependencies]\nperch-store.workspace = true\n");
        assert_eq!(found, ["crates/net/Cargo.toml:2: crates/net must not depend on perch-store"]);
    }

    #[test]
    fn core_takes_no_crate_that_does_input_or_output() {
        assert_eq!(manifest("crates/core", "[dependencies]\ntokio.workspace = true\n").len(), 1);
        assert!(manifest("crates/core", "[dependencies]\nthiserror.workspace = true\n").is_empty());
    }

    #[test]
    fn a_version_of_its_own_is_refused() {
        assert_eq!(manifest("crates/api", "[dependencies]\nhttp = \"1\"\n").len(), 1);
    }

    #[test]
    fn a_member_without_a_rule_is_refused() {
        assert_eq!(manifest("crates/other", "").len(), 1);
    }
}
