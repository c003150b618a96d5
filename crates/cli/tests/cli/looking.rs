//! Commands that only look, or do one simple thing: what they print, word for word, with and without
//! anything to show, as a table and as JSON.

use crate::fixture::{Fixture, Run};
use serde_json::{Value, json};

/// Compares with a file of `snapshots`; with `UPDATE_SNAPSHOTS=1` it is written instead.
#[track_caller]
fn check(name: &str, run: &Run) {
    let text = format!("exit {}\n--- stdout\n{}--- stderr\n{}", run.code, run.out, run.err);
    let text = text.replace('\x1b', "␛");
    let path = format!("{}/tests/cli/snapshots/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some_and(|value| value == "1") {
        std::fs::write(&path, &text).expect("the directory is there");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "{path} differs; the new one is:\n{text}");
}

/// Runs a command without and with `--json` where there is nothing to show, or something.
#[track_caller]
fn check_both(fixture: &Fixture, name: &str, args: &[&str]) {
    let socket = fixture.path("api.sock").display().to_string();
    for (name, args) in
        [(name, args.to_vec()), (&format!("{name}-json"), [args, &["--json"]].concat())]
    {
        let run = fixture.fly(&args);
        check(name, &Run { err: run.err.replace(&socket, "SOCKET"), ..run });
    }
}

/// The app `web`, its Machines with a service, its release of long ago.
fn deployed() -> Fixture {
    let fixture = Fixture::deployed();
    fixture.server().age_releases("2023-09-01T19:47:00Z");
    fixture
}

/// An app that was never deployed.
fn empty() -> Fixture {
    let fixture = Fixture::new();
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    fixture
}

#[test]
fn orgs_list_and_show() {
    let fixture = Fixture::new();
    fixture.server().add_organization("team");
    check_both(&fixture, "orgs-list", &["orgs", "list"]);
    check_both(&fixture, "orgs-show", &["orgs", "show", "team"]);
    check("orgs-show-unknown", &fixture.fly(&["orgs", "show", "nobody"]));
    check("orgs-show-no-tty", &fixture.fly(&["orgs", "show"]));
    fixture.server().set_organizations(json!([]));
    check_both(&fixture, "orgs-list-empty", &["orgs", "ls"]);
}

/// Nobody has accounts here: what one may do is what the token says.
#[test]
fn orgs_show_tells_what_the_caller_may_do() {
    let fixture = Fixture::new();
    for (caller, role) in [
        (json!({"user": "uid 0", "uid": 0}), "admin"),
        (json!({"user": "token a", "token": "a"}), "admin"),
        (json!({"user": "token a", "token": "a", "app": "web"}), "member"),
        (json!({"user": "token a", "token": "a", "app": "web", "read_only": true}), "read-only"),
    ] {
        fixture.server().set_caller(caller);
        let run = fixture.fly(&["orgs", "show", "personal"]);
        let line = format!("You have {role} permissions on this organizaton\n");
        assert!(run.out.contains(&line), "{}", run.out);
    }
}

#[test]
fn platform_regions_and_sizes() {
    let fixture = Fixture::new();
    check_both(&fixture, "platform-regions", &["platform", "regions"]);
    check_both(&fixture, "platform-vm-sizes", &["platform", "vm-sizes"]);
    assert_eq!(
        fixture.fly(&["regions"]).out,
        fixture.fly(&["platform", "regions"]).out,
        "they are one"
    );
    fixture.server().set_regions(json!({"Regions": [
        {"code": "iad", "name": "Ashburn", "geo_region": "north_america", "mpg_available": true},
        {"code": "arn", "name": "Stockholm", "geo_region": "europe"},
        {"code": "ams", "name": "Amsterdam", "geo_region": "europe"},
        {"code": "atl", "name": "Atlanta", "geo_region": "north_america", "deprecated": true},
        {"code": "lcl", "name": "This host"},
    ]}));
    check_both(&fixture, "platform-regions-grouped", &["platform", "regions"]);
    fixture.server().set_regions(json!({"Regions": []}));
    check_both(&fixture, "platform-regions-empty", &["regions"]);
}

#[test]
fn regions_of_an_app() {
    let fixture = deployed();
    check_both(&fixture, "regions-list", &["regions", "list"]);
    check_both(&empty(), "regions-list-empty", &["regions", "list", "-a", "web"]);
}

