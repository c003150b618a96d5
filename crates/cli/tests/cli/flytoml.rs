//! Files that others wrote: the reference corpus, if it lies beside the repository (its licence lets no
//! copy lie in it), and files by chance.

use crate::mutate::{self, Random};
use perch_cli::flytoml::{self, LoadError, Verdict};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Enough to meet every section of the seeds many times, and read within a second or two.
const FILES_BY_CHANCE: usize = 4_000;

/// The corpus, or none, said.
fn corpus(part: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let dir = root.join("shared/corpus").join(part);
    if !dir.is_dir() {
        println!("skipped: there is no {}", dir.display());
    }
    dir.is_dir().then_some(dir)
}

fn described(path: &Path) -> Value {
    let loaded = flytoml::load(path).unwrap_or_else(|error| panic!("{error}"));
    flytoml::described(&loaded)
}

/// The order of check headers means nothing.
fn comparable(value: &Value) -> Value {
    let sorted = |value: &Value| {
        let mut items: Vec<Value> = value.as_array().cloned().unwrap_or_default();
        items.sort_by_key(ToString::to_string);
        Value::Array(items)
    };
    match value {
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| match key.as_str() {
                "headers" if value.is_array() => (key.clone(), sorted(value)),
                "strict_unknown" => (key.clone(), sorted(value)),
                _ => (key.clone(), comparable(value)),
            });
            Value::Object(pairs.filter(|(key, _)| key != "why").collect())
        }
        Value::Array(items) => items.iter().map(comparable).collect(),
        other => other.clone(),
    }
}

#[test]
fn every_file_of_the_corpus_is_what_flyctl_makes_of_it() {
    let Some(dir) = corpus("fly-toml") else { return };
    let expected = std::fs::read_to_string(dir.join("EXPECTED.jsonl")).expect("it is readable");
    let mut compared = 0;
    for line in expected.lines() {
        let theirs: Value = serde_json::from_str(line).expect("it is JSON");
        let file = theirs["file"].as_str().expect("it names its file");
        assert_eq!(comparable(&described(&dir.join(file))), comparable(&theirs), "{file}");
        compared += 1;
    }
    assert_eq!(compared, 127);
}

/// The first words of the two columns: does it load, does it validate.
#[test]
fn flyctls_own_test_files_load_and_validate_as_there() {
    let Some(dir) = corpus("flyctl-testdata") else { return };
    let index = std::fs::read_to_string(dir.join("INDEX.tsv")).expect("it is readable");
    let mut compared = 0;
    for line in index.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let word = |column: usize| {
            columns[column].split([' ', ':']).next().expect("a column has a first word")
        };
        let verdict = match flytoml::load(&dir.join(columns[0])) {
            Ok(loaded) => loaded.verdict(),
            Err(LoadError::Syntax { .. }) => Verdict::RejectParse,
            Err(error) => panic!("{error}"),
        };
        let ours = match verdict {
            Verdict::RejectShape => ("shape", "n/a"),
            Verdict::RejectParse => ("parse", "n/a"),
            Verdict::RejectValidate => ("ok", "reject"),
            Verdict::Accept | Verdict::AcceptWarn | Verdict::AcceptThenDeployFails => ("ok", "ok"),
        };
        assert_eq!(ours, (word(1), word(2)), "{}", columns[0]);
        compared += 1;
    }
    assert_eq!(compared, 41);
}

/// Issue 3: no input panics, and whatever parses, prints and parses again to the same.
#[test]
fn whatever_parses_prints_and_parses_again_to_the_same() {
    let seeds = mutate::seeds(Vec::new());
    for (name, bytes) in &seeds {
        mutate::check(name, bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let mut random = Random::new(1);
    for _ in 0..FILES_BY_CHANCE {
        let (name, bytes) = mutate::file(&mut random, &seeds);
        let checked = mutate::check(name, &bytes);
        checked.unwrap_or_else(|error| panic!("{error}\n{}", String::from_utf8_lossy(&bytes)));
    }
}

#[test]
fn nests_and_numbers_beyond_measure_are_refused_or_read_and_nothing_breaks() {
    let digits = "9".repeat(100_000);
    for (name, text) in [
        ("fly.toml", format!("a = {}{}", "[".repeat(50_000), "]".repeat(50_000))),
        ("fly.toml", format!("a = {}1{}", "{a=".repeat(50_000), "}".repeat(50_000))),
        ("fly.toml", format!("[{}]", vec!["a"; 50_000].join("."))),
        ("fly.json", format!("{}1{}", "{\"a\":".repeat(50_000), "}".repeat(50_000))),
        ("fly.json", format!("{{\"a\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000))),
        ("fly.yaml", format!("a: {}{}", "[".repeat(50_000), "]".repeat(50_000))),
        ("fly.yaml", format!("{}b", "- ".repeat(50_000))),
        ("fly.toml", format!("kill_timeout = {digits}")),
        ("fly.toml", format!("kill_timeout = \"{digits}h\"")),
        ("fly.json", format!("{{\"kill_timeout\": {digits}}}")),
        ("fly.json", "{\"kill_timeout\": 1e308, \"swap_size_mb\": 1e308}".to_owned()),
        ("fly.yaml", format!("env:\n  A: {digits}\n  B: 1e308\n  C: 0x{digits}\n")),
        (
            "fly.toml",
            format!("[[vm]]\nmemory = \"{digits}pb\"\n[[mounts]]\ninitial_size = {}", i64::MAX),
        ),
    ] {
        mutate::check(name, text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    }
}
