//! `machine list | status | start | stop`: flyctl-cli 3.4 and 6.

use crate::fixture::Fixture;
use serde_json::json;

/// The app `web` with two Machines whose data is easily compared.
fn deployed() -> Fixture {
    let fixture = Fixture::deployed();
    for id in ["m0", "m1"] {
        fixture.server().edit_machine(id, |machine| {
            machine["created_at"] = "2026-01-01T00:00:00Z".into();
            machine["updated_at"] = "2026-01-02T03:04:05Z".into();
            machine["instance_id"] = "01V".into();
            machine["events"] = json!([]);
        });
    }
    fixture
}

#[test]
fn list_prints_flyctls_thirteen_columns() {
    let fixture = deployed();
    fixture.server().edit_machine("m0", |machine| {
        machine["checks"] = json!([{"name": "role", "status": "passing", "output": "leader"},
            {"name": "http", "status": "critical"}]);
        machine["config"]["mounts"] = json!([{"volume": "vol_1", "path": "/data"}]);
    });
    fixture.server().edit_machine("m1", |machine| machine["host_status"] = "unknown".into());
    assert_eq!(
        fixture.fly(&["machine", "list"]).out,
        "2 machines have been retrieved from app web.\n\nweb\n \
         ID  │ NAME │ STATE   │ CHECKS │ REGION │ ROLE   │ IMAGE │ IP ADDRESS │ VOLUME │ CREATED              │ LAST UPDATED         │ PROCESS GROUP │ SIZE                 \n \
         m0  │ m0   │ started │ 1/2    │ lcl    │ leader │ web:t │ fdaa::3    │ vol_1  │ 2026-01-01T00:00:00Z │ 2026-01-02T03:04:05Z │ app           │ shared-cpu-1x:1024MB \n \
         m1* │ m1   │ started │        │ lcl    │        │       │            │        │                      │                      │ app           │ shared-cpu-1x:1024MB \n\n\
         * These Machines' hosts could not be reached.\n"
    );
    assert_eq!(fixture.fly(&["m", "ls", "--quiet"]).out, " m0 \n m1 \n\n");
}

#[test]
fn an_app_without_machines_says_so_and_quiet_says_nothing() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let run = fixture.fly(&["machine", "list", "-a", "web"]);
    assert_eq!(run.out, "No machines are available on this app web\n");
    assert_eq!(fixture.fly(&["machines", "list", "-q", "-a", "web"]).out, "");
    assert_eq!(fixture.fly(&["machine", "list", "--json", "-a", "web"]).out, "[]\n");
}

#[test]
fn json_has_the_order_of_gos_structures_and_keeps_every_number() {
    let fixture = deployed();
    let config = r#"{"image":"i","x":12345678901234567890123,"env":{"B":"<&>","A":"1"},
        "metadata":{"fly_platform_version":"v2"},"guest":{"memory_mb":256,"cpus":1,"cpu_kind":"shared"}}"#;
    fixture.server().answer_machine_with(&format!(
        r#"{{"config":{config},"state":"started","id":"m0","private_ip":"fdaa::3","region":"lcl",
            "host_status":"ok","events":[],"checks":[],"image_ref":{{"tag":"t","repository":"web"}}}}"#
    ));
    let machine = r#"    {
        "id": "m0",
        "state": "started",
        "region": "lcl",
        "image_ref": {
            "repository": "web",
            "tag": "t"
        },
        "private_ip": "fdaa::3",
        "config": {
            "env": {
                "A": "1",
                "B": "\u003c\u0026\u003e"
            },
            "init": {},
            "guest": {
                "cpu_kind": "shared",
                "cpus": 1,
                "memory_mb": 256
            },
            "metadata": {
                "fly_platform_version": "v2"
            },
            "image": "i",
            "x": 12345678901234567890123
        },
        "host_status": "ok",
        "cordoned": false
    }"#;
    assert_eq!(fixture.fly(&["m", "list", "--json"]).out, format!("[\n{machine}\n]\n"));
    let status = fixture.fly(&["status", "--json"]);
    assert!(status.out.contains("\"x\": 12345678901234567890123\n"), "{}", status.out);
    let config = fixture.fly(&["machine", "status", "m0", "-d"]);
    assert!(config.out.starts_with("{\n  \"env\": {\n    \"A\": \"1\",\n"), "{}", config.out);
    assert!(config.out.ends_with("  \"x\": 12345678901234567890123\n}\n"), "{}", config.out);
}

