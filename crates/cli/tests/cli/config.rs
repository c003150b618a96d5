//! `config validate` and `config show`: a file is judged as flyctl judges it, without a server; what
//! passes there and does not work is a hint.

use crate::fixture::{Fixture, Run, oci_layout};
use serde_json::{Value, json};

fn with_file(name: &str, text: &str) -> Fixture {
    let fixture = Fixture::without_server();
    std::fs::write(fixture.path(name), text).expect("it can be written");
    fixture
}

fn validate(text: &str) -> Run {
    with_file("fly.toml", text).fly(&["config", "validate"])
}

fn judged(name: &str, text: &str) -> (u8, Value) {
    let run = with_file(name, text).fly(&["config", "validate", "--json"]);
    let json = serde_json::from_str(&run.out).unwrap_or_else(|_| panic!("{}{}", run.out, run.err));
    (run.code, json)
}

/// The keys, lines and columns of a list of the judgement.
fn places(list: &Value) -> Vec<(String, Value, Value)> {
    let entries = list.as_array().expect("it is a list").iter();
    let place = |entry: &Value| {
        assert!(entry["file"].as_str().is_some_and(|file| file.contains("fly.")), "{entry}");
        let key = entry["key"].as_str().expect("it has a key").to_owned();
        (key, entry["line"].clone(), entry["column"].clone())
    };
    entries.map(place).collect()
}

/// Issue 3, item 1: verdict words and exit codes.
#[test]
fn each_verdict_has_its_word_and_its_exit_code() {
    for (text, verdict, code) in [
        ("app = ", "reject-parse", 1),
        ("[http_service]\ninternal_port = \"80\"", "reject-shape", 1),
        ("[deploy]\nstrategy = \"all\"", "reject-validate", 1),
        ("[checks.a]\ntype = \"tcp\"", "accept-then-deploy-fails", 1),
        ("[[services]]\ninternal_port = 80", "accept-warn", 0),
        ("app = \"web\"", "accept", 0),
    ] {
        let (exit, json) = judged("fly.toml", text);
        assert_eq!((json["verdict"].as_str(), exit), (Some(verdict), code), "{text}");
    }
}

#[test]
fn each_entry_tells_file_line_column_and_key_in_all_three_languages() {
    for (name, text, at) in [
        ("fly.toml", "[deploy]\nstrategy = \"all\"\ncolour = 1\n", ((2, 12), (3, 1))),
        ("fly.json", "{\"deploy\": {\n\"strategy\": \"all\",\n\"colour\": 1}}", ((2, 13), (3, 1))),
        ("fly.yaml", "deploy:\n  strategy: all\n  colour: 1\n", ((2, 13), (3, 3))),
    ] {
        let (_, json) = judged(name, text);
        let place = |key: &str, (line, column): (i32, i32)| {
            vec![(key.to_owned(), json!(line), json!(column))]
        };
        assert_eq!(places(&json["errors"]), place("deploy.strategy", at.0), "{name}");
        assert_eq!(places(&json["strict_unknown"]), place("deploy.colour", at.1), "{name}");
        assert_eq!(places(&json["hints"]), place("deploy.colour", at.1), "{name}");
    }
}

#[test]
fn a_file_that_is_no_toml_json_or_yaml_is_a_judgement_too() {
    for (name, text, at) in [
        ("fly.toml", "a = 1\nb = = 2", (2, 5)),
        ("fly.json", "{\n\"a\": }", (2, 6)),
        ("fly.yaml", "a: b\nc: [1", (3, 1)),
    ] {
        let (code, json) = judged(name, text);
        assert_eq!((code, &json["verdict"]), (1, &json!("reject-parse")), "{name}");
        let place = vec![(String::new(), json!(at.0), json!(at.1))];
        assert_eq!(places(&json["errors"]), place, "{name}: {json}");
    }
}

