//! `machine restart | destroy | kill | cordon | uncordon | wait | leases`: flyctl-cli 3.4.

use crate::fixture::{Fixture, Run};
use serde_json::json;

fn check(run: &Run, out: &str) {
    assert_eq!((run.code, run.out.as_str()), (0, out), "{}", run.err);
}

fn check_error(run: &Run, error: &str) {
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.err.starts_with(&format!("Error: {error}")), "{}", run.err);
}

/// The calls that change something, without leases.
fn changes(fixture: &Fixture) -> Vec<String> {
    let calls = fixture.server().take_calls();
    calls.into_iter().filter(|it| !it.starts_with("GET") && !it.ends_with("/lease")).collect()
}

#[test]
fn what_needs_a_machine_says_so_without_a_terminal() {
    let fixture = Fixture::deployed();
    fixture.server().take_calls();
    for command in ["restart", "destroy", "kill", "cordon", "uncordon", "wait"] {
        let run = fixture.fly(&["machine", command]);
        check_error(&run, "a machine ID must be specified when not running interactively\n");
        let run = fixture.fly(&["machine", command, "m9"]);
        check_error(&run, "machine m9 was not found in app 'web'\n");
        let run = fixture.fly(&["machine", command, "m0", "--select"]);
        check_error(&run, "machine IDs can't be used with --select\n");
    }
    for command in ["view", "clear"] {
        let run = fixture.fly(&["machine", "leases", command]);
        check_error(&run, "a machine ID must be specified when not running interactively\n");
        let run = fixture.fly(&["m", "lease", command, "m9"]);
        check_error(&run, "machine m9 was not found in app 'web'\n");
    }
    assert_eq!(changes(&fixture), Vec::<String>::new());
}

#[test]
fn somebody_elses_lease_stops_every_command_that_takes_one() {
    let fixture = Fixture::deployed();
    fixture.server().lease_by("m0", "alice", "fly deploy");
    fixture.server().take_calls();
    for command in ["restart", "destroy", "cordon", "uncordon"] {
        let run = fixture.fly(&["machine", command, "m0", "-a", "web"]);
        check_error(&run, "could not lease machine m0: lease currently held by alice");
    }
    let run = fixture.fly(&["machine", "destroy", "-f", "m0"]);
    check_error(&run, "could not lease machine m0: lease currently held by alice");
    check_error(&fixture.fly(&["machine", "kill", "m0"]), "could not kill machine m0: ");
    assert_eq!(changes(&fixture), ["POST /v1/apps/web/machines/m0/signal"], "which was refused");
}

#[test]
fn restart_asks_and_waits_for_one_after_the_other() {
    let fixture = Fixture::deployed();
    let run =
        fixture.fly(&["machine", "restart", "m0", "m1", "-s", "sigterm", "--time", "7", "--force"]);
    check(
        &run,
        "Restarting machine m0\nNo health checks found\nMachine m0 restarted successfully!\n\
         Restarting machine m1\nNo health checks found\nMachine m1 restarted successfully!\n",
    );
    let asked = &fixture.server().machines("web")[1]["restart"];
    assert_eq!(*asked, json!({"force_stop": "true", "signal": "SIGTERM", "timeout": "7s"}));
    assert_eq!(fixture.server().leases(), 0);
    let run = fixture.fly(&["machine", "restart", "m0", "--skip-health-checks"]);
    check(&run, "Restarting machine m0\nMachine m0 restarted successfully!\n");
    let run = fixture.fly(&["machine", "restart", "m0", "--signal", "SIGWINCH"]);
    check_error(&run, "signal SIGWINCH is not accepted");
}

#[test]
fn restart_waits_for_the_checks_that_the_machine_has() {
    let fixture = Fixture::deployed();
    fixture.server().edit_machine("m0", |machine| {
        machine["checks"] = json!([{"name": "http", "status": "passing"}]);
    });
    let run = fixture.fly(&["machine", "restart", "m0"]);
    check(&run, "Restarting machine m0\nMachine m0 restarted successfully!\n");
    assert_eq!(run.err, "  Waiting for m0 to become healthy (started, 1/1)\n");
}

#[test]
fn destroy_takes_what_is_down_and_by_force_what_is_not() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m0", "suspended");
    fixture.server().set_state("m1", "stopping");
    check_error(
        &fixture.fly(&["machine", "rm", "m1"]),
        "machine m1 is in a stopping state and cannot be destroyed since it is not stopped or \
         suspended, either stop first or use --force flag\n",
    );
    let run = fixture.fly(&["machine", "destroy", "m0"]);
    let found =
        "machine m0 was found and is currently in suspended state, attempting to destroy...";
    check(&run, &format!("{found}\nm0 has been destroyed\n"));
    let run = fixture.fly(&["machine", "destroy", "-f", "m1"]);
    let found = "machine m1 was found and is currently in stopping state, attempting to destroy...";
    check(&run, &format!("{found}\nm1 has been destroyed\n"));
    assert!(fixture.server().machines("web").is_empty());
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn nothing_is_destroyed_when_one_of_several_may_not_be() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m1", "destroyed");
    let run = fixture.fly(&["machine", "destroy", "-f", "m0", "m1"]);
    check_error(&run, "machine m1 has already been destroyed\n");
    assert_eq!(fixture.server().machines("web").len(), 2);
}