#[test]
fn releases() {
    let fixture = deployed();
    check_both(&fixture, "releases", &["releases"]);
    check("releases-image", &fixture.fly(&["apps", "releases", "--image"]));
    check_both(&empty(), "releases-empty", &["releases", "-a", "web"]);
    check("releases-no-app", &Fixture::new().fly(&["releases"]));
}

#[test]
fn services() {
    let fixture = deployed();
    check("services-list", &fixture.fly(&["services", "list"]));
    let web = json!({"protocol": "tcp", "internal_port": 80, "ports": [
        {"port": 443, "handlers": ["http", "tls"], "force_https": true}, {"port": 80}]});
    let range = json!({"protocol": "udp", "internal_port": 5000, "ports": [
        {"start_port": 6000, "end_port": 6010}]});
    let config = json!({"image": "x", "services": [web, range],
        "metadata": {"fly_process_group": "app"}});
    fixture.server().set_in_machines("config", &config);
    check("services-list-several", &fixture.fly(&["services", "ls"]));
    fixture.server().set_in_machines("config", &json!({"image": "x"}));
    check("services-list-without", &fixture.fly(&["services", "list"]));
    check("services-list-empty", &empty().fly(&["services", "list", "-a", "web"]));
}

#[test]
fn checks() {
    let fixture = deployed();
    check_both(&fixture, "checks-list-unknown", &["checks", "list"]);
    let results = json!([
        {"name": "two", "status": "critical", "output": "connect: refused\nby 127.0.0.1\n", "updated_at": "2023-09-01T19:47:00Z"},
        {"name": "one", "status": "passing", "output": "200 OK", "updated_at": "2023-09-01T19:47:00Z"},
    ]);
    fixture.server().set_in_machines("checks", &results);
    check_both(&fixture, "checks-list", &["checks", "ls"]);
    check("checks-list-one", &fixture.fly(&["checks", "list", "--check-name", "one"]));
    check_both(&empty(), "checks-list-empty", &["checks", "list", "-a", "web"]);
}

#[test]
fn private_addresses() {
    check_both(&deployed(), "ips-private", &["ips", "private"]);
    check_both(&empty(), "ips-private-empty", &["ip", "private", "-a", "web"]);
}

/// What is not one of the app's own serving Machines is in no list.
#[test]
fn machines_that_are_gone_or_run_one_command_are_not_listed() {
    let fixture = deployed();
    fixture.server().set_state("m0", "destroyed");
    let run = fixture.fly(&["ips", "private", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&run.out).expect("JSON"), json!(["fdaa::3"]));
    for metadata in [
        json!({"fly_process_group": "fly_app_release_command", "fly_platform_version": "v2"}),
        json!({"fly_process_group": "fly_app_console", "fly_platform_version": "v2"}),
        json!({"process_group": "release_command", "fly_platform_version": "v2"}),
        json!({"fly_process_group": "app"}),
    ] {
        fixture.server().set_in_machines("config", &json!({"image": "x", "metadata": metadata}));
        let run = fixture.fly(&["ips", "private", "--json"]);
        assert_eq!(run.out, "[]\n", "{metadata}: {}", run.err);
    }
}

#[test]
fn restarting_an_app() {
    let fixture = deployed();
    check("apps-restart", &fixture.fly(&["apps", "restart"]));
    assert_eq!(fixture.server().machines("web")[1]["force_stop"], "false");
    assert_eq!(fixture.server().leases(), 0, "they are given back");
    fixture.server().set_state("m0", "stopped");
    check("apps-restart-asleep", &fixture.fly(&["apps", "restart", "web", "--force-stop"]));
    assert_eq!(fixture.server().machines("web")[0]["force_stop"], "false", "it sleeps on");
    assert_eq!(fixture.server().machines("web")[1]["force_stop"], "true");
    fixture.server().lease_by("m1", "uid 9 (pid 1)", "fly deploy");
    check("apps-restart-leased", &fixture.fly(&["apps", "restart", "web"]));
    assert_eq!(fixture.server().leases(), 1, "ours are given back");
    check("apps-restart-no-app", &Fixture::new().fly(&["apps", "restart"]));
    check("apps-restart-unknown", &fixture.fly(&["apps", "restart", "other"]));
}

