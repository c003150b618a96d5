//! The commands against a server of the test's own, which keeps state in memory and speaks the API's
//! HTTP over a Unix socket. What real Machines do is the host tests' matter.

mod apps;
mod commands;
mod config;
mod deploy;
mod ending;
mod fixture;
mod flytoml;
mod interrupt;
mod ips;
mod launch;
mod logs;
mod looking;
mod machine;
mod making;
mod mutate;
mod prompts;
mod proxy;
mod saving;
mod scale;
mod secrets;
mod server;
mod show;
mod standbys;
mod status;
mod terminal;

use fixture::{Fixture, oci_layout};
use serde_json::json;

#[test]
fn without_a_server_the_message_says_what_to_start() {
    let fixture = Fixture::without_server();
    let run = fixture.fly(&["apps", "list"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("Error: no Perch server is running at "), "{}", run.err);
    assert!(run.err.contains("perch server"), "{}", run.err);
}

#[test]
fn wrong_usage_exits_with_one_and_a_group_prints_help() {
    let fixture = Fixture::without_server();
    assert_eq!(fixture.fly(&["ips", "frobnicate"]).code, 1);
    let help = fixture.fly(&["ips"]);
    assert_eq!(help.code, 0);
    assert!(help.out.contains("allocate-v6"), "{}", help.out);
}

#[test]
fn an_image_that_is_not_there_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let run = fixture.fly(&["launch", "--name", "web", "--image", "oci:missing", "-y"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("failed to fetch an image or build from source"), "{}", run.err);
    assert!(run.err.contains("missing/index.json"), "{}", run.err);
    assert!(fixture.server().apps().is_empty());
    assert!(!fixture.path("fly.toml").exists());
}

#[test]
fn an_image_that_the_server_refuses_leaves_nothing_behind() {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    fixture.server().refuse_images("the image has no entrypoint and no command");
    let run = fixture.fly(&["launch", "--name", "web", "--image", "oci:img", "-y"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("the image has no entrypoint and no command"), "{}", run.err);
    assert!(fixture.server().apps().is_empty());
    assert!(!fixture.path("fly.toml").exists());
}

#[test]
fn a_machine_that_the_server_refuses_leaves_nothing_behind() {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    fixture.server().refuse_machines("layer 1 has a file named ../x; rebuild the image");
    let run = fixture.fly(&["launch", "--name", "web", "--image", "oci:img", "-y"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("layer 1 has a file named ../x"), "{}", run.err);
    assert!(fixture.server().apps().is_empty());
    assert!(!fixture.path("fly.toml").exists());
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_read() {
    let fixture = Fixture::new();
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    let run = fixture.fly(&["launch", "--name", "web", "--image", "oci:missing", "-y"]);
    assert!(run.err.contains("App 'web' already exists"), "{}", run.err);
}

#[test]
fn the_wish_for_flycast_survives_no_deploy_and_a_later_deploy() {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let launch =
        ["launch", "--name", "web", "--image", "oci:img", "--flycast", "--no-deploy", "-y"];
    let run = fixture.fly(&launch);
    assert_eq!(run.code, 0, "{}", run.err);
    let file = std::fs::read_to_string(fixture.path("fly.toml")).expect("launch writes it");
    assert!(file.starts_with("# fly.toml app configuration file generated for web on "), "{file}");
    assert!(file.contains("\n[build]\n  image = 'oci:img'\n"), "{file}");
    assert!(file.contains("\n[http_service]\n  internal_port = 8080\n  force_https = false\n"));
    assert_eq!(fixture.server().addresses("web"), Vec::<String>::new());

    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 0, "{}\n{}", run.out, run.err);
    assert_eq!(fixture.server().addresses("web"), ["private_v6"]);
    assert!(run.out.contains("under http://web.flycast\n"), "{}", run.out);
    assert!(run.out.contains("curl http://[fdaa::1]/\n"), "{}", run.out);
    assert!(run.out.contains("fly proxy 8080:80 -a web\n"), "{}", run.out);
    assert!(run.out.contains(" * create 2 \"app\" machines\n"), "{}", run.out);
    assert!(
        run.out.contains("NOTE: The machines for [app] have services with 'auto_stop_machines")
    );
    assert_eq!(fixture.server().machines("web").len(), 2);
    assert_eq!(fixture.server().release_statuses("web"), ["complete"]);
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn a_first_deploy_gives_public_addresses_and_later_ones_never_do() {
    let fixture = Fixture::deployed();
    assert_eq!(fixture.server().addresses("web"), ["v6", "shared_v4"]);
    let release = fixture.fly(&["ips", "release", "2001:db8::2", "192.0.2.10"]);
    assert_eq!(release.out, "Released 2001:db8::2 from web\nReleased 192.0.2.10 from web\n");
    assert_eq!(fixture.fly(&["deploy"]).code, 0);
    assert_eq!(fixture.server().addresses("web"), Vec::<String>::new());
}

#[test]
fn ips_list_prints_the_blueprints_table() {
    let fixture = Fixture::deployed();
    fixture.server().age_addresses("2023-09-01T19:47:00Z");
    let run = fixture.fly(&["ips", "list"]);
    assert_eq!(
        run.out,
        "VERSION\tIP         \tTYPE              \tREGION\tCREATED AT\n\
         v6     \t2001:db8::2\tpublic (dedicated)\tglobal\tSep 1 2023 19:47\n\
         v4     \t192.0.2.10 \tpublic (shared)   \t      \tJan 1 0001 00:00\n"
    );
}

#[test]
fn release_checks_all_addresses_before_it_removes_one() {
    let fixture = Fixture::deployed();
    for wrong in ["fdaa::99", "nonsense"] {
        let run = fixture.fly(&["ips", "release", "2001:db8::2", wrong]);
        assert_eq!(run.code, 1);
        assert!(run.err.contains(wrong), "{}", run.err);
    }
    // The same address, written in another way.
    let run = fixture.fly(&["ips", "release", "2001:db8::2", "2001:db8:0::2"]);
    assert_eq!(run.code, 1, "{}", run.out);
    let twice = "2001:db8::2 is named twice; nothing was released";
    assert!(run.err.contains(twice), "{}", run.err);
    assert_eq!(fixture.server().addresses("web"), ["v6", "shared_v4"]);
}

#[test]
fn a_machine_that_sleeps_gets_the_new_config_and_stays_asleep() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m1", "stopped");
    let run = fixture.fly(&["deploy", "-e", "COLOR=green"]);
    assert_eq!(run.code, 0, "{}\n{}", run.out, run.err);
    let machines = fixture.server().machines("web");
    assert_eq!(machines[0]["state"], "started");
    assert_eq!(machines[1]["state"], "stopped");
    for machine in &machines {
        assert_eq!(machine["config"]["env"]["COLOR"], "green");
        assert_eq!(machine["config"]["metadata"]["fly_release_version"], "2");
        assert_eq!(machine["config"]["services"][0]["autostart"], true);
    }
    assert!(run.out.contains("✔ [1/2] Machine m0 [app] update succeeded\n"), "{}", run.out);
}

#[test]
fn a_second_deploy_is_told_who_holds_the_lease_and_changes_nothing() {
    let fixture = Fixture::deployed();
    fixture.server().lease_by("m1", "alice", "fly deploy of web");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("lease currently held by alice"), "{}", run.err);
    assert!(run.err.contains("alice with `fly deploy of web`"), "{}", run.err);
    assert_eq!(fixture.server().release_statuses("web"), ["complete", "failed"]);
    assert_eq!(fixture.server().leases(), 1);
}

#[test]
fn a_deploy_of_an_app_that_somebody_else_deploys_makes_nothing_and_says_who_since_when() {
    let fixture = Fixture::deployed();
    let before = fixture.server().machines("web");
    fixture.server().refuse_releases("lease on app web currently held by uid 7 (pid 8)");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("currently held by uid 7 (pid 8)"), "{}", run.err);
    assert!(run.err.contains("(since 00:00:00 UTC) is changing this app"), "{}", run.err);
    assert_eq!(fixture.server().machines("web"), before);
    assert_eq!((fixture.server().release_statuses("web").len(), fixture.server().leases()), (1, 0));
}

#[test]
fn a_deploy_whose_place_another_one_took_makes_nothing_more() {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let launch = ["launch", "--name", "web", "--image", "oci:img", "--no-deploy", "-y"];
    assert_eq!(fixture.fly(&launch).code, 0);
    fixture.server().take_over_after_a_machine("release 2 has taken its place");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("this deploy may not go on"), "{}", run.err);
    assert!(run.err.contains("release 2 has taken its place"), "{}", run.err);
    assert!(!run.err.contains("could not record"), "it is said once: {}", run.err);
    assert_eq!(fixture.server().machines("web").len(), 1, "the second is not made");
}

