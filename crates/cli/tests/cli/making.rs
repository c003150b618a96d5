//! `machine run | create | update | clone`: flyctl-cli 3.4.

use crate::fixture::{Fixture, Run, oci_layout};
use serde_json::{Value, json};

fn check_error(run: &Run, error: &str) {
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.err.contains(&format!("Error: {error}")), "{}", run.err);
}

/// The app `web` without Machines, and an image.
fn with_app() -> Fixture {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    fixture
}

fn config(fixture: &Fixture, at: usize) -> Value {
    fixture.server().machines("web")[at]["config"].clone()
}

fn image_of(run: &Run) -> &str {
    run.out.lines().find_map(|line| line.strip_prefix("Image: ")).expect("it names the image")
}

#[test]
fn without_an_app_or_an_image_nothing_is_made() {
    let fixture = with_app();
    let run = fixture.fly(&["machine", "run", "oci:img"]);
    check_error(&run, "Running a Machine without specifying an app will create one for you");
    assert!(run.err.contains("prompt: non interactive"), "{}", run.err);
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "other"]);
    check_error(&run, "App 'other' does not exist, would you like to create it?");
    let run = fixture.fly(&["machine", "run", "-a", "web"]);
    check_error(&run, "image argument can't be an empty string\n");
    check_error(&fixture.fly(&["machine", "create", "-a", "web"]), "requires at least 1 arg(s)");
    let run = fixture.fly(&["machine", "run", "oci:none", "-a", "web"]);
    check_error(&run, "failed to fetch an image or build from source: ");
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "web", "--id", "m0"]);
    check_error(&run, "to update an existing machine, use 'flyctl machine update'\n");
    assert!(fixture.server().machines("web").is_empty());
}

#[test]
fn wrong_flags_are_refused_before_anything_is_pushed() {
    let fixture = with_app();
    fixture.server().take_calls();
    for (flags, error) in [
        (&["-e", "X"][..], "invalid key/value pairs specified for flag env\n"),
        (&["-m", "X"], "invalid key/value pairs specified for flag metadata\n"),
        (&["-p", "http"], "invalid port: \"http\" is no number\n"),
        (&["--restart", "never"], "invalid restart provided\n"),
        (&["-p", "80", "--autostop=later"], "invalid autostop value: \"later\"\n"),
        (&["--entrypoint", "a 'b"], "invalid entrypoint: \"a 'b\""),
        (&["--vm-size", "big"], "invalid machine preset requested, 'big'"),
        (&["--vm-memory", "0"], "--vm-memory cannot be zero\n"),
        (&["--vm-cpus", "0"], "--vm-cpus must be greater than zero, got: 0\n"),
        (&["--vm-cpu-kind", "fast"], "--vm-cpu-kind must be set to 'shared' or 'performance'\n"),
        (&["--machine-config", "x"], "invalid machine config source: \"x\"\n"),
        (&["--machine-config", "{x"], "invalid machine config \"{x\""),
        (&["--machine-config", "none.json"], "could not read "),
        (&["--file-local", "/a=none"], "failed to read file-local: could not read file "),
        (&["--file-local", "a=b"], "failed to read file-local: guest path, a, must be absolute\n"),
        (
            &["--file-literal", "/a"],
            "failed to read file-literal: invalid file-literal argument /a\n",
        ),
        (&["--volume", "data"], "Can't infer volume and mount path from 'data'\n"),
        (&["--volume", "data:/data"], "No unattached volumes in region 'lcl'\n"),
        (&["--shell"], "`fly machine run --shell` is not here: "),
    ] {
        let run = fixture.fly(&[&["machine", "run", "oci:img", "-a", "web"], flags].concat());
        check_error(&run, error);
    }
    let calls = fixture.server().take_calls();
    assert!(calls.iter().all(|call| call.starts_with("GET")), "{calls:?}");
}

#[test]
fn run_makes_a_machine_that_deploys_do_not_touch() {
    let fixture = with_app();
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "web", "-n", "one"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let image = image_of(&run);
    assert_eq!(
        run.out,
        format!(
            "Image: {image}\nImage size: 0 kB\n\n\
             Success! A Machine has been successfully launched in app web\n \
             Machine ID: m0\n Instance ID: v1\n State: started\n\n \
             Attempting to start machine...\n\n\
             ==> Monitoring health checks\nNo health checks found\n\n\
             Machine started, you can connect via the following private ip\n  fdaa::3\n"
        )
    );
    let guest = json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 256});
    assert_eq!(config(&fixture, 0), json!({"dns": {}, "guest": guest, "image": image}));
    assert_eq!(fixture.server().machines("web")[0]["name"], "one");
    let status = fixture.fly(&["status", "-a", "web"]);
    assert!(status.out.contains("Found machines that aren't part of Fly Launch"));
}