/// Compat section 9.
#[test]
fn strict_mode_lists_unknown_keys_and_fails() {
    let fixture = with_file("fly.toml", "[cron]\n[http_service]\ninternal_port = 1\nmax = 1\n");
    assert_eq!(fixture.fly(&["config", "validate"]).code, 0);
    let run = fixture.fly(&["config", "validate", "--strict"]);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("  - cron\n  - http_service.max\n"), "{}", run.out);
    assert!(run.err.contains("Error: strict validation failed"), "{}", run.err);
}

/// Issue 3, item 2: every case that is named there.
#[test]
fn each_hint_names_place_and_right_form_and_changes_nothing() {
    let http = "[http_service]\ninternal_port = 80\n";
    for (text, hint) in [
        (
            "[http_services]\ninternal_port = 80",
            ":1:2: http_services: is not known and has no effect; write [http_service]",
        ),
        (
            "[http]\nport = 80",
            ":1:2: http: is not known and has no effect; write [http_service] with internal_port",
        ),
        (
            &format!("{http}[[http_service.ports]]\nport = 80"),
            ":3:16: http_service.ports: is not known and has no effect; remove it: [http_service] has ports 80 and 443",
        ),
        (
            "[[vm]]\nmemory = \"1gb\"\nswap_size_mb = 512",
            ":3:1: vm[0].swap_size_mb: is not known and has no effect; move swap_size_mb out of [vm]",
        ),
        (
            &format!("{http}app = \"x\""),
            ":3:1: http_service.app: is not known and has no effect; move app out of [http_service]",
        ),
        (
            "[autoscaling]\nmin_machines = 1",
            ":1:2: autoscaling: is not known and has no effect; write auto_stop_machines",
        ),
        (
            &format!("{http}max_machines_running = 2"),
            "http_service.max_machines_running: is not known and has no effect; remove it: the number of Machines is set with `fly scale count`",
        ),
        (&format!("{http}auto_stop_machine = true"), "write auto_stop_machines in [http_service]"),
        ("[build]\ninternal_port = 80", "move internal_port to [http_service]"),
        (
            "[deploy]\nwait_timeout = 300",
            ":2:16: deploy.wait_timeout: 300 without a unit is read as nanoseconds; write wait_timeout = \"300s\"",
        ),
        ("[[machine_checks]]\nkill_timeout = 5", "kill_timeout = \"5s\""),
        (
            &format!("{http}auto_stop_machines = true\nauto_start_machines = false"),
            ":4:23: http_service.auto_start_machines: Machines stop when idle and no request starts them again",
        ),
        (
            &format!(
                "{http}auto_stop_machines = true\n[[services]]\ninternal_port = 81\nports = [{{ port = 81 }}]"
            ),
            "services[0].auto_stop_machines: this service stops no Machine, so those of group 'app' never stop, whatever http_service says",
        ),
        (
            &format!("{http}concurrency = {{ soft_limit = 20, hard_limit = 10 }}"),
            "http_service.concurrency.hard_limit: hard_limit 10 is below soft_limit 20, which is lowered to it; write hard_limit = 20 or more",
        ),
        (
            &format!("{http}[[services]]\nprotocol = \"tpc\"\nports = [{{ port = 81 }}]"),
            ":4:12: services[0].protocol: unknown protocol 'tpc'",
        ),
    ] {
        let run = validate(text);
        assert_eq!(run.code, 0, "{text}\n{}{}", run.out, run.err);
        let said = run.err.lines().any(|line| line.starts_with("hint: ") && line.contains(hint));
        assert!(said, "{text}\n{}", run.err);
    }
}

/// Compat section 12: the rejected forms that how-to texts show most often.
#[test]
fn a_form_that_is_refused_gets_the_right_one() {
    for (text, form) in [
        (
            "[http_service]\n[http_service.checks.alive]\npath = \"/\"",
            "write [[http_service.checks]]",
        ),
        (
            "[http_service]\n[[http_service.concurrency]]\nsoft_limit = 1",
            "write [http_service.concurrency]",
        ),
        ("[[services]]\n[[services.concurrency]]\nsoft_limit = 1", "write [services.concurrency]"),
        ("[[http_service]]\ninternal_port = 1", "write [http_service]"),
    ] {
        let run = validate(text);
        assert_eq!(run.code, 1, "{text}");
        assert!(run.out.contains(form), "{text}\n{}", run.out);
    }
    let run = validate("[http_service]\n[http_service.checks.alive]\npath = \"/\"");
    assert!(run.err.contains("hint: "), "{}", run.err);
    let run = validate("[[services]]\n[[services.concurrency]]\nsoft_limit = 1");
    assert!(run.err.contains("write [services.concurrency], one table"), "{}", run.err);
}

