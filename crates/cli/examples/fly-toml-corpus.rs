//! Compares our reading of collected `fly.toml` files with what flyctl makes of them.
//!
//! `cargo run -p perch-cli --example fly-toml-corpus -- DIR` where DIR holds the files and
//! `EXPECTED.jsonl`. Prints each difference and a count; exits with 1 when there is any.
//! With `-` instead of DIR, prints our own line for each path on standard input.

use perch_cli::flytoml::{self, LoadError, Verdict};
use serde_json::{Value, json};
use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;

/// What is compared; the words of a reason and the order of keys are ours.
const COMPARED: [&str; 6] = ["verdict", "app", "config", "machines", "strict_unknown", "ip_type"];

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: fly-toml-corpus DIR");
        return ExitCode::from(2);
    };
    if dir == "-" {
        for path in std::io::stdin().lock().lines().map_while(Result::ok) {
            println!("{}", described(Path::new(&path)));
        }
        return ExitCode::SUCCESS;
    }
    match compare_all(Path::new(&dir)) {
        Ok((same, 0)) => {
            println!("{same} the same, 0 different");
            ExitCode::SUCCESS
        }
        Ok((same, other)) => {
            println!("{same} the same, {other} different");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("could not read EXPECTED.jsonl: {error}");
            ExitCode::from(2)
        }
    }
}

fn compare_all(dir: &Path) -> std::io::Result<(usize, usize)> {
    let expected = std::fs::read_to_string(dir.join("EXPECTED.jsonl"))?;
    let (mut same, mut other) = (0, 0);
    for line in expected.lines() {
        let Ok(theirs) = serde_json::from_str::<Value>(line) else { continue };
        let file = theirs["file"].as_str().unwrap_or_default();
        let ours = described(&dir.join(file));
        let mut equal = true;
        for key in COMPARED {
            let (mut ours, mut theirs) = (comparable(&ours[key]), comparable(&theirs[key]));
            if key == "strict_unknown" {
                (ours, theirs) = (sorted(ours), sorted(theirs));
            }
            if ours != theirs {
                equal = false;
                println!("{file}: {key}\n  ours   {ours}\n  theirs {theirs}");
            }
        }
        if equal { same += 1 } else { other += 1 }
    }
    Ok((same, other))
}

fn described(path: &Path) -> Value {
    match flytoml::load(path) {
        Ok(loaded) => flytoml::described(&loaded),
        Err(error) => json!({
            "file": path.file_name().map(|name| name.to_string_lossy()),
            "app": "", "config": null, "ip_type": "", "machines": {}, "strict_unknown": [],
            "verdict": match error {
                LoadError::Syntax { .. } => Verdict::RejectParse.to_string(),
                _ => "unreadable".to_owned(),
            },
            "why": error.to_string(),
        }),
    }
}

/// The order of check headers means nothing.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| {
                let value = comparable(value);
                (key.clone(), if key == "headers" { sorted(value) } else { value })
            });
            Value::Object(pairs.collect())
        }
        Value::Array(items) => items.iter().map(comparable).collect(),
        other => other.clone(),
    }
}

fn sorted(value: Value) -> Value {
    let Value::Array(mut items) = value else { return value };
    items.sort_by_key(ToString::to_string);
    Value::Array(items)
}