#[test]
fn status_prints_lines_a_table_checks_and_events() {
    let fixture = deployed();
    fixture.server().edit_machine("m0", |machine| {
        machine["config"]["init"] = json!({"cmd": ["run", "a b"]});
        machine["config"]["mounts"] = json!([{"volume": "vol_1", "path": "/data"}]);
        machine["checks"] = json!([{"name": "http", "status": "passing", "output": "200\nOK",
            "updated_at": "2024-03-16T18:20:00Z"}]);
        machine["events"] = json!([{"type": "exit", "status": "stopped", "source": "flyd",
            "timestamp": 1_704_164_645_600_u64,
            "request": {"exit_event": {"exit_code": 3, "oom_killed": true}}}]);
    });
    let run = fixture.fly(&["machine", "status", "m0"]);
    let head = "Machine ID: m0\nInstance ID: 01V\nState: started\nHostStatus: ok\n\nVM\n \
                ID            │ m0                   \n Instance ID   │ 01V                  \n \
                State         │ started              \n Image         │ web:t                \n \
                Name          │ m0                   \n Private IP    │ fdaa::3              \n \
                Region        │ lcl                  \n Process Group │ app                  \n \
                CPU Kind      │ shared               \n vCPUs         │ 1                    \n \
                Memory        │ 1024                 \n Created       │ 2026-01-01T00:00:00Z \n \
                Updated       │ 2026-01-02T03:04:05Z \n Entrypoint    │                      \n \
                Command       │ [\"run\",\"a b\"]        \n Volume        │ vol_1                \n\n\
                Checks [1/1]\n \
                NAME │ STATUS  │ LAST UPDATED      │ OUTPUT \n \
                http │ passing │ Mar 16 2024 18:20 │ 200    \n \
                \x20    │         │                   │ OK     \n\n\
                Event Logs\n STATE   │ EVENT │ SOURCE │ TIMESTAMP ";
    assert!(run.out.starts_with(head), "{}", run.out);
    let row = run.out.lines().rev().find(|line| line.contains("exit")).expect("a row");
    assert!(row.starts_with(" stopped │ exit  │ flyd   │ 2024-01-"), "{row}");
    assert!(row.contains("│ exit_code=3,oom_killed=true,requested_stop=false "), "{row}");
}

#[test]
fn without_an_id_there_must_be_a_terminal() {
    let fixture = deployed();
    for command in ["status", "start", "stop"] {
        let run = fixture.fly(&["machine", command]);
        assert_eq!(run.code, 1);
        let error = "Error: a machine ID must be specified when not running interactively\n";
        assert!(run.err.starts_with(error), "{command}: {}", run.err);
        let run = fixture.fly(&["machine", command, "m0", "--select"]);
        let error = "Error: machine IDs can't be used with --select\n";
        assert!(run.err.starts_with(error), "{command}: {}", run.err);
        std::fs::rename(fixture.path("fly.toml"), fixture.path("kept")).expect("it is there");
        let run = fixture.fly(&["machine", command]);
        let error = "Error: a machine ID or an app name is required\n";
        assert!(run.err.starts_with(error), "{command}: {}", run.err);
        let run = fixture.fly(&["machine", command, "--select"]);
        let error = "Error: an app name must be specified to use --select\n";
        assert!(run.err.starts_with(error), "{command}: {}", run.err);
        std::fs::rename(fixture.path("kept"), fixture.path("fly.toml")).expect("it is there");
    }
}

