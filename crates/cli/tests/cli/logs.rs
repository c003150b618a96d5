//! `logs`: flyctl-cli 3.7.

use crate::fixture::Fixture;
use serde_json::json;

fn with_lines() -> Fixture {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let line = |instance: &str, region: &str, provider: &str, level: &str, message: &str| {
        json!({"timestamp": "2026-01-02T03:04:05.678Z", "message": message, "level": level,
            "instance": instance, "region": region,
            "meta": {"instance": instance, "region": region, "event": {"provider": provider}}})
    };
    fixture.server().log(line("m0", "lcl", "app", "info", "up <&>"));
    fixture.server().log(line("", "rmt", "proxy", "warn", "late"));
    fixture.server().log(line("m1", "rmt", "", "debug", "x"));
    fixture
}

const M0: &str = "2026-01-02T03:04:05Z app[m0] lcl [info]up <&>\n";
const PROXY: &str = "2026-01-02T03:04:05Z proxy rmt [warn]late\n";
const M1: &str = "2026-01-02T03:04:05Z m1 rmt [debug]x\n";

#[test]
fn lines_have_their_source_before_them() {
    let run = with_lines().fly(&["logs", "-a", "web", "--no-tail"]);
    assert_eq!((run.code, run.out), (0, format!("{M0}{PROXY}{M1}")));
}

#[test]
fn a_machine_is_named_in_four_ways_and_a_region_in_two() {
    let fixture = with_lines();
    for flag in [["-m", "m0"], ["--machine", "m0"], ["-i", "m0"], ["--instance", "m0"]] {
        let run = fixture.fly(&["logs", "-a", "web", "-n", flag[0], flag[1]]);
        assert_eq!(run.out, M0, "{flag:?}");
    }
    let run = fixture.fly(&["logs", "-a", "web", "-n", "-r", "rmt"]);
    assert_eq!(run.out, format!("{PROXY}{M1}"));
    let region = [("FLY_REGION", "rmt")];
    let run = fixture.fly_in(&region, &["logs", "-a", "web", "-n"]);
    assert_eq!(run.out, format!("{PROXY}{M1}"));
    let run = fixture.fly_in(&region, &["logs", "-a", "web", "-n", "-m", "m0"]);
    assert_eq!(run.out, M0, "a Machine's region says nothing more");
}

#[test]
fn json_is_one_object_per_line() {
    let run = with_lines().fly(&["logs", "-a", "web", "-n", "-m", "m0", "--json"]);
    let expected = r#"{
    "level": "info",
    "instance": "m0",
    "message": "up \u003c\u0026\u003e",
    "region": "lcl",
    "timestamp": "2026-01-02T03:04:05.678Z",
    "meta": {
        "Instance": "m0",
        "Region": "lcl",
        "Event": {
            "Provider": "app"
        },
        "HTTP": {
            "Request": {
                "ID": "",
                "Method": "",
                "Version": ""
            },
            "Response": {
                "status_code": 0
            }
        },
        "Error": {
            "Code": 0,
            "Message": ""
        },
        "URL": {
            "Full": ""
        }
    }
}
"#;
    assert_eq!(run.out, expected);
}

#[test]
fn nothing_is_printed_when_there_is_nothing() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let run = fixture.fly(&["logs", "-a", "web", "--no-tail"]);
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (0, "", ""));
}

#[test]
fn a_choice_is_for_terminals_and_instead_of_a_name() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["logs", "--select", "-m", "m0"]);
    assert_eq!(run.err, "Error: --machine can't be used with -s/--select\n");
    let run = fixture.fly(&["logs", "-s", "-n"]);
    assert_eq!(run.code, 1);
    assert_eq!(run.err, "Error: could not prompt for machine: prompt: non interactive\n");
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let run = fixture.fly(&["logs", "-s", "-n", "-a", "web"]);
    assert_eq!(run.err, "Error: app web has no machines\n");
}