#[test]
fn a_program_that_ends_at_once_fails_the_deploy_with_its_last_lines() {
    let fixture = Fixture::deployed();
    fixture.server().crash_from_now_on("panic: no database");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("its program ended with exit code 3"), "{}", run.err);
    assert!(run.err.contains("  panic: no database\n"), "{}", run.err);
    assert_eq!(fixture.server().release_statuses("web"), ["complete", "failed"]);
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn an_app_on_loopback_is_warned_about_and_deployed() {
    let fixture = Fixture::deployed();
    fixture.server().listen_on("127.0.0.1:8080");
    let run = fixture.fly(&["deploy", "--smoke-checks=false"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.err.contains("WARNING The app is not listening on the expected address"));
    assert!(run.err.contains("  - 0.0.0.0:8080\n"), "{}", run.err);
    assert!(run.err.contains(" PROCESS │ ADDRESSES      \n"), "{}", run.err);
    assert!(run.err.contains(" hello   │ 127.0.0.1:8080 \n"), "{}", run.err);
}

#[test]
fn what_the_file_asks_for_and_is_not_there_yet_is_refused_by_name() {
    let fixture = Fixture::deployed();
    let file = fixture.path("fly.toml");
    let mut text = std::fs::read_to_string(&file).expect("it is there");
    text.insert_str(0, "machine_config = '{}'\n");
    std::fs::write(&file, text).expect("it can be written");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("Error: machine_config is not supported yet"), "{}", run.err);
}

