//! `config save`, `config env`, and the formats of `config show`.

use crate::fixture::Fixture;
use perch_cli::flytoml;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The time in headers.
fn timeless(text: &str) -> String {
    let line = |line: &str| match line.split_once(" generated for web on ") {
        Some((start, _)) => format!("{start} generated for web on TIME"),
        None => line.to_owned(),
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

fn normal(path: &Path) -> Value {
    let loaded = flytoml::load(path).expect("what was written can be read");
    assert_eq!(loaded.problems.len(), 0, "{:?}", loaded.problems);
    Value::Object(flytoml::to_json(&loaded.config))
}

const DEPLOYED: &str = "{
  \"app\": \"web\",
  \"primary_region\": \"lcl\",

  \"build\": {
    \"image\": \"oci:img\"
  },

  \"http_service\": {
    \"internal_port\": 8080,
    \"auto_stop_machines\": true,
    \"auto_start_machines\": true,
    \"min_machines_running\": 0,

    \"processes\": [
      \"app\"
    ]
  },

  \"vm\": [
    {
      \"memory\": \"1gb\",
      \"cpu_kind\": \"shared\",
      \"cpus\": 1,
      \"memory_mb\": 1024
    }
  ]
}
";

const DEPLOYED_YAML: &str = "\
# fly.yaml app configuration file generated for web on TIME
#
# See https://fly.io/docs/reference/configuration/ for information about how to use this file.
#

app: web
primary_region: lcl

build:
  image: oci:img

http_service:
  internal_port: 8080
  auto_stop_machines: true
  auto_start_machines: true
  min_machines_running: 0

  processes:
    - app

vm:
  - memory: 1gb
    cpu_kind: shared
    cpus: 1
    memory_mb: 1024
";

#[test]
fn the_deployed_configuration_is_shown_in_each_format() {
    let fixture = Fixture::deployed();
    assert_eq!(fixture.fly(&["config", "show"]).out, DEPLOYED);
    let yaml = fixture.fly(&["config", "display", "--yaml"]);
    assert_eq!(timeless(&yaml.out), DEPLOYED_YAML);
    let toml = timeless(&fixture.fly(&["config", "show", "--toml"]).out);
    let start = "# fly.toml app configuration file generated for web on TIME\n#\n";
    assert!(toml.starts_with(start) && toml.contains("\napp = 'web'\n"), "{toml}");
}

#[test]
fn what_is_saved_parses_to_what_was_deployed() {
    let fixture = Fixture::deployed();
    let wanted: Value = serde_json::from_str(DEPLOYED).expect("JSON");
    for (args, name) in [
        (&["-c", "new.toml"][..], "new.toml"),
        (&["--json", "-c", "new.toml"], "new.json"),
        (&["--yaml", "-c", "new.json"], "new.yaml"),
        (&["-c", "deeper/fly.json"], "deeper/fly.json"),
    ] {
        let args = [&["config", "save", "-a", "web"], args].concat();
        let run = fixture.fly(&args);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{name}");
        assert_eq!(run.out, format!("Wrote config file {name}\n"));
        assert_eq!(normal(&fixture.path(name)), wanted, "{name}");
    }
}

#[test]
fn a_file_that_is_there_is_overwritten_only_with_a_yes() {
    let fixture = Fixture::deployed();
    let file = fixture.path("fly.toml");
    let before = std::fs::read_to_string(&file).expect("launch wrote it");
    let run = fixture.fly(&["config", "save"]);
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert_eq!(
        run.err,
        "Error: prompt: non interactive\nAnswer yes to all questions with --yes\n\n"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), before);

    std::fs::write(&file, "app = 'web'\n[build]\n  dockerfile = 'D'\n").expect("ours");
    let run = fixture.fly(&["config", "save", "-y"]);
    assert_eq!((run.code, run.out.as_str()), (0, "Wrote config file fly.toml\n"), "{}", run.err);
    let saved = normal(&file);
    assert_eq!(saved["build"], json!({"dockerfile": "D"}), "it is not the deploy's matter");
    assert_eq!(saved["http_service"]["internal_port"], 8080);
    let left = std::fs::read_dir(file.parent().expect("one")).expect("ours");
    let names: Vec<PathBuf> = left.map(|it| it.expect("ours").path()).collect();
    assert!(!names.iter().any(|name| name.extension().is_some_and(|it| it == "new")), "{names:?}");
}

