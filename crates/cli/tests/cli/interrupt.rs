//! Ctrl-C at every moment: nothing new is begun, and what is held is given back.

use crate::fixture::{Fixture, oci_layout};

/// What is there after a first deploy that was interrupted when this call came.
struct Left {
    releases: Vec<String>,
    machines: usize,
}

fn interrupted_at(method: &'static str, part: &'static str) -> Left {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let launch = ["launch", "--name", "web", "--image", "oci:img", "--no-deploy", "-y"];
    assert_eq!(fixture.fly(&launch).code, 0);
    let signal = fixture.server().when_called(method, part);
    let run = fixture.fly_until(signal, &["deploy"]);
    assert_eq!(run.code, 127, "{method} {part}: {}\n{}", run.out, run.err);
    let server = fixture.server();
    assert_eq!(server.leases(), 0, "leases are kept after {method} {part}");
    Left { releases: server.release_statuses("web"), machines: server.machines("web").len() }
}

#[test]
fn before_the_rollout_it_begins_no_release() {
    for (method, part) in [("GET", "regions"), ("PUT", "manifests"), ("GET", "images")] {
        let left = interrupted_at(method, part);
        assert_eq!(left.releases, Vec::<String>::new(), "{method} {part}");
        assert_eq!(left.machines, 0, "{method} {part}");
    }
}

#[test]
fn while_the_release_is_made_it_is_closed_and_no_machine_is_made() {
    let left = interrupted_at("POST", "releases");
    assert_eq!((left.releases, left.machines), (vec!["interrupted".to_owned()], 0));
}

#[test]
fn during_the_rollout_the_call_under_way_is_the_last_and_leases_are_given_back() {
    for (method, part) in [("POST", "machines$"), ("GET", "/wait$"), ("GET", "/ps$")] {
        let left = interrupted_at(method, part);
        assert_eq!(left.releases, ["interrupted"], "{method} {part}");
        assert_eq!(left.machines, 1, "{method} {part}");
    }
}

#[test]
fn an_update_that_is_interrupted_gives_every_lease_back() {
    for (method, part, changed) in [
        ("POST", "machines/m0/lease", 0),
        ("POST", "machines/m1/lease", 0),
        ("POST", "machines/m0$", 1),
    ] {
        let fixture = Fixture::deployed();
        let signal = fixture.server().when_called(method, part);
        let run = fixture.fly_until(signal, &["deploy", "-e", "COLOR=green"]);
        assert_eq!(run.code, 127, "{part}: {}\n{}", run.out, run.err);
        assert_eq!(fixture.server().leases(), 0, "{part}");
        assert_eq!(fixture.server().release_statuses("web"), ["complete", "interrupted"]);
        let machines = fixture.server().machines("web");
        let green = machines.iter().filter(|it| it["config"]["env"]["COLOR"] == "green");
        assert_eq!(green.count(), changed, "{part}: {}", run.out);
    }
}

#[test]
fn a_launch_takes_back_the_app_whose_image_did_not_arrive() {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    let signal = fixture.server().when_called("POST", "uploads");
    let run = fixture.fly_until(signal, &["launch", "--name", "web", "--image", "oci:img", "-y"]);
    assert_eq!(run.code, 127, "{}\n{}", run.out, run.err);
    assert!(fixture.server().apps().is_empty());
    assert!(!fixture.path("fly.toml").exists());
}

#[test]
fn a_wait_for_a_stop_gives_the_lease_back_and_a_release_of_addresses_stops_where_it_is() {
    let fixture = Fixture::deployed();
    let signal = fixture.server().when_called("GET", "/wait$");
    let run = fixture.fly_until(signal, &["machine", "stop", "m0", "-w", "60s"]);
    assert_eq!((run.code, fixture.server().leases()), (127, 0), "{}", run.err);
    let signal = fixture.server().when_called("DELETE", "ip_assignments");
    let run = fixture.fly_until(signal, &["ips", "release", "2001:db8::2", "192.0.2.10"]);
    assert_eq!(run.code, 127, "{}", run.out);
    assert_eq!(fixture.server().addresses("web"), ["shared_v4"]);
}