#[test]
fn create_does_not_start_it_and_detach_does_not_look_at_checks() {
    let fixture = with_app();
    let run = fixture.fly(&["machine", "create", "oci:img", "-a", "web"]);
    assert!(run.out.ends_with(" Instance ID: v1\n State: created\n"), "{}", run.out);
    assert!(run.out.contains("has been successfully created in app web\n"), "{}", run.out);
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "web", "--detach"]);
    assert!(
        run.out.ends_with(
            " Attempting to start machine...\n\nMachine started, you can connect via the following \
             private ip\n  fdaa::3\n"
        ),
        "{}",
        run.out
    );
}

#[test]
fn each_flag_of_run_has_its_place_in_the_config() {
    let fixture = with_app();
    let file = r#"{"env": {"A": "0", "Z": "z"}, "stop_config": {"signal": "SIGTERM"}}"#;
    std::fs::write(fixture.path("m.json"), file).expect("it can be written");
    let run = fixture.fly(&[
        "m",
        "run",
        "oci:img",
        "-a",
        "web",
        "-e",
        "A=1",
        "-e",
        "B=x=y",
        "-m",
        "role=db",
        "--entrypoint",
        "sh -c",
        "--restart",
        "always",
        "--skip-dns-registration",
        "-p",
        "443:80/tcp:http:tls,80/tcp:http",
        "--autostop=suspend",
        "--autostart",
        "--vm-size",
        "shared-cpu-2x",
        "--vm-memory",
        "1gb",
        "--machine-config",
        "m.json",
        "--",
        "echo",
        "-n",
        "hi",
    ]);
    assert_eq!(run.code, 0, "{}", run.err);
    let port = |port: u16, handlers: Value| json!({"port": port, "handlers": handlers});
    let ports = [port(443, json!(["http", "tls"])), port(80, json!(["http"]))];
    assert_eq!(
        config(&fixture, 0),
        json!({
            "dns": {"skip_registration": true},
            "env": {"A": "1", "Z": "z", "B": "x=y"},
            "stop_config": {"signal": "SIGTERM"},
            "guest": {"cpu_kind": "shared", "cpus": 2, "memory_mb": 1024},
            "init": {"cmd": ["echo", "-n", "hi"], "entrypoint": ["sh", "-c"]},
            "metadata": {"role": "db"},
            "services": [{"protocol": "tcp", "internal_port": 80, "ports": ports,
                "autostop": "suspend", "autostart": true}],
            "restart": {"policy": "always"},
            "image": image_of(&run),
        })
    );
    fixture.fly(&["m", "run", "oci:img", "-a", "web", "--rm"]);
    let config = config(&fixture, 1);
    assert_eq!(
        (&config["auto_destroy"], &config["restart"]["policy"]),
        (&json!(true), &json!("no"))
    );
}

