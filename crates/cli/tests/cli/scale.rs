//! `scale`: plans, what is made and destroyed, and sizes.

use crate::fixture::{Fixture, Run};

fn check_fails(run: &Run, words: &str) {
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.err.contains(words), "{}", run.err);
}

fn ids(fixture: &Fixture) -> Vec<String> {
    let id = |machine: &serde_json::Value| machine["id"].as_str().unwrap_or_default().to_owned();
    fixture.server().machines("web").iter().map(id).collect()
}

#[test]
fn a_count_that_is_none_changes_nothing() {
    let fixture = Fixture::deployed();
    check_fails(&fixture.fly(&["scale", "count"]), "requires at least 1 arg(s)");
    check_fails(
        &fixture.fly(&["scale", "count", "two"]),
        "'two' is not a valid process=count option",
    );
    check_fails(
        &fixture.fly(&["scale", "count", "wrk=2", "-y"]),
        "Error: Attempting to scale unknown process groups [wrk] but valid names are [app].\n Use `fly scale count \
         COUNT --process-group=NAME` \n or multi group syntax `fly scale count NAME1=COUNT1 NAME2=COUNT2 ...`\n",
    );
    check_fails(
        &fixture.fly(&["scale", "count", "3", "--max-per-region", "2", "-y"]),
        "the number of regions by the maximum machines per region is fewer than the expected total",
    );
    check_fails(
        &fixture.fly(&["scale", "count", "3", "-r", "fra", "-y"]),
        "region 'fra' does not exist",
    );
    check_fails(&fixture.fly(&["scale", "count", "3", "-e", "A", "-y"]), "NAME=VALUE");
    check_fails(&fixture.fly(&["scale", "count", "5000", "-y"]), "more than the 1000");
    let run = fixture.fly(&["scale", "count", "3"]);
    check_fails(&run, "Error: --yes flag must be specified when not running interactively\n");
    assert_eq!(
        run.out,
        "App 'web' is going to be scaled according to this plan:\n  +1 machines for group 'app' on region 'lcl' of \
         size 'shared-cpu-1x'\n"
    );
    assert_eq!(ids(&fixture), ["m0", "m1"]);
    assert_eq!(fixture.server().leases(), 0);
}

#[test]
fn an_app_that_was_never_deployed_cannot_be_scaled() {
    let fixture = Fixture::new();
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    check_fails(
        &fixture.fly(&["scale", "count", "2", "-a", "web", "-y"]),
        "this app has no complete releases. Run `fly deploy` to create one and rerun this command",
    );
}

