//! Compares our reading of collected `fly.toml` files with what flyctl makes of them.
//!
//! `cargo run -p perch-cli --example fly-toml-corpus -- DIR` where DIR holds the files and
//! `EXPECTED.jsonl`. Prints each difference and a count; exits with 1 when there is any.

use perch_cli::flytoml;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: fly-toml-corpus DIR");
        return ExitCode::from(2);
    };
    let dir = Path::new(&dir);
    let expected = match std::fs::read_to_string(dir.join("EXPECTED.jsonl")) {
        Ok(expected) => expected,
        Err(error) => {
            eprintln!("could not read EXPECTED.jsonl: {error}");
            return ExitCode::from(2);
        }
    };
    let (mut same, mut other) = (0, 0);
    for line in expected.lines() {
        let Ok(case) = serde_json::from_str::<Value>(line) else { continue };
        let differences = compare(dir, &case);
        match differences.is_empty() {
            true => same += 1,
            false => other += 1,
        }
        for difference in differences {
            println!("{}: {difference}", case["file"].as_str().unwrap_or_default());
        }
    }
    println!("{same} the same, {other} different");
    if other == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn compare(dir: &Path, case: &Value) -> Vec<String> {
    let path = dir.join(case["file"].as_str().unwrap_or_default());
    let loaded = match flytoml::load(&path) {
        Ok(loaded) => loaded,
        Err(error) => return vec![error.to_string()],
    };
    let mut differences = Vec::new();
    let accepted = case["verdict"].as_str().is_some_and(|verdict| verdict.starts_with("accept"));
    let late = case["verdict"] == "accept-then-deploy-fails";
    if loaded.has_errors() == (accepted && !late) {
        differences.push(format!("verdict {}: {:?}", case["verdict"], loaded.problems));
    }
    let unknown = Value::from(loaded.strict_unknown());
    if sorted(&case["strict_unknown"]) != sorted(&unknown) {
        differences.push(format!("unknown: {unknown} instead of {}", case["strict_unknown"]));
    }
    let config = Value::Object(flytoml::to_json(&loaded.config));
    if case["config"].is_object() && config != case["config"] {
        differences.push(format!("config\n  ours   {config}\n  theirs {}", case["config"]));
    }
    for (group, theirs) in case["machines"].as_object().into_iter().flatten() {
        match loaded.config.machine_config(group) {
            Ok(ours) if Value::Object(ours.clone()) == *theirs => {}
            Ok(ours) => differences.push(format!(
                "machine {group}\n  ours   {}\n  theirs {theirs}",
                Value::Object(ours)
            )),
            Err(error) => differences.push(error.to_string()),
        }
    }
    differences
}

fn sorted(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    let mut items: Vec<_> = items.map(ToString::to_string).collect();
    items.sort();
    items
}
