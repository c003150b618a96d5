//! `secrets`: what is sent, what is printed, and what becomes of the Machines.

use crate::fixture::{Fixture, Run};

const STAGED: &str = "Secrets have been staged, but not set on VMs. Deploy or update machines in this app for the \
                      secrets to take effect.\n";

fn check_fails(run: &Run, words: &str) {
    assert_eq!(run.code, 1, "{}", run.out);
    assert!(run.err.contains(words), "{}", run.err);
    assert!(!run.err.contains("hunter2") && !run.out.contains("hunter2"), "{}{}", run.out, run.err);
}

/// Metadata of each Machine: the release that it is of.
fn releases(fixture: &Fixture) -> Vec<String> {
    let release = |machine: &serde_json::Value| {
        machine["config"]["metadata"]["fly_release_version"].as_str().unwrap_or("-").to_owned()
    };
    fixture.server().machines("web").iter().map(release).collect()
}

#[test]
fn bad_arguments_change_nothing() {
    let fixture = Fixture::deployed();
    check_fails(&fixture.fly(&["secrets", "set"]), "requires at least 1 arg(s)");
    check_fails(
        &fixture.fly(&["secrets", "set", "A=hunter2", "nonsense"]),
        "Error: could not parse secrets: 'nonsense': must be in the format NAME=VALUE\n",
    );
    check_fails(
        &fixture.fly(&["secrets", "set", "A=-"]),
        "Error: secret `A` expects standard input but none provided\n",
    );
    let long = "x".repeat(64 * 1024 + 1);
    check_fails(
        &fixture.fly_reading(&long, &["secrets", "set", "A=-"]),
        "error reading stdin for 'A': Input exceeded max length of 65536 bytes",
    );
    check_fails(
        &fixture.fly_reading("A=hunter2\nnonsense\n", &["secrets", "import"]),
        "Error: Failed to parse secrets from stdin: Secrets must be provided as NAME=VALUE pairs \
         (nonsense is invalid)\n",
    );
    check_fails(
        &fixture.fly_reading("# nothing\n", &["secrets", "import"]),
        "Error: requires at least one SECRET=VALUE pair\n",
    );
    check_fails(&fixture.fly(&["secrets", "unset"]), "requires at least 1 arg(s)");
    assert!(fixture.server().secrets().is_empty());
    assert_eq!(releases(&fixture), ["1", "1"]);
}