#[test]
fn more_machines_are_like_the_first_and_fewer_lose_it() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m0", "stopped");
    let run = fixture.fly(&["scale", "count", "+2", "-e", "A=b", "--yes"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(
        run.out,
        "App 'web' is going to be scaled according to this plan:\n  +2 machines for group 'app' on region 'lcl' of \
         size 'shared-cpu-1x'\nExecuting scale plan\n  Created m2 group:app region:lcl size:shared-cpu-1x\n  Created \
         m3 group:app region:lcl size:shared-cpu-1x\n"
    );
    let machines = fixture.server().machines("web");
    assert_eq!(machines[3]["state"], "started");
    assert_eq!(machines[3]["config"]["env"]["A"], "b");
    for key in ["services", "image", "metadata"] {
        assert_eq!(machines[3]["config"][key], machines[0]["config"][key], "{key}");
    }
    let run = fixture.fly(&["scale", "count", "app=1", "-y"]);
    assert!(run.out.contains("  -3 machines for group 'app' on region 'lcl'"), "{}", run.out);
    assert!(
        run.out.contains("  Destroyed m0 group:app region:lcl size:shared-cpu-1x\n"),
        "{}",
        run.out
    );
    assert_eq!(ids(&fixture), ["m3"]);
    let run = fixture.fly(&["scale", "count", "1"]);
    let nothing = "App already scaled to desired state. No need for changes\n";
    assert_eq!((run.code, run.out.as_str()), (0, nothing));
    assert_eq!(fixture.fly(&["scale", "count", "0", "-y"]).code, 0);
    assert!(ids(&fixture).is_empty());
    assert_eq!(fixture.server().leases(), 0);
    let run = fixture.fly(&["scale", "count", "1", "-y"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let config = fixture.server().machines("web")[0]["config"].clone();
    assert_eq!(config["metadata"]["fly_process_group"], "app");
    assert_eq!(config["services"][0]["internal_port"], 8080);
}

#[test]
fn a_size_is_for_the_first_machines_of_an_app_that_names_none() {
    let fixture = Fixture::deployed();
    for (flag, value, words) in [
        ("--vm-size", "big", "expected to start with 'shared' or 'performance'"),
        ("--vm-cpus", "0", "--vm-cpus must be greater than zero, got: 0"),
        ("--vm-memory", "0", "--vm-memory cannot be zero"),
        ("--vm-cpu-kind", "fast", "--vm-cpu-kind must be set to 'shared' or 'performance'"),
        ("--vm-gpus", "1", "no GPU"),
    ] {
        check_fails(&fixture.fly(&["scale", "count", "3", "-y", flag, value]), words);
    }
    let told = "New ones of group 'app' get shared-cpu-1x and 1024 MB, as another machine or fly.toml has it";
    let sized = |count: &str| {
        let run = fixture.fly(&[
            "scale",
            "count",
            count,
            "--vm-size",
            "performance-2x",
            "--memory",
            "8gb",
            "-y",
        ]);
        assert_eq!(run.code, 0, "{}", run.err);
        run
    };
    let guest = || fixture.server().machines("web").pop().expect("one")["config"]["guest"].clone();
    let small = serde_json::json!({"cpu_kind": "shared", "cpus": 1, "memory_mb": 1024});

    let run = sized("3");
    assert!(run.err.contains(told), "as the first: {}", run.err);
    assert_eq!(guest(), small);
    let run = fixture.fly(&["scale", "count", "4", "--vm-memory", "1gb", "-y"]);
    assert!(!run.err.contains("WARN"), "it is what they have: {}", run.err);
    assert!(!sized("0").err.contains("WARN"), "there is no new one");
    let run = sized("1");
    assert!(run.err.contains(told), "as the file has it: {}", run.err);
    assert_eq!(guest(), small);

    let file = fixture.path("fly.toml");
    let text = std::fs::read_to_string(&file).expect("launch writes it");
    std::fs::write(&file, text.split("[[vm]]").next().unwrap_or_default()).expect("ours");
    assert_eq!(fixture.fly(&["deploy"]).code, 0);
    assert_eq!(fixture.fly(&["scale", "count", "0", "-y"]).code, 0);
    let run = sized("2");
    assert!(
        run.out.contains("+2 machines for group 'app' on region 'lcl' of size 'performance-2x'")
    );
    assert!(!run.err.contains("WARN"), "{}", run.err);
    assert_eq!(
        guest(),
        serde_json::json!({"cpu_kind": "performance", "cpus": 2, "memory_mb": 8192})
    );
}

#[test]
fn somebody_else_at_work_stops_a_scale_before_it_changes_anything() {
    let fixture = Fixture::deployed();
    fixture.server().lease_by("m1", "alice", "fly deploy of web");
    check_fails(&fixture.fly(&["scale", "count", "4", "-y"]), "alice with `fly deploy of web`");
    check_fails(&fixture.fly(&["scale", "memory", "512"]), "alice with `fly deploy of web`");
    assert_eq!(ids(&fixture), ["m0", "m1"]);
    assert_eq!(fixture.server().leases(), 1, "ours are given back");
    let fixture = Fixture::deployed();
    fixture.server().keep_deploying();
    check_fails(&fixture.fly(&["scale", "count", "4", "-y"]), "alice is deploying web (release 1)");
    assert_eq!(ids(&fixture), ["m0", "m1"]);
}

#[test]
fn a_machine_that_a_beginning_deploy_may_have_missed_goes_again() {
    let fixture = Fixture::deployed();
    fixture.server().deploy_with_next_machine();
    let run = fixture.fly(&["scale", "count", "4", "-y"]);
    check_fails(&run, "alice is deploying web (release 1)");
    assert!(!run.out.contains("Created"), "{}", run.out);
    assert_eq!(ids(&fixture), ["m0", "m1"]);
    assert_eq!(fixture.server().leases(), 0, "ours are given back");
}

#[test]
fn sizes_are_shown_and_changed_and_those_asleep_stay_asleep() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m1", "stopped");
    check_fails(
        &fixture.fly(&["scale", "vm", "big"]),
        "expected to start with 'shared' or 'performance'",
    );
    check_fails(&fixture.fly(&["scale", "memory", "300"]), "invalid memory size");
    check_fails(
        &fixture.fly(&["scale", "vm", "shared-cpu-1x", "-g", "x"]),
        "No active machines in process group 'x'",
    );
    let run = fixture.fly(&["scale", "vm", "shared-cpu-2x", "--memory", "1024"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(
        run.out,
        "Updating machine m0\nMachine m0 updated successfully!\nUpdating machine m1\nMachine m1 updated \
         successfully!\nScaled VM Type to 'shared-cpu-2x'\n      CPU Cores: 2\n         Memory: 1024 MB\n"
    );
    assert!(
        run.err.trim_start().starts_with("! Your fly.toml has a [[vm]] section"),
        "{}",
        run.err
    );
    let machines = fixture.server().machines("web");
    assert_eq!(machines[0]["config"]["guest"]["memory_mb"], 1024);
    assert_eq!(machines[1]["state"], "stopped");
    let run = fixture.fly(&["scale", "memory", "512", "-g", "app"]);
    assert!(run.out.contains("Scaled VM Type for 'app' to 'shared-cpu-2x'\n"), "{}", run.out);
    let run = fixture.fly(&["scale", "show"]);
    assert_eq!(
        run.out,
        "VM Resources for app: web\n\nGroups\n NAME │ COUNT │ KIND   │ CPUS │ MEMORY │ REGIONS \n \
         app  │ 2     │ shared │ 2    │ 512 MB │ lcl(2)  \n\n"
    );
    let run = fixture.fly(&["scale", "show", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&run.out).expect("JSON");
    let expected = serde_json::json!([{"Process": "app", "Count": 2, "CPUKind": "shared", "CPUs": 2, "Memory": 512,
        "Regions": {"lcl": 2}}]);
    assert_eq!(shown, expected);
}

#[test]
fn a_file_with_another_size_is_warned_of() {
    let fixture = Fixture::deployed();
    let file = fixture.path("fly.toml");
    let text = std::fs::read_to_string(&file).expect("launch writes it");
    let text = text.split("[[vm]]").next().unwrap_or_default();
    std::fs::write(&file, format!("{text}\n[[vm]]\n  size = 'shared-cpu-1x'\n")).expect("ours");
    let run = fixture.fly(&["scale", "memory", "512"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.err.contains("\n  Machines now: size=shared-cpu-1x memory=512MB\n"), "{}", run.err);
    assert!(run.err.contains("\n  fly.toml:     size=shared-cpu-1x memory=256MB\n"), "{}", run.err);
    std::fs::write(&file, text).expect("ours");
    let run = fixture.fly(&["scale", "memory", "256"]);
    assert!(!run.err.contains("fly.toml"), "{}", run.err);
}

#[test]
fn a_deploy_of_some_groups_leaves_the_others() {
    let fixture = Fixture::deployed();
    let groups = "\n[processes]\n  app = ''\n  worker = 'work'\n";
    let file = fixture.path("fly.toml");
    let text = std::fs::read_to_string(&file).expect("launch writes it");
    std::fs::write(&file, text + groups).expect("ours");
    check_fails(&fixture.fly(&["deploy", "--process-groups", "wrk"]), "no process group 'wrk'");
    let run = fixture.fly(&["deploy", "--process-groups", "worker"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let release = |machine: &serde_json::Value| {
        let metadata = &machine["config"]["metadata"];
        (metadata["fly_process_group"].clone(), metadata["fly_release_version"].clone())
    };
    let seen: Vec<_> = fixture.server().machines("web").iter().map(release).collect();
    let expected = [("app", "1"), ("app", "1"), ("worker", "2"), ("worker", "2")];
    assert_eq!(seen, expected.map(|(a, b)| (a.into(), b.into())));
}
