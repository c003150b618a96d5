//! `config validate` and `config show`: flyctl-cli 3.8 and 5.

use crate::fixture::Fixture;

fn with_file(text: &str) -> Fixture {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("fly.toml"), text).expect("it can be written");
    fixture
}

const FILE: &str = "app = 'web'\nprimary_region = 'lcl'\n[http_service]\n  internal_port = 8080\n  \
                    [[http_service.checks]]\n    path = '/<x>'\n    interval = '5s'\n";

#[test]
fn validation_says_which_file_is_valid_and_ends_with_an_empty_line() {
    let fixture = with_file(FILE);
    let path = fixture.path("fly.toml").display().to_string();
    let run = fixture.fly(&["config", "validate"]);
    let expected = format!("Validating {path}\n✓ Configuration is valid\n\n");
    assert_eq!((run.code, run.out), (0, expected));
}

#[test]
fn what_is_wrong_stands_after_a_cross() {
    let fixture = with_file("app = 'web'\n[deploy]\nstrategy = 'slow'\n");
    let path = fixture.path("fly.toml").display().to_string();
    let run = fixture.fly(&["config", "validate"]);
    assert_eq!(run.code, 1);
    let begin = format!("Validating {path}\n\n   ✘{path}:3:12: deploy.strategy: ");
    assert!(run.out.starts_with(&begin), "{}", run.out);
    assert!(run.out.ends_with("\n\n"), "{}", run.out);
    assert_eq!(run.err, "Error: App configuration is not valid\n");
}

#[test]
fn strict_mode_lists_what_it_does_not_know() {
    let fixture =
        with_file("app = 'web'\ncolour = 1\n[http_service]\n  internal_port = 80\n  x = 1\n");
    let run = fixture.fly(&["config", "validate", "-s"]);
    assert_eq!(run.code, 1);
    let end = "✓ Configuration is valid\n\n\nStrict validation found unrecognised sections or keys:\n  \
               - colour\n  - http_service.x\n\n\n";
    assert!(run.out.ends_with(end), "{}", run.out);
    assert!(run.err.contains("Error: strict validation failed\n"), "{}", run.err);
    assert_eq!(fixture.fly(&["config", "validate"]).code, 0);
}

#[test]
fn without_a_file_the_deployed_configuration_is_judged() {
    let fixture = Fixture::deployed();
    std::fs::remove_file(fixture.path("fly.toml")).expect("it is there");
    let run = fixture.fly(&["config", "validate"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: no fly.toml here\n"), "{}", run.err);
    let run = fixture.fly(&["config", "validate", "-a", "web"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.ends_with("✓ Configuration is valid\n\n"), "{}", run.out);
}

#[test]
fn show_prints_json_with_empty_lines_before_sections() {
    let fixture = with_file(FILE);
    let expected = r#"{
  "app": "web",
  "primary_region": "lcl",

  "http_service": {
    "internal_port": 8080,

    "checks": [
      {
        "interval": "5s",
        "path": "/\u003cx\u003e"
      }
    ]
  }
}
"#;
    assert_eq!(fixture.fly(&["config", "show", "--local"]).out, expected);
    assert_eq!(fixture.fly(&["config", "display", "--local", "-a", "web"]).out, expected);
}

#[test]
fn show_prints_toml_and_yaml_with_a_header() {
    let fixture = with_file(FILE);
    let toml = fixture.fly(&["config", "show", "--local", "--toml"]).out;
    assert!(
        toml.starts_with("# fly.toml app configuration file generated for web on 20"),
        "{toml}"
    );
    assert!(toml.contains("\n#\n\napp = 'web'\n"), "{toml}");
    let yaml = fixture.fly(&["config", "show", "--local", "--yaml"]).out;
    assert!(
        yaml.starts_with("# fly.yaml app configuration file generated for web on 20"),
        "{yaml}"
    );
    let body = "\n#\n\napp: web\nprimary_region: lcl\n\nhttp_service:\n  internal_port: 8080\n\n  \
                checks:\n    - interval: 5s\n      path: /<x>\n";
    assert!(yaml.ends_with(body), "{yaml}");
}

#[test]
fn what_is_shown_is_read_again_as_the_same() {
    let fixture = with_file(
        "app = 'web'\nkill_timeout = '5s'\n[env]\nA = 'true'\nB = 'a: b'\nC = '1.0'\nD = ''\nE = '# x'\n\
         F = '0x1b'\n[processes]\napp = 'run --x=\"y\"'\n[[services]]\ninternal_port = 80\nprotocol = 'tcp'\n\
         [[services.ports]]\nport = 80\nhandlers = ['http', 'tls']\n[[vm]]\nmemory = '1gb'\n[[vm]]\n\
         size = 'shared-cpu-2x'\nprocesses = ['app']\n",
    );
    let shown = fixture.fly(&["config", "show", "--local"]).out;
    assert!(shown.starts_with('{'), "{shown}");
    for (flag, name) in [("--yaml", "fly.yaml"), ("--toml", "other.toml")] {
        let text = fixture.fly(&["config", "show", "--local", flag]).out;
        std::fs::write(fixture.path(name), text).expect("it can be written");
        let again = fixture.fly(&["config", "show", "--local", "-c", name]).out;
        assert_eq!(again, shown, "{flag}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let fixture = Fixture::new();
    let run = fixture.fly(&["config", "show"]);
    assert!(run.err.contains("the config for your app is missing an app name"), "{}", run.err);
    fixture.fly(&["apps", "create", "web"]);
    let run = fixture.fly(&["config", "show", "-a", "web"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: app web has not been deployed yet\n"), "{}", run.err);
    let run = fixture.fly(&["config", "show", "--local"]);
    assert!(run.err.starts_with("Error: no fly.toml here\n"), "{}", run.err);
}