#[test]
fn a_broken_file_is_not_lost() {
    let fixture = Fixture::deployed();
    let file = fixture.path("fly.toml");
    std::fs::write(&file, "app = ").expect("ours");
    let run = fixture.fly(&["config", "save", "-a", "web", "--yes"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: error loading prev config: "), "{}", run.err);
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "app = ");
}

#[test]
fn nothing_is_saved_or_shown_of_an_app_that_was_never_deployed() {
    let fixture = Fixture::new();
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    // The secrets are there before the first deploy.
    for (command, out) in [("save", ""), ("show", ""), ("env", "Secrets\n NAME │ DIGEST \n\n")] {
        let run = fixture.fly(&["config", command, "-a", "web"]);
        assert_eq!((run.code, run.out.as_str()), (1, out), "{command}");
        assert!(run.err.starts_with("Error: app web has not been deployed yet\n"), "{}", run.err);
    }
    assert!(!fixture.path("fly.toml").exists());
}

#[test]
fn the_environment_is_shown_by_name() {
    let fixture = Fixture::deployed();
    assert_eq!(
        fixture.fly(&["config", "env"]).out,
        "Secrets\n NAME │ DIGEST \n\nEnvironment Variables\n NAME │ VALUE \n\n"
    );
    assert_eq!(fixture.fly(&["secrets", "set", "--stage", "KEY=1"]).code, 0);
    let run = fixture.fly(&["config", "env"]);
    assert!(run.out.starts_with("Secrets\n NAME │ DIGEST"), "{}", run.out);
    assert!(run.out.contains("\n KEY  │ "), "{}", run.out);
    let file = fixture.path("fly.toml");
    let text = std::fs::read_to_string(&file).expect("launch wrote it");
    std::fs::write(&file, text + "\n[env]\nB = \"two words\"\nA = \"1\"\n").expect("ours");
    assert_eq!(fixture.fly(&["deploy"]).code, 0);
    let run = fixture.fly(&["config", "env"]);
    let table = " NAME │ VALUE     \n A    │ 1         \n B    │ two words \n\n";
    assert!(run.out.ends_with(table), "{}", run.out);
}

/// What is hard to say in YAML, and lists in lists.
#[test]
fn a_configuration_written_as_yaml_parses_to_itself() {
    let hard = "app = 'web'\n[env]\nA = 'no'\nB = '0x1F'\nC = \"a\\n b\\n\\n\"\nD = \" x: y #z\"\n\
                'on' = '~'\nE = \"\\u0001\\t\\ufeff\"\nF = '2026-01-02'\nG = \"'\\\"\\\\\"\nH = ''\n\
                I = \"\\n\"\nJ = \"\\n x\"\nK = '- a'\nL = '12:30'\nM = \"x\\n\\ty\"\n'a b:' = '&a'\n";
    let lists = "app: web\nprocesses: {a: run, b: 'x --y=\"z\"'}\nservices:\n  - internal_port: 80\n    \
                 protocol: tcp\n    ports:\n      - {port: 80, handlers: [http]}\n      - port: 443\n";
    let seeds = [("fly.toml", hard), ("fly.yaml", lists)];
    for (name, text) in seeds {
        let fixture = Fixture::without_server();
        std::fs::write(fixture.path(name), text).expect("ours");
        let show = |file: &str, form: &[&str]| {
            let run = fixture.fly(&[&["config", "show", "--local", "-c", file], form].concat());
            assert_eq!(run.code, 0, "{file}: {}", run.err);
            run.out
        };
        let wanted = show(name, &[]);
        for (form, file) in [("--yaml", "again.yaml"), ("--toml", "again.toml")] {
            let written = show(name, &[form]);
            std::fs::write(fixture.path(file), &written).expect("ours");
            assert_eq!(show(file, &[]), wanted, "{name} as {file}:\n{written}");
        }
    }
}