/// MA-22.
#[test]
fn a_schedule_brings_a_restart_policy_unless_one_is_given() {
    let fixture = with_app();
    let check = |at: usize, flags: &[&str], schedule: &str, policy: Value| {
        let run = fixture.fly(&[&["m", "run", "oci:img", "-a", "web"], flags].concat());
        assert_eq!(run.code, 0, "{}", run.err);
        let config = config(&fixture, at);
        assert_eq!((&config["schedule"], &config["restart"]), (&json!(schedule), &policy));
    };
    let policy = |word: &str| json!({"policy": word});
    check(0, &["--schedule", "daily"], "daily", policy("on-failure"));
    check(1, &["--schedule", "hourly", "--restart", "no"], "hourly", policy("no"));
    check(2, &["--schedule=weekly", "--rm"], "weekly", policy("no"));
    check(3, &["--machine-config", r#"{"schedule":"monthly"}"#], "monthly", policy("on-failure"));
    // An update changes nothing else.
    let run = fixture.fly(&["m", "update", "m1", "-a", "web", "-y", "--schedule", "daily"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let now = config(&fixture, 1);
    assert_eq!((&now["schedule"], &now["restart"]), (&json!("daily"), &policy("no")));
}

#[test]
fn files_are_put_replaced_and_taken_away() {
    let fixture = with_app();
    std::fs::write(fixture.path("motd"), "hello").expect("it can be written");
    let run = [
        "m",
        "run",
        "oci:img",
        "-a",
        "web",
        "--file-local",
        "/etc/motd=motd",
        "--file-literal",
        "/a=x=y",
        "--file-secret",
        "/s=KEY",
    ];
    assert_eq!(fixture.fly(&run).code, 0);
    let file = |path: &str, key: &str, value: &str| json!({"guest_path": path, key: value});
    let (motd, secret) =
        (file("/etc/motd", "raw_value", "aGVsbG8="), file("/s", "secret_name", "KEY"));
    let files = |it: &Fixture| config(it, 0)["files"].clone();
    assert_eq!(files(&fixture), json!([motd, file("/a", "raw_value", "eD15"), secret]));
    let update =
        ["m", "update", "m0", "-a", "web", "-y", "--file-literal", "/a=", "--file-literal", "/s=z"];
    assert_eq!(fixture.fly(&update).code, 0);
    assert_eq!(files(&fixture), json!([motd, file("/s", "raw_value", "eg==")]));
}

#[test]
fn a_program_that_fails_at_once_fails_the_run() {
    let fixture = with_app();
    fixture.server().crash_from_now_on("panic");
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "web"]);
    check_error(&run, "machine m0 did not start: its program ended with exit code 3\n");
    assert!(run.err.contains("fly logs -a web -m m0"), "{}", run.err);
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "web", "--rm"]);
    check_error(&run, "machine failed to reach desired start state, and restart policy was set to");
    fixture.server().refuse_machines("no more room");
    let run = fixture.fly(&["machine", "run", "oci:img", "-a", "web"]);
    check_error(&run, "could not launch machine: no more room");
}

