use super::*;

fn loaded(text: &str) -> Loaded {
    parse(Path::new("fly.toml"), text).expect("the text is TOML")
}

fn problems(text: &str) -> Vec<String> {
    loaded(text).problems.iter().map(ToString::to_string).collect()
}

fn machine(text: &str, group: &str) -> serde_json::Value {
    let loaded = loaded(text);
    assert!(!loaded.has_errors(), "{:?}", loaded.problems);
    serde_json::Value::Object(loaded.config.machine_config(group).expect("it converts"))
}

/// The snippet of the blueprint, with its comments.
const BLUEPRINT: &str = r#"app = "backend"

[http_service]
  # the port on which your app receives requests over the 6PN
  internal_port = 8081
  # must be false - Flycast is http-only
  force_https = false
  # Fly Proxy stops Machines based on traffic
  auto_stop_machines = "stop"
  # Fly Proxy starts Machines based on traffic
  auto_start_machines = true
  # Number of Machines to keep running in primary region
  min_machines_running = 0
  [http_service.concurrency]
    type = "requests"
    # Fly Proxy uses this limit to determine Machine excess capacity
    soft_limit = 250
"#;

#[test]
fn a_text_that_is_not_toml_names_line_and_column_and_shows_the_place() {
    let error = parse(Path::new("fly.toml"), "app = \"x\"\ninternal_port = = 1\n");
    let text = error.expect_err("two equals signs").to_string();
    assert!(text.starts_with("fly.toml:2:17: "), "{text}");
    assert!(text.contains("   2 | internal_port = = 1"), "{text}");
}

#[test]
fn a_value_of_the_wrong_type_names_place_key_and_remedy_and_keeps_the_app() {
    let loaded = loaded("app = \"x\"\n[http_service]\n  internal_port = \"8080\"\n");
    assert_eq!(loaded.config, Config { app: Some("x".into()), ..Config::default() });
    assert_eq!(
        loaded.problems[0].to_string(),
        "3:19: http_service.internal_port: must be a whole number, found a string; \
         write internal_port = 8080"
    );
}

#[test]
fn a_port_out_of_range_is_an_error_at_its_place() {
    let text = "[[services]]\ninternal_port = 80\n[[services.ports]]\nport = 99999\n";
    assert_eq!(
        problems(text),
        [
            "4:8: services[0].ports[0].port: port 99999 is out of range; write a port from 1 to 65535"
        ]
    );
}

#[test]
fn an_unknown_way_to_stop_names_the_known_ones() {
    let found = problems("[http_service]\ninternal_port = 1\nauto_stop_machines = \"on\"\n");
    assert!(found[0].contains("write auto_stop_machines = \"off\", \"stop\" or \"suspend\""));
}

#[test]
fn the_extensions_are_checked_for_their_ranges_and_carried_to_the_machine() {
    let text = |value: &str| {
        format!(
            "[http_service]\ninternal_port = 1\nauto_stop_after = \"{value}\"\nstart_timeout = \"90s\""
        )
    };
    assert!(problems(&text("10ms"))[0].contains("write a duration of 100ms to 720h"));
    let service = &machine(&text("2s"), "app")["services"][0];
    assert_eq!(service["auto_stop_after"], "2s");
    assert_eq!(service["start_timeout"], "1m30s");
}

#[test]
fn the_blueprints_snippet_becomes_one_service_on_80_and_443() {
    let expected = serde_json::json!({
        "env": {"FLY_PROCESS_GROUP": "app"},
        "init": {},
        "services": [{
            "protocol": "tcp", "internal_port": 8081, "autostop": true, "autostart": true,
            "min_machines_running": 0,
            "ports": [
                {"port": 80, "handlers": ["http"]},
                {"port": 443, "handlers": ["http", "tls"]}
            ],
            "concurrency": {"type": "requests", "soft_limit": 250},
            "force_instance_key": null
        }]
    });
    assert_eq!(machine(BLUEPRINT, "app"), expected);
}

#[test]
fn unknown_keys_are_kept_apart_and_change_no_verdict() {
    let loaded =
        loaded("app = \"x\"\n[http_service]\ninternal_port = 1\nmax_machines = 3\n[cron]\n");
    assert_eq!(loaded.unknown, ["http_service.max_machines", "cron"]);
    assert_eq!(loaded.verdict(), Verdict::Accept);
}

#[test]
fn what_is_written_as_toml_reads_back_the_same() {
    let loaded = loaded(BLUEPRINT);
    let written = to_toml(&loaded.config);
    assert!(written.contains("  force_https = false\n"), "{written}");
    assert!(written.contains("  auto_stop_machines = 'stop'\n"), "{written}");
    let again = parse(Path::new("fly.toml"), &written).expect("our own text is TOML");
    assert_eq!(again.config, loaded.config);
}

#[test]
fn legacy_spellings_are_understood() {
    let text = "kill_timeout = 5\nprocesses = []\n[env]\nN = 2\n[services]\ninternal_port = \"80\"\n\
                concurrency = \"20,25\"\n[services.ports]\nport = \"80\"\nhandlers = [\"http\"]\n\
                [[services.tcp_checks]]\ninterval = 10000\n[mount]\nsource = \"d\"\ndestination = \"/d\"\n";
    let machine = machine(text, "app");
    assert_eq!(machine["env"]["N"], "2");
    assert_eq!(machine["stop_config"]["timeout"], "5s");
    let service = &machine["services"][0];
    assert_eq!(service["internal_port"], 80);
    assert_eq!(service["concurrency"]["hard_limit"], 25);
    assert_eq!(service["checks"][0]["interval"], "10s");
    assert_eq!(machine["mounts"][0]["path"], "/d");
}

#[test]
fn a_service_without_processes_is_refused_when_groups_exist() {
    let found = problems("[processes]\nweb = \"a\"\n[http_service]\ninternal_port = 1\n");
    assert!(found[0].contains("write processes = [\"web\"]"), "{found:?}");
}

#[test]
fn json_is_read_like_toml() {
    let path = Path::new("fly.json");
    let loaded = parse(path, r#"{"app": "x", "http_service": {"internal_port": 1}}"#);
    assert_eq!(loaded.expect("it is JSON").config.app.as_deref(), Some("x"));
    let error = parse(path, "{\n \"app\": }").expect_err("it is not");
    assert!(error.to_string().starts_with("fly.json:2:9: "), "{error}");
}