#[test]
fn destroy_by_image_needs_an_app_and_an_answer() {
    let fixture = Fixture::deployed();
    check_error(&fixture.fly(&["machine", "destroy", "-i", "web:t"]), "prompt: non interactive\n");
    let run = fixture.fly(&["machine", "destroy", "-i", "web:other"]);
    check(&run, "No machine to destroy, exiting\n");
    std::fs::remove_file(fixture.path("fly.toml")).expect("it is there");
    check_error(
        &fixture.fly(&["machine", "destroy", "-i", "web:t"]),
        "--image requires --app flag or must be run from app directory\n",
    );
}

#[test]
fn kill_sends_its_signal_to_what_runs() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["machine", "kill", "m0"]);
    let found = "machine m0 was found and is currently in a started state, attempting to kill...\n";
    check(&run, &format!("{found}kill signal has been sent\n"));
    assert_eq!(fixture.server().machines("web")[0]["signal"], "SIGKILL");
    fixture.server().set_state("m0", "stopped");
    check_error(
        &fixture.fly(&["machine", "kill", "m0"]),
        "could not kill machine m0: unable to signal machine: it is stopped",
    );
    fixture.server().set_state("m0", "destroyed");
    let run = fixture.fly(&["machine", "kill", "m0"]);
    check_error(&run, "machine m0 has already been destroyed\n");
}

#[test]
fn a_cordon_is_set_removed_and_shown() {
    let fixture = Fixture::deployed();
    check(
        &fixture.fly(&["machine", "cordon", "m0", "m1"]),
        "Activating cordon on machine m0...\ndone!\nActivating cordon on machine m1...\ndone!\n",
    );
    let shown = fixture.fly(&["machine", "list", "--json"]);
    assert_eq!(shown.out.matches("\"cordoned\": true").count(), 2, "{}", shown.out);
    let status = fixture.fly(&["machine", "status", "m0"]);
    assert!(status.out.contains("\nHostStatus: ok\nCordoned: true\n\nVM\n"), "{}", status.out);
    let run = fixture.fly(&["machine", "uncordon", "m1"]);
    check(&run, "Deactivating cordon on machine m1...\ndone!\n");
    let status = fixture.fly(&["machine", "status", "m1"]);
    assert!(!status.out.contains("Cordoned"), "{}", status.out);
    let status = fixture.fly(&["status"]);
    assert!(status.out.contains("Notes:\n  Cordoned: m0 (no new requests, never started for one)"));
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn wait_says_what_was_reached_or_that_it_was_not() {
    let fixture = Fixture::deployed();
    check(
        &fixture.fly(&["machine", "wait", "m0"]),
        "Waiting up to 5m0s for machine m0 to reach \"settled\"...\nMachine m0 reached state \"started\"\n",
    );
    let run = fixture.fly(&["machine", "wait", "m0", "--state", "stopped", "-w", "1s"]);
    check_error(&run, "machine m0 did not reach \"stopped\" within 1s\n");
    assert_eq!(run.out, "Waiting up to 1s for machine m0 to reach \"stopped\"...\n");
    let run = fixture.fly(&["machine", "wait", "m0", "--state", "happy"]);
    check_error(&run, "machine m0 did not reach \"happy\" within 5m0s: \"happy\" is no state");
    check_error(&fixture.fly(&["machine", "wait", "m0", "--state", ""]), "state cannot be empty\n");
    let run = fixture.fly(&["machine", "wait", "m0", "-w", "5"]);
    check_error(&run, "invalid argument \"5\" for \"-w, --wait-timeout\" flag");
}

#[test]
fn leases_are_shown_and_cleared_whoever_holds_them() {
    let fixture = Fixture::deployed();
    let view = ["machine", "leases", "view", "m0", "m1"];
    check(&fixture.fly(&view), "No leases found\n");
    check(&fixture.fly(&[&view[..], &["--json"]].concat()), "{}\n");
    fixture.server().lease_by("m1", "alice", "fly deploy");
    let run = fixture.fly(&view);
    let expires = jiff::Timestamp::from_second(2_000_000_000).expect("a time");
    let zone = jiff::tz::TimeZone::system();
    let local = expires.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S").to_string();
    assert!(run.out.starts_with(" MACHINE │ NONCE  │ STATUS  │ OWNER │ EXPIRES "), "{}", run.out);
    assert!(run.out.contains(&format!("\n m1      │ theirs │ success │ alice │ {local}")));
    check(
        &fixture.fly(&[&view[..], &["--json"]].concat()),
        r#"{
    "m1": {
        "status": "success",
        "data": {
            "nonce": "theirs",
            "expires_at": 2000000000,
            "owner": "alice",
            "description": "fly deploy",
            "version": ""
        },
        "message": "",
        "code": ""
    }
}
"#,
    );
    let run = fixture.fly(&["machine", "leases", "clear", "m0", "m1"]);
    check(&run, "clearing lease for machine m1\nLease(s) cleared\n");
    assert_eq!(fixture.server().leases(), 0);
}
