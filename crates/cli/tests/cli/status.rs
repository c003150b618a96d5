//! `status`: flyctl-cli 3.3 and 6.

use crate::fixture::{Fixture, Run};
use serde_json::{Value, json};

/// A deployed app whose Machines were changed at a time that is easily compared.
fn deployed() -> Fixture {
    let fixture = Fixture::deployed();
    for id in ["m0", "m1"] {
        fixture.server().edit_machine(id, |machine| {
            machine["updated_at"] = "2026-01-02T03:04:05Z".into();
        });
    }
    fixture
}

fn body(run: &Run) -> &str {
    assert_eq!(run.code, 0, "{}", run.err);
    &run.out
}

#[test]
fn an_app_and_its_machines_are_two_tables() {
    let fixture = deployed();
    let expected = "App\n Name     │ web            \n Owner    │ personal       \n \
                    Hostname │ web.perch.test \n Image    │ web:t          \n\nMachines\n \
                    PROCESS │ ID │ VERSION │ REGION │ STATE   │ ROLE │ CHECKS │ LAST UPDATED         \n \
                    app     │ m0 │ 1       │ lcl    │ started │      │        │ 2026-01-02T03:04:05Z \n \
                    app     │ m1 │ 1       │ lcl    │ started │      │        │ 2026-01-02T03:04:05Z \n\n";
    assert_eq!(body(&fixture.fly(&["status"])), expected);
    assert_eq!(body(&fixture.fly(&["status", "--all", "--deployment"])), expected);
}

#[test]
fn an_app_without_machines_has_no_second_table() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "lab", "--network", "lab-net"]);
    assert_eq!(
        body(&fixture.fly(&["status", "-a", "lab"])),
        "App\n Name     │ lab            \n Owner    │ personal       \n \
         Hostname │ lab.perch.test \n Image    │ -              \n Network  │ lab-net        \n\n"
    );
}

#[test]
fn checks_standbys_roles_and_dead_hosts_are_shown_and_noted() {
    let fixture = deployed();
    fixture.server().edit_machine("m0", |machine| {
        machine["checks"] = json!([
            {"name": "a", "status": "passing"}, {"name": "b", "status": "critical"},
            {"name": "c", "status": "warning"}, {"name": "d", "status": "passing"}]);
        machine["config"]["metadata"]["role"] = "leader".into();
    });
    fixture.server().edit_machine("m1", |machine| {
        machine["config"]["standbys"] = json!(["m0"]);
        machine["host_status"] = "unreachable".into();
    });
    let run = fixture.fly(&["status"]);
    let table = body(&run);
    assert!(table.contains("│ leader │ 4 total, 2 passing, 1 warning, 1 critical │"), "{table}");
    assert!(table.contains("\n app†💀  │ m1 │"), "{table}");
    assert!(
        table.ends_with(
            "\n\nNotes:\n  † Standby machine (it will take over only in case of host hardware \
             failure)\n  💀 The machine's host is unreachable\n"
        ),
        "{table}"
    );
}

#[test]
fn machines_that_no_deploy_made_are_only_pointed_at() {
    let fixture = deployed();
    fixture.server().edit_machine("m1", |machine| {
        machine["config"]["metadata"] = json!({});
    });
    let run = fixture.fly(&["status"]);
    assert!(!run.out.contains("m1"), "{}", run.out);
    let notice =
        "Found machines that aren't part of Fly Launch, run fly machines list to see them.\n";
    assert!(run.out.ends_with(notice), "{}", run.out);
}

#[test]
fn json_has_sorted_keys_and_only_machines_of_deploys() {
    let fixture = deployed();
    fixture.server().edit_machine("m1", |machine| machine["config"]["metadata"] = json!({}));
    let run = fixture.fly(&["status", "--json"]);
    let status: Value = serde_json::from_str(body(&run)).expect("it is JSON");
    let keys: Vec<_> = status.as_object().expect("an object").keys().map(String::as_str).collect();
    let wanted =
        "AppURL Deployed Hostname ID Machines Name Organization PlatformVersion Status Version";
    assert_eq!(keys, wanted.split(' ').collect::<Vec<_>>());
    assert_eq!(status["Version"], 1);
    assert_eq!(status["Machines"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        status["Organization"],
        json!({"ID": "personal", "InternalNumericID": "7", "Name": "Personal", "Slug": "personal",
            "RawSlug": "personal", "PaidPlan": false})
    );
    fixture.server().edit_app("web", |app| app["network"] = "lab-net".into());
    let run = fixture.fly(&["status", "--json"]);
    assert!(
        run.out.contains("\n    \"Network\": \"lab-net\",\n    \"Organization\""),
        "{}",
        run.out
    );
}

#[test]
fn watching_needs_a_terminal_and_goes_not_with_json() {
    let fixture = deployed();
    let run = fixture.fly(&["status", "--watch"]);
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert_eq!(run.err, "Error: --watch is not supported for non-interactive sessions\n");
    let run = fixture.fly(&["status", "--watch", "--json"]);
    assert_eq!(run.err, "Error: --watch and --json are not supported together\n");
}

#[test]
fn bad_input_names_the_thing() {
    let fixture = deployed();
    let run = fixture.fly(&["status", "-a", "nobody"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: failed to get app: "), "{}", run.err);
    assert!(run.err.contains("nobody"), "{}", run.err);
    let run = fixture.fly(&["status", "web"]);
    assert_eq!(run.err, "Error: unknown command \"web\" for \"fly status\"\n");
    assert_eq!(run.out, "Run 'fly status --help' for usage.\n\n");
    let run = fixture.fly(&["status", "--rate", "soon"]);
    assert!(
        run.err.starts_with("Error: invalid argument \"soon\" for \"--rate\" flag"),
        "{}",
        run.err
    );
    let run = fixture.fly(&["status", "--colour"]);
    assert!(run.err.starts_with("Error: unknown flag: --colour\n"), "{}", run.err);
    let run = fixture.fly(&["status", "--app"]);
    assert!(run.err.starts_with("Error: flag needs an argument: --app\n"), "{}", run.err);
}

/// However many apps there are, the CLI asks about one.
#[test]
fn it_takes_two_calls_and_no_list_of_apps() {
    let fixture = deployed();
    fixture.server().take_calls();
    body(&fixture.fly(&["status"]));
    let mut calls = fixture.server().take_calls();
    calls.sort();
    assert_eq!(calls, ["GET /v1/apps/web", "GET /v1/apps/web/machines"]);
}