#[test]
fn several_machines_are_leased_first_and_then_started_or_stopped() {
    let fixture = deployed();
    fixture.server().take_calls();
    let run =
        fixture.fly(&["machine", "stop", "m0", "m1", "--signal", "sigterm", "--timeout", "9"]);
    assert_eq!(
        run.out,
        "Sending kill signal to machine m0...\nm0 has been successfully stopped\n\
         Sending kill signal to machine m1...\nm1 has been successfully stopped\n",
        "{}",
        run.err
    );
    let calls = fixture.server().take_calls();
    let posts: Vec<_> = calls.iter().filter(|call| call.starts_with("POST")).collect();
    assert_eq!(
        posts,
        [
            "POST /v1/apps/web/machines/m0/lease",
            "POST /v1/apps/web/machines/m1/lease",
            "POST /v1/apps/web/machines/m0/stop",
            "POST /v1/apps/web/machines/m1/stop",
        ]
    );
    let run = fixture.fly(&["m", "start", "m0", "m1"]);
    assert_eq!(run.out, "m0 has been started\nm1 has been started\n");
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn a_machine_that_is_not_there_is_named_with_its_app_before_anything_happens() {
    let fixture = deployed();
    for command in ["status", "start", "stop"] {
        let run = fixture.fly(&["machine", command, "m9"]);
        assert_eq!((run.code, run.out.as_str()), (1, ""));
        let error = "Error: machine m9 was not found in app 'web'\n";
        assert!(run.err.starts_with(error), "{command}: {}", run.err);
    }
    fixture.server().take_calls();
    assert_eq!(fixture.fly(&["machine", "stop", "m0", "m9"]).code, 1);
    assert!(fixture.server().take_calls().iter().all(|call| call.starts_with("GET")));
    let run = fixture.fly(&["machine", "stop", "m0", "--signal", "SIGNONE"]);
    assert!(run.err.contains("SIGNONE") && run.err.contains("SIGTERM"), "{}", run.err);
}

#[test]
fn somebody_elses_lease_is_told_with_its_holder() {
    let fixture = deployed();
    fixture.server().lease_by("m1", "alice", "fly deploy");
    let run = fixture.fly(&["machine", "start", "m0", "m1"]);
    assert_eq!((run.code, run.out.as_str()), (1, ""));
    assert!(run.err.contains("could not lease machine m1: lease currently held by alice"));
    assert_eq!(fixture.server().leases(), 1, "our own is given back");
}

#[test]
fn a_stop_that_is_not_over_in_time_says_so_with_exit_code_1() {
    let fixture = deployed();
    fixture.server().ignore_stops();
    let run = fixture.fly(&["machine", "stop", "m0", "-w", "1s"]);
    assert_eq!(run.code, 1, "{}", run.err);
    assert_eq!(run.out, "Sending kill signal to machine m0...\n");
    let error = "Error: machine m0 did not stop within the wait timeout\n";
    assert!(run.err.starts_with(error), "{}", run.err);
    assert_eq!(fixture.server().leases(), 0);
    // Without -w nobody waits.
    let run = fixture.fly(&["machine", "stop", "m0"]);
    assert!(run.out.ends_with("m0 has been successfully stopped\n"), "{}", run.out);
    let run = fixture.fly(&["machine", "stop", "m0", "-w", "5"]);
    assert!(run.err.starts_with("Error: invalid argument \"5\" for \"-w, --wait-timeout\" flag"));
}

#[test]
fn ctrl_c_while_a_lease_is_taken_starts_and_stops_nothing() {
    for (command, verb) in [("start", "/start"), ("stop", "/stop")] {
        let fixture = deployed();
        let signal = fixture.server().when_called("POST", "m0/lease");
        let run = fixture.fly_until(signal, &["machine", command, "m0", "m1"]);
        assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (127, "", ""), "{command}");
        let calls = fixture.server().take_calls();
        assert!(!calls.iter().any(|call| call.ends_with(verb)), "{calls:?}");
        assert_eq!(fixture.server().leases(), 0, "{command}");
    }
}