#[test]
fn ctrl_c_between_two_restarts_gives_the_leases_back() {
    let fixture = deployed();
    let pressed = fixture.server().when_called("GET", "m0/wait$");
    fixture.server().set_state("m1", "started");
    let run = fixture.fly_until(pressed, &["apps", "restart", "web"]);
    assert_eq!((run.code, run.err.as_str()), (127, ""));
    assert_eq!(run.out, "Restarting machine m0\n");
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn who_you_are() {
    let fixture = Fixture::new();
    check_both(&fixture, "auth-whoami", &["auth", "whoami"]);
    check_both(&fixture, "auth-token-socket", &["auth", "token"]);
    let remote = [("PERCH_API", "http://127.0.0.1:1"), ("PERCH_TOKEN", "perch_1")];
    check("auth-token", &fixture.fly_elsewhere(&remote, &["auth", "token"]));
    check("auth-token-quiet", &fixture.fly_elsewhere(&remote, &["auth", "token", "-q"]));
    check("auth-token-json", &fixture.fly_elsewhere(&remote, &["auth", "token", "--json"]));
    check("auth-token-none", &fixture.fly_elsewhere(&remote[..1], &["auth", "token"]));
}

#[test]
fn versions() {
    let fixture = Fixture::without_server();
    let run = fixture.fly(&["version"]);
    let start = format!("fly v{} linux/", env!("CARGO_PKG_VERSION"));
    assert!(run.code == 0 && run.out.starts_with(&start), "{}", run.out);
    let run = fixture.fly(&["version", "--json"]);
    let version: Value = serde_json::from_str(&run.out).expect("JSON");
    let keys: Vec<_> = version.as_object().expect("an object").keys().cloned().collect();
    let wanted = "Name Version Commit BranchName BuildDate OS Architecture Environment";
    assert_eq!(keys.join(" "), wanted);
    assert_eq!(version["Version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(run.out.lines().count(), 1);
}

/// An answer with these records.
fn answer(kind: &str, records: &[Value]) -> Value {
    let name = "web.internal.";
    json!({
        "server": "fdaa::3", "id": 4711, "opcode": "QUERY", "status": "NOERROR",
        "flags": ["qr", "aa", "rd", "ra"],
        "question": [{"name": name, "class": "IN", "type": kind}],
        "answer": records,
    })
}

fn record(kind: &str, data: &str) -> Value {
    json!({"name": "web.internal.", "ttl": 5, "class": "IN", "type": kind, "data": data})
}

#[test]
fn asking_dns() {
    let fixture = empty();
    let server = fixture.server();
    server.set_dns("AAAA", answer("AAAA", &[record("AAAA", "fdaa::1"), record("AAAA", "fdaa::2")]));
    check("dig", &fixture.fly(&["dig", "web.internal", "-a", "web"]));
    assert_eq!(server.asked(), "perch/v1/apps/web/dns?name=web.internal.&type=AAAA");
    check("dig-short", &fixture.fly(&["dig", "aaaa", "web.internal.", "-a", "web", "--short"]));
    let run = fixture.fly(&["dig", "x.flycast", "-o", "team", "-a", "web"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(server.asked(), "perch/v1/organizations/team/dns?name=x.flycast.&type=AAAA");

    let mut txt = record("TXT", "\"m1 lcl\" \"m2 lcl\"");
    txt["texts"] = json!(["m1 lcl", "m2 lcl"]);
    server.set_dns("TXT", answer("TXT", &[txt]));
    check("dig-txt", &fixture.fly(&["dig", "TXT", "vms.web.internal", "-a", "web"]));
    check("dig-txt-short", &fixture.fly(&["dig", "txt", "x", "-a", "web", "-s"]));
    check("dig-txt-native", &fixture.fly(&["dig", "txt-native", "x", "-a", "web"]));

    server.set_dns("A", answer("A", &[record("CNAME", "y."), record("A", "192.0.2.1")]));
    check("dig-native", &fixture.fly(&["dig", "aaaa-native", "x", "-a", "web"]));
    check("dig-unknown", &fixture.fly(&["dig", "CNAME", "nobody.flycast", "-a", "web"]));
    check("dig-unknown-short", &fixture.fly(&["dig", "CNAME", "x", "-a", "web", "-s"]));
    check("dig-type", &fixture.fly(&["dig", "MX", "x", "-a", "web"]));
    check("dig-no-app", &Fixture::new().fly(&["dig", "x.internal"]));
}

#[test]
fn a_name_that_is_not_there_is_an_error_where_a_program_would_get_one() {
    let fixture = empty();
    for kind in ["aaaa-native", "txt-native"] {
        let run = fixture.fly(&["dig", kind, "x.internal", "-a", "web"]);
        assert_eq!(run.code, 1);
        assert_eq!(run.err, "Error: lookup x.internal. on [fdaa::3]:53: no such host\n");
    }
}