#[test]
fn leftovers_of_the_old_platform_are_passed_over_in_silence() {
    let text = "[experimental]\nallowed_public_ports = []\nkill_timeout = 5\n[[services]]\n\
                internal_port = 1\nports = [{ port = 80 }]\nscript_checks = []\n\
                [[services.tcp_checks]]\nrestart_limit = 0\nport = 1\n";
    assert_eq!(validate(text).err, "");
}

/// FC-22, LI-01: only the server knows which addresses an app has.
#[test]
fn https_on_an_app_with_private_addresses_only_is_hinted_at_when_the_server_knows() {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let launch =
        ["launch", "--name", "web", "--image", "oci:img", "--flycast", "--no-deploy", "-y"];
    assert_eq!(fixture.fly(&launch).code, 0);
    let text = "app = \"web\"\n[http_service]\ninternal_port = 1\nforce_https = true\n";
    std::fs::write(fixture.path("fly.toml"), text).expect("it can be written");
    let run = fixture.fly(&["config", "validate"]);
    let hint = "4:15: http_service.force_https: the app has private addresses only, where https \
                answers nobody; write force_https = false";
    assert_eq!(run.code, 0);
    assert!(run.err.contains(hint), "{}", run.err);
    assert_eq!(validate(text).err, "");
}

#[test]
fn show_prints_the_normal_form_and_the_machines_of_each_group() {
    let text = "app = \"web\"\nkill_timeout = 5\n[processes]\nb = \"run b\"\na = \"run a\"\n\
                [mount]\nsource = \"d\"\ndestination = \"/d\"\nprocesses = [\"b\"]\n";
    let fixture = with_file("fly.toml", text);
    let run = fixture.fly(&["config", "show", "--local"]);
    let config: Value = serde_json::from_str(&run.out).expect("it is JSON");
    let normal = json!({
        "app": "web", "kill_timeout": "5s", "processes": {"a": "run a", "b": "run b"},
        "mounts": [{"source": "d", "destination": "/d", "processes": ["b"]}],
    });
    assert_eq!(config, normal);
    let run = fixture.fly(&["config", "show", "--local", "--machines"]);
    let all: Value = serde_json::from_str(&run.out).expect("it is JSON");
    assert_eq!(all["config"], normal);
    assert_eq!(all["verdict"], "accept");
    assert_eq!(
        all["machines"],
        json!({
            "a": {
                "env": {"FLY_PROCESS_GROUP": "a"}, "init": {"cmd": ["run", "a"]},
                "stop_config": {"timeout": "5s"},
            },
            "b": {
                "env": {"FLY_PROCESS_GROUP": "b"}, "init": {"cmd": ["run", "b"]},
                "mounts": [{"path": "/d", "name": "d"}], "stop_config": {"timeout": "5s"},
            },
        })
    );
}

/// T-01, compat section 2.
#[test]
fn the_first_of_fly_toml_fly_json_fly_yaml_is_taken() {
    let fixture = with_file("fly.yaml", "app: yaml\n");
    let app = || {
        let run = fixture.fly(&["config", "show", "--local"]);
        serde_json::from_str::<Value>(&run.out).expect("it is JSON")["app"].clone()
    };
    assert_eq!(app(), "yaml");
    std::fs::write(fixture.path("fly.json"), "{\"app\": \"json\"}").expect("it can be written");
    assert_eq!(app(), "json");
    std::fs::write(fixture.path("fly.toml"), "app = \"toml\"").expect("it can be written");
    assert_eq!(app(), "toml");
    let run = fixture.fly(&["config", "validate", "-c", "other.toml"]);
    assert!(run.err.contains("could not find the configuration file"), "{}", run.err);
}
