//! Standbys of groups without services: made by `deploy` (DE-50), kept, followed and given up.

use crate::fixture::{Fixture, oci_layout};
use serde_json::{Value, json};

/// An app whose file has these sections beside its name and image.
fn deployed(sections: &str, flags: &[&str]) -> (Fixture, String) {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    write_file(&fixture, sections);
    let run = fixture.fly(&[&["deploy"], flags].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    (fixture, run.out)
}

fn write_file(fixture: &Fixture, sections: &str) {
    let text = format!("app = 'web'\n[build]\n  image = 'oci:img'\n{sections}");
    std::fs::write(fixture.path("fly.toml"), text).expect("it can be written");
}

/// Of whom it is a standby, as the server and as its program is told, and whether it runs.
fn standing(machine: &Value) -> (Value, Value, bool) {
    let config = &machine["config"];
    let is_up = machine["state"] == "started";
    (config["standbys"].clone(), config["env"]["FLY_STANDBY_FOR"].clone(), is_up)
}

fn standings(fixture: &Fixture) -> Vec<(Value, Value, bool)> {
    fixture.server().machines("web").iter().map(standing).collect()
}

fn alone() -> (Value, Value, bool) {
    (Value::Null, Value::Null, true)
}

fn standby_for(id: &str) -> (Value, Value, bool) {
    (json!([id]), json!(id), false)
}

#[test]
fn a_group_without_services_gets_a_standby_that_is_not_started() {
    let (fixture, out) = deployed("", &[]);
    for said in [
        "This deployment will:\n * create 1 \"app\" machine and 1 standby machine for it\n\n",
        "No machines in group app, launching a new machine\n",
        "\nCreating a standby machine for m0\n",
        "Machine m1 [app] was created\n",
    ] {
        assert!(out.contains(said), "{said}\n{out}");
    }
    assert_eq!(standings(&fixture), [alone(), standby_for("m0")]);
    assert_eq!(fixture.server().leases(), 0);
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(!run.out.contains("create"), "a group with Machines gets no more: {}", run.out);
    assert_eq!(standings(&fixture), [alone(), standby_for("m0")]);
}

#[test]
fn without_high_availability_there_is_none() {
    let (fixture, out) = deployed("", &["--ha=false"]);
    assert!(out.contains(" * create 1 \"app\" machine\n"), "{out}");
    assert!(!out.contains("standby"), "{out}");
    assert_eq!(standings(&fixture), [alone()]);
}

#[test]
fn a_standby_of_a_machine_that_is_replaced_stands_by_for_the_new_one() {
    let (fixture, _) = deployed("", &[]);
    for id in ["vol_0", "vol_1"] {
        fixture.server().add_volume("web", id, "data");
    }
    write_file(&fixture, "[mounts]\n  source = 'data'\n  destination = '/data'\n");
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 0, "{}\n{}", run.out, run.err);
    let ids: Vec<Value> =
        fixture.server().machines("web").iter().map(|it| it["id"].clone()).collect();
    assert_eq!(ids, ["m2", "m3"], "both are replaced");
    assert_eq!(standings(&fixture), [alone(), standby_for("m2")]);
}

#[test]
fn fewer_machines_are_first_without_their_standby_and_more_are_none() {
    let (fixture, _) = deployed("", &[]);
    let run = fixture.fly(&["scale", "count", "3", "-y"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(standings(&fixture), [alone(), standby_for("m0"), alone()]);
    let run = fixture.fly(&["scale", "count", "1", "-y"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.find("Destroyed m1") < run.out.find("Destroyed m0"), "{}", run.out);
    assert_eq!(standings(&fixture), [alone()]);
    // One that has taken over does the work of the group, and goes like any other.
    let (fixture, _) = deployed("", &[]);
    fixture.server().set_state("m0", "stopped");
    fixture.server().set_state("m1", "started");
    let run = fixture.fly(&["scale", "count", "1", "-y"]);
    assert!(run.out.contains("Destroyed m0"), "{}", run.out);
}