#[test]
fn broken_toml_names_its_place_and_changes_nothing() {
    let fixture = Fixture::deployed();
    std::fs::write(fixture.path("fly.toml"), "app = \n").expect("it can be written");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("fly.toml:1:7: "), "{}", run.err);
    let port = "app = 'web'\n[http_service]\n  internal_port = 70000\n";
    std::fs::write(fixture.path("fly.toml"), port).expect("it can be written");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("fly.toml:3:19: http_service.internal_port: port 70000 is out of"));
    assert!(run.err.contains("Error: App configuration is not valid"), "{}", run.err);
}

#[test]
fn tables_and_json_have_flyctls_form() {
    let fixture = Fixture::deployed();
    let list = fixture.fly(&["apps", "list"]);
    assert_eq!(
        list.out,
        " NAME │ OWNER    │ STATUS   │ LATEST DEPLOY \n web  │ personal │ deployed │ just now      \n\n"
    );
    let quiet = fixture.fly(&["machine", "list", "-q"]);
    assert_eq!(quiet.out, " m0 \n m1 \n\n");
    let machines = fixture.fly(&["m", "ls", "--json"]);
    let machines: serde_json::Value = serde_json::from_str(&machines.out).expect("it is JSON");
    assert_eq!(machines[0]["id"], "m0");
    let status = fixture.fly(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.out).expect("it is JSON");
    assert_eq!(status["Name"], json!("web"));
    let plain = fixture.fly(&["status"]);
    assert!(plain.out.contains(" PROCESS │ ID │ VERSION │ REGION │ STATE   │"), "{}", plain.out);
}

#[test]
fn machines_start_and_stop_by_id_alone() {
    let fixture = Fixture::deployed();
    std::fs::remove_file(fixture.path("fly.toml")).expect("it is there");
    let stop = fixture.fly(&["machine", "stop", "m0", "-w", "5s"]);
    assert_eq!(
        stop.out, "Sending kill signal to machine m0...\nm0 has been successfully stopped\n",
        "{}",
        stop.err
    );
    assert_eq!(fixture.server().machines("web")[0]["state"], "stopped");
    assert_eq!(fixture.fly(&["machine", "start", "m0"]).out, "m0 has been started\n");
    assert_eq!(fixture.server().leases(), 0);
    let missing = fixture.fly(&["machine", "status", "m9", "-a", "web"]);
    assert!(missing.err.contains("machine m9 was not found in app 'web'"), "{}", missing.err);
}

#[test]
fn destroying_an_app_needs_a_yes() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["apps", "destroy", "web"]);
    assert!(run.err.contains("yes flag must be specified when not running interactively"));
    assert_eq!(fixture.fly(&["apps", "destroy", "web", "-y"]).out, "Destroyed app web\n");
    assert!(fixture.server().apps().is_empty());
}