#[test]
fn update_replaces_the_config_under_a_lease_and_keeps_the_id() {
    let fixture = Fixture::deployed();
    fixture.server().take_calls();
    let run = fixture.fly(&["machine", "update", "m0", "-y", "-e", "LOG=debug", "-C", "serve -v"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(
        run.out,
        "Updating machine m0\nNo health checks found\nMachine m0 updated successfully!\n\n\
         Monitor machine status here:\nfly machine status m0 -a web\n"
    );
    let calls = fixture.server().take_calls();
    let changes: Vec<_> = calls.iter().filter(|call| !call.starts_with("GET")).collect();
    assert_eq!(
        changes,
        [
            "POST /v1/apps/web/machines/m0/lease",
            "POST /v1/apps/web/machines/m0",
            "DELETE /v1/apps/web/machines/m0/lease",
        ]
    );
    let config = config(&fixture, 0);
    assert_eq!(
        (&config["env"]["LOG"], &config["init"]["cmd"]),
        (&json!("debug"), &json!(["serve", "-v"]))
    );
    assert_eq!(config["metadata"]["fly_process_group"], "app", "the rest stays");
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn update_shows_what_changes_and_needs_a_yes() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["machine", "update", "m0"]);
    check_error(&run, "no config changes found\n");
    let run = fixture.fly(&["machine", "update", "m0", "--vm-memory", "512"]);
    check_error(&run, "yes flag must be specified when not running interactively\n");
    assert!(
        run.out.starts_with("Configuration changes to be applied to machine: m0 (m0)\n\n"),
        "{}",
        run.out
    );
    assert!(
        run.out.contains("\n- \t    \"memory_mb\": 1024\n+ \t    \"memory_mb\": 512\n"),
        "{}",
        run.out
    );
    assert!(run.out.contains(" identical lines\n"), "{}", run.out);
    assert_eq!(config(&fixture, 0)["guest"]["memory_mb"], 1024);
    assert_eq!(fixture.server().leases(), 0);
    for (memory, reason) in
        [("300", "invalid memory size\n"), ("4096", "memory size for config is too high\n")]
    {
        let run = fixture.fly(&["machine", "update", "m0", "-y", "--vm-memory", memory]);
        check_error(&run, reason);
    }
}

#[test]
fn update_may_leave_a_machine_asleep_and_a_missing_one_is_named() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m0", "stopped");
    let run = fixture.fly(&["machine", "update", "m0", "-y", "--skip-start", "-m", "a=b"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(!run.out.contains("health checks"), "{}", run.out);
    assert_eq!(fixture.server().machines("web")[0]["state"], "stopped");
    let run = fixture.fly(&["machine", "update", "m0", "-y", "-i", "oci:img"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(config(&fixture, 0)["image"], image_of(&run));
    assert_eq!(fixture.server().machines("web")[0]["state"], "started");
    check_error(
        &fixture.fly(&["machine", "update", "m9", "-y"]),
        "machine m9 was not found in app",
    );
    let run = fixture.fly(&["machine", "update", "-y"]);
    check_error(&run, "a machine ID must be specified when not running interactively\n");
}

#[test]
fn clone_makes_another_machine_with_the_same_config_but_for_its_flags() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["machine", "clone", "m0"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let image = config(&fixture, 0)["image"].as_str().expect("an image").to_owned();
    assert_eq!(
        run.out,
        format!(
            "Cloning Machine m0 into region lcl\nProvisioning a new Machine with image {image}...\n  \
             Machine m2 has been created...\n  Waiting for Machine m2 to start...\n\
             No health checks found\nMachine has been successfully cloned!\n"
        )
    );
    assert_eq!(config(&fixture, 2), config(&fixture, 0));
    let run = fixture.fly(&[
        "machine",
        "clone",
        "m0",
        "--name",
        "two",
        "--override-cmd",
        "sh -c 'a b'",
        "--vm-cpus",
        "2",
        "--detach",
    ]);
    assert!(run.out.ends_with("  Machine m3 has been created...\n"), "{}", run.out);
    let made = config(&fixture, 3);
    assert_eq!(made["init"]["cmd"], json!(["sh", "-c", "a b"]));
    assert_eq!(made["guest"]["cpus"], 2);
    assert_eq!(fixture.server().machines("web")[3]["name"], "two");
    let run = fixture.fly(&["machine", "clone", "m3", "--clear-cmd"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(config(&fixture, 4)["init"]["cmd"], Value::Null);
}

#[test]
fn clone_says_what_goes_with_its_program() {
    let fixture = Fixture::deployed();
    fixture.server().edit_machine("m0", |machine| machine["config"]["auto_destroy"] = true.into());
    let run = fixture.fly(&["machine", "clone", "m0"]);
    assert!(run.out.contains("Auto destroy enabled and will destroy Machine on exit. Use "));
    let run = fixture.fly(&["machine", "clone", "m0", "--clear-auto-destroy"]);
    assert!(!run.out.contains("Auto destroy"), "{}", run.out);
    assert_eq!(config(&fixture, 3)["auto_destroy"], Value::Null);
    check_error(&fixture.fly(&["machine", "clone", "m9"]), "machine m9 was not found in app 'web'");
}

#[test]
fn a_standby_is_made_and_updated_without_a_start_and_named_to_its_program() {
    let fixture = Fixture::deployed();
    let run = ["m", "run", "oci:img", "-a", "web", "-e", "A=1", "--standby-for", "m0,m1"];
    let run = fixture.fly(&run);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("has been successfully launched in app web\n Machine ID: m2\n"));
    assert!(run.out.ends_with("\n State: created\n"), "{}", run.out);
    let made = config(&fixture, 2);
    assert_eq!(made["standbys"], json!(["m0", "m1"]));
    assert_eq!(made["env"], json!({"A": "1", "FLY_STANDBY_FOR": "m0,m1"}));
    let run = fixture.fly(&["m", "clone", "m0", "--standby-for", "source,m1"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(
        run.out
            .ends_with("  Machine m3 has been created...\nMachine has been successfully cloned!\n"),
        "{}",
        run.out
    );
    assert_eq!(config(&fixture, 3)["standbys"], json!(["m0", "m1"]));
    let run = fixture.fly(&["m", "update", "m2", "-a", "web", "-y", "-e", "A=2"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let state = |at: usize| fixture.server().machines("web")[at]["state"].clone();
    assert_eq!((state(2), state(3)), (json!("created"), json!("created")));
    let run = fixture.fly(&["m", "update", "m2", "-a", "web", "-y", "--standby-for="]);
    assert_eq!(run.code, 0, "{}", run.err);
    let now = config(&fixture, 2);
    assert_eq!((&now["standbys"], &now["env"]), (&Value::Null, &json!({"A": "2"})));
}

#[test]
fn run_mounts_volumes_by_their_ids_and_free_ones_by_their_names() {
    let fixture = with_app();
    fixture.server().add_volume("web", "vol_1", "data");
    fixture.server().add_volume("web", "vol_2", "data");
    fixture.server().attach_volume("vol_1", "m7");
    let run = |volume: &str| {
        fixture.fly(&["m", "run", "oci:img", "-a", "web", "--detach", "--volume", volume])
    };
    check_error(&run("logs:/logs"), "not enough unattached volumes for 'logs'\n");
    check_error(&run("data:/a,data:/b"), "not enough unattached volumes for 'data'\n");
    assert_eq!(run("data:/data").code, 0);
    assert_eq!(config(&fixture, 0)["mounts"], json!([{"volume": "vol_2", "path": "/data"}]));
    assert_eq!(run("vol_9:/data:rw").code, 0);
    assert_eq!(config(&fixture, 1)["mounts"], json!([{"volume": "vol_9", "path": "/data"}]));
    let given = r#"{"mounts":[{"name":"old","path":"/data"}]}"#;
    let both = ["m", "run", "oci:img", "-a", "web", "--machine-config", given, "-v", "data:/data"];
    assert_eq!(fixture.fly(&both).code, 0);
    let mounts = json!([{"name": "old", "path": "/data", "volume": "vol_2"}]);
    assert_eq!(config(&fixture, 2)["mounts"], mounts);
}

#[test]
fn a_clone_of_a_machine_with_a_volume_gets_one_of_its_own() {
    let fixture = Fixture::deployed();
    fixture.server().add_volume("web", "vol_1", "data");
    fixture.server().attach_volume("vol_1", "m0");
    let mounts = json!([{"volume": "vol_1", "name": "data", "path": "/data"}]);
    fixture.server().edit_machine("m0", |machine| machine["config"]["mounts"] = mounts);
    let mut at = 1;
    let mut check = |flags: &[&str], snapshot: Value, line: &str, mounted: &str| {
        at += 1;
        let run = fixture.fly(&[&["m", "clone", "m0"], flags].concat());
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(run.out.contains(line), "{}", run.out);
        let id = config(&fixture, at)["mounts"][0]["volume"].clone();
        assert_eq!(
            (&id, &config(&fixture, at)["mounts"][0]["path"]),
            (&json!(mounted), &json!("/data"))
        );
        let made = fixture.server().volume(mounted);
        assert_eq!((&made["name"], &made["snapshot_id"]), (&json!("data"), &snapshot));
    };
    check(&[], Value::Null, "\nVolume 'data' will start empty\n", "vol_2");
    let from = "\nCreating new volume from snapshot vs_new of vol_1\n";
    check(&["--from-snapshot", "last"], json!("vs_new"), from, "vol_3");
    let from = "\nCreating new volume from snapshot: vs_old\n";
    check(&["--from-snapshot", "vs_old"], json!("vs_old"), from, "vol_4");
    fixture.server().add_volume("web", "vol_5", "data");
    let attach = ["--attach-volume", "vol_5"];
    check(&attach, Value::Null, "\nAttaching existing volume vol_5\n", "vol_5");
    assert_eq!(fixture.server().volumes().len(), 5);
    let refused = |id: &str, flags: &[&str], error: &str| {
        check_error(&fixture.fly(&[&["m", "clone", id], flags].concat()), error);
    };
    refused("m0", &["--attach-volume", "vol_1"], "volume vol_1 is already attached to a machine\n");
    refused("m0", &["--attach-volume", "vol_8"], "could not get existing volume: ");
    refused(
        "m1",
        &attach,
        "Please specify a mount path on 'vol_5' using <volume_id>:/path/inside/machine\n",
    );
    refused(
        "m0",
        &["--attach-volume", "vol_5", "-r", "xyz"],
        "specified region xyz but volume is in region lcl",
    );
    refused(
        "m1",
        &["--from-snapshot", "last"],
        "machine m1 has no volume to restore a snapshot of\n",
    );
    let run = fixture.fly(&["m", "clone", "m1", "--attach-volume", "vol_5:/else"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(config(&fixture, 6)["mounts"], json!([{"volume": "vol_5", "path": "/else"}]));
}
