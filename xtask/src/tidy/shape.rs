//! The shape of Rust files: length of functions, head of modules, lints, tests.

use super::{RustFile, Violation};

/// No function is longer without a reason that is written down.
const FUNCTION_LINES_MAX: usize = 70;

/// Checks one file.
pub(crate) fn check(file: &RustFile) -> Vec<Violation> {
    let mut violations = long_functions(file);
    violations.extend(head(file));
    violations.extend(lints(file));
    violations
}

fn long_functions(file: &RustFile) -> Vec<Violation> {
    let lines: Vec<&str> = file.source.text.lines().collect();
    let excused = |line: usize| {
        let around = line.saturating_sub(12)..(line + 1).min(lines.len());
        lines[around].iter().any(|line| line.trim_start().starts_with("// long: "))
    };
    let long = file.source.functions().into_iter().filter(|f| FUNCTION_LINES_MAX < f.length);
    long.filter(|function| !excused(function.line))
        .map(|function| {
            let text = format!(
                "`{}` has {} lines; split it, or write `// long: reason` above it",
                function.name, function.length
            );
            file.violation(function.line, text)
        })
        .collect()
}

fn head(file: &RustFile) -> Option<Violation> {
    let is_product = file.path.contains("/src/") && !file.path.ends_with("/tests.rs");
    let first = file.source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let has_head = first.starts_with("//!") || first.starts_with("#!");
    (is_product && !has_head)
        .then(|| file.violation(1, "begins without `//!`: say what the module is for"))
}

fn lints(file: &RustFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, line) in file.source.code.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with("#[ignore") {
            let text = "no ignored tests: assert what it does today and say that it is wrong";
            violations.push(file.violation(at + 1, text));
        }
        if line.starts_with("#[allow(") || line.starts_with("#![allow(") {
            let text = "use #[expect(lint, reason = \"…\")] instead of allow";
            violations.push(file.violation(at + 1, text));
        }
    }
    violations
}

/// Half of the functions and nine in ten are at most this long.
pub(crate) fn sizes(files: &[RustFile]) -> String {
    let product = files.iter().filter(|file| file.path.starts_with("crates/"));
    let mut lengths: Vec<usize> =
        product.flat_map(|file| file.source.functions()).map(|f| f.length).collect();
    lengths.sort_unstable();
    let at = |share: f64| {
        let index = (lengths.len() as f64 * share) as usize;
        lengths.get(index).copied().unwrap_or_default()
    };
    format!(
        "{} functions, half under {}, nine in ten under {} lines",
        lengths.len(),
        at(0.5),
        at(0.9)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::File;

    fn found(text: &str) -> Vec<String> {
        let file = File { path: "crates/net/src/a.rs".to_owned(), text: text.to_owned() };
        check(&RustFile::new(&file)).into_iter().map(|v| v.to_string()).collect()
    }

    #[test]
    fn a_long_function_needs_a_written_reason() {
        let body = "    x();\n".repeat(FUNCTION_LINES_MAX);
        let long = format!("//! Doc.\nfn f() {{\n{body}}}\n");
        assert_eq!(found(&long).len(), 1);
        assert!(found(&long)[0].starts_with("crates/net/src/a.rs:2: `f` has 72 lines"));
        let excused = long.replace("fn f", "// long: a table reads best in one piece.\nfn f");
        assert!(found(&excused).is_empty());
    }

    #[test]
    fn a_module_says_what_it_is_for() {
        assert_eq!(found("use x;\n").len(), 1);
    }

    #[test]
    fn ignored_tests_and_allows_are_refused() {
        assert_eq!(found("//! Doc.\n#[ignore]\n#[allow(dead_code)]\n").len(), 2);
    }
}