#[test]
fn an_app_that_was_never_deployed_keeps_its_secrets_for_the_first_time() {
    let fixture = Fixture::new();
    check_fails(
        &fixture.fly(&["secrets", "set", "A=b", "-a", "web"]),
        "Could not find App \"web\"",
    );
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    let run = fixture.fly(&["secrets", "set", "A=b=c", "EMPTY=", "-a", "web"]);
    assert_eq!((run.code, run.out.as_str()), (0, "Secrets are staged for the first deployment\n"));
    let set = [("A", "b=c"), ("EMPTY", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(fixture.server().secrets(), set);
    let run = fixture.fly(&["secrets", "deploy", "-a", "web"]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.err,
        "Error: no machines available to deploy\n'fly secrets deploy' will only work if the app has been deployed \
         and there are machines available\n\nTry 'fly deploy' first\n\n"
    );
}

#[test]
fn a_secret_that_is_set_restarts_machines_that_run_and_leaves_others_asleep() {
    let fixture = Fixture::deployed();
    fixture.server().set_state("m1", "stopped");
    let before = fixture.server().machines("web");
    let run = fixture.fly_reading("  hunter2\n", &["secrets", "set", "KEY=-", "B=c"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let expected = "Updating existing machines in 'web' with rolling strategy\n\
        > [1/2] Updating m0 [app]\n> [1/2] Waiting for m0 [app] to have state: started\n  \
        [1/2] Machine m0 [app] has state: started\n\
        > [1/2] Checking that m0 [app] is up and running\n✔ [1/2] Machine m0 [app] update succeeded\n\
        > [2/2] Updating m1 [app]\n✔ [2/2] Machine m1 [app] update succeeded\n";
    assert_eq!(run.out, expected);
    assert!(fixture.server().secrets().contains(&("KEY".to_owned(), "hunter2".to_owned())));
    assert_eq!(releases(&fixture), ["2", "2"]);
    assert_eq!(fixture.server().release_statuses("web"), ["complete", "complete"]);
    assert_eq!(fixture.server().leases(), 0);
    let after = fixture.server().machines("web");
    assert_eq!(after[1]["state"], "stopped");
    for (before, after) in before.iter().zip(&after) {
        for key in ["image", "services", "env", "guest", "restart"] {
            assert_eq!(before["config"][key], after["config"][key], "{key}");
        }
        assert!(!after["config"].to_string().contains("hunter2"), "{after}");
    }
}

#[test]
fn what_lies_in_the_directory_is_not_deployed_with_a_secret() {
    let fixture = Fixture::deployed();
    let file = fixture.path("fly.toml");
    let text = std::fs::read_to_string(&file).expect("launch writes it");
    let changed = text.replace("internal_port = 8080", "internal_port = 9090");
    std::fs::write(&file, changed + "\n[processes]\n  other = 'x'\n").expect("ours");
    let run = fixture.fly(&["secrets", "set", "A=b"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let machines = fixture.server().machines("web");
    assert_eq!(machines.len(), 2);
    assert_eq!(machines[0]["config"]["services"][0]["internal_port"], 8080);
}

#[test]
fn staged_secrets_wait_for_a_deploy() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["secrets", "set", "A=b", "--stage"]);
    assert_eq!((run.code, run.out.as_str()), (0, STAGED));
    let run = fixture.fly_reading("C=d\n", &["secrets", "import", "--stage"]);
    assert_eq!((run.code, run.out.as_str()), (0, STAGED));
    assert_eq!(releases(&fixture), ["1", "1"]);
    let table = fixture.fly(&["secrets", "ls"]).out;
    assert_eq!(
        table,
        " NAME │ DIGEST │ STATUS \n * A  │ d1     │ Staged \n * C  │ d2     │ Staged \n\n\
         There are 2 secrets not deployed. Deploy with `fly secrets deploy` to make them available.\n"
    );
    assert_eq!(fixture.fly(&["secrets", "deploy"]).code, 0);
    assert_eq!(releases(&fixture), ["2", "2"]);
    let list = fixture.fly(&["secrets", "list", "--json"]).out;
    let object = |name: &str, digest: &str| {
        format!(
            "    {{\n        \"name\": \"{name}\",\n        \"digest\": \"{digest}\",\n        \
             \"status\": \"Deployed\"\n    }}"
        )
    };
    assert_eq!(list, format!("[\n{},\n{}\n]\n", object("A", "d1"), object("C", "d2")));
}

#[test]
fn the_list_says_what_only_some_machines_have() {
    let fixture = Fixture::deployed();
    assert_eq!(fixture.fly(&["secrets", "list"]).out, " NAME │ DIGEST │ STATUS \n\n");
    assert_eq!(fixture.fly(&["secrets", "list", "-j"]).out, "[]\n");
    assert_eq!(fixture.fly(&["secrets", "set", "A=b"]).code, 0);
    fixture.server().set_secrets_of("m1", 0);
    let run = fixture.fly(&["secrets", "list"]);
    assert_eq!(
        run.out,
        " NAME │ DIGEST │ STATUS  \n ! A  │ d1     │ Partial \n\nThere is 1 secret partially deployed. This can \
         happen during rolling deployments or if some machines failed to update. Deploy with `fly secrets deploy` to \
         ensure all machines have the latest configuration.\n"
    );
    assert_eq!(fixture.fly(&["secrets", "set", "B=c", "--stage"]).code, 0);
    let run = fixture.fly(&["secrets", "list"]);
    assert!(
        run.out.ends_with(
            "\n\nSome secrets need to be deployed:\n  * 1 secret staged (not yet deployed)\n  ! 1 secret partially \
             deployed (deployed to some machines)\n\nDeploy with `fly secrets deploy` to sync all machines.\n"
        ),
        "{}",
        run.out
    );
}

#[test]
fn an_unset_name_goes_and_one_that_is_not_set_is_no_error() {
    let fixture = Fixture::deployed();
    assert_eq!(fixture.fly(&["secrets", "set", "A=b", "C=d", "--stage"]).code, 0);
    let run = fixture.fly(&["secrets", "unset", "A", "GONE"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(fixture.server().secrets(), [("C".to_owned(), "d".to_owned())]);
    assert_eq!(releases(&fixture), ["2", "2"]);
}

#[test]
fn a_deploy_in_progress_leaves_the_secret_staged_and_says_who_deploys() {
    let fixture = Fixture::deployed();
    fixture.server().refuse_releases("lease on app web currently held by uid 7");
    let run = fixture.fly(&["secrets", "set", "A=b"]);
    check_fails(&run, "currently held by uid 7");
    assert_eq!(fixture.server().secrets().len(), 1);
    assert!(fixture.fly(&["secrets", "list"]).out.contains("* A"));
}
