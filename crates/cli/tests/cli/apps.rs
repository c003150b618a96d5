//! `apps`: flyctl-cli 3.1 and 6.

use crate::fixture::Fixture;
use serde_json::Value;

const NONE: &str = "\"Nodes\": null";

#[test]
fn list_prints_a_table_names_only_or_that_there_is_none() {
    let fixture = Fixture::new();
    assert_eq!(fixture.fly(&["apps", "list"]).out, "No apps found\n");
    assert_eq!(fixture.fly(&["apps", "list", "-q"]).out, "");
    assert_eq!(fixture.fly(&["apps", "list", "--json"]).out, "[]\n");
    fixture.fly(&["apps", "create", "web"]);
    fixture.fly(&["apps", "create", "worker"]);
    assert_eq!(
        fixture.fly(&["app", "ls"]).out,
        " NAME   │ OWNER    │ STATUS  │ LATEST DEPLOY \n web    │ personal │ pending │               \n \
         worker │ personal │ pending │               \n\n"
    );
    assert_eq!(fixture.fly(&["apps", "list", "-q"]).out, " web    \n worker \n\n");
}

#[test]
fn networks_are_shown_as_soon_as_an_app_has_its_own() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    fixture.fly(&["apps", "create", "lab", "--network", "lab-net"]);
    assert_eq!(
        fixture.fly(&["apps", "list"]).out,
        " NAME │ OWNER    │ STATUS  │ NETWORK │ LATEST DEPLOY \n lab  │ personal │ pending │ lab-net │ \
         \x20             \n web  │ personal │ pending │         │               \n\n"
    );
}

#[test]
fn list_is_for_one_organization_if_one_is_named() {
    let fixture = Fixture::new();
    fixture.server().add_organization("team");
    fixture.fly(&["apps", "create", "web", "-o", "personal"]);
    fixture.fly(&["apps", "create", "lab", "-o", "team"]);
    assert_eq!(fixture.fly(&["apps", "list", "-q", "--org", "team"]).out, " lab \n\n");
    let run = fixture.fly(&["apps", "list", "-o", "nobody"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: error getting organization: "), "{}", run.err);
    assert!(run.err.contains("nobody"), "{}", run.err);
}

#[test]
fn create_says_the_name_and_which_organization_was_chosen() {
    let fixture = Fixture::new();
    let run = fixture.fly(&["apps", "create", "web"]);
    assert_eq!((run.code, run.out.as_str()), (0, "New app created: web\n"));
    assert_eq!(run.err, "automatically selected personal organization: Personal\n");
    let run = fixture.fly(&["apps", "create", "--name", "two", "--machines"]);
    assert_eq!(run.out, "New app created: two\n");
    let run = fixture.fly(&["apps", "create", "--generate-name", "-o", "personal"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[test]
fn create_prints_the_whole_app_as_json() {
    let run = Fixture::new().fly(&["apps", "create", "web", "--json"]);
    let app: Value = serde_json::from_str(&run.out).expect("it is JSON");
    let keys: Vec<_> = app.as_object().expect("an object").keys().map(String::as_str).collect();
    let wanted = "ID InternalNumericID Name State Status Deployed Hostname AppURL Version NetworkID \
                  Network Release Organization Secrets CurrentRelease Releases IPAddresses \
                  EgressIpAddresses SharedIPAddress CNAMETarget IPAddress Certificates Certificate \
                  PostgresAppRole Image ImageUpgradeAvailable ImageVersionTrackingEnabled ImageDetails \
                  LatestImageDetails PlatformVersion Machines CurrentLock";
    assert_eq!(keys, wanted.split_whitespace().collect::<Vec<_>>());
    let organization = app["Organization"].as_object().expect("an object");
    let wanted = "ID InternalNumericID Name RemoteBuilderImage RemoteBuilderApp Slug RawSlug Type \
                  PaidPlan Billable Settings AllowedReplaySourceOrgSlugs AllowAllCrossNetworkReplays \
                  WireGuardPeer WireGuardPeers DelegatedWireGuardTokens LoggedCertificates";
    let keys: Vec<_> = organization.keys().map(String::as_str).collect();
    assert_eq!(keys, wanted.split_whitespace().collect::<Vec<_>>());
    assert!(run.out.contains(NONE), "{}", run.out);
    assert!(run.out.starts_with("{\n    \"ID\": \"web\",\n    \"InternalNumericID\": 42,\n"));
}

#[test]
fn create_needs_a_name_and_an_organization_that_are_clear() {
    let fixture = Fixture::new();
    let run = fixture.fly(&["apps", "create"]);
    assert_eq!(run.code, 1);
    let missing = "Error: name argument or flag must be specified when not running interactively\n";
    assert!(run.err.starts_with(missing), "{}", run.err);
    let run = fixture.fly(&["apps", "create", "a", "--name", "b"]);
    assert_eq!(run.err, "Error: two app names specified a and b, only one may be specified\n");
    let run = fixture.fly(&["apps", "create", "a", "b"]);
    assert!(run.err.starts_with("Error: accepts at most 1 arg(s), received 2\n"), "{}", run.err);
    let run = fixture.fly(&["apps", "create", "a", "-o", "nobody"]);
    assert!(run.err.starts_with("Error: organization nobody not found\n"), "{}", run.err);
    assert!(run.err.contains("personal"), "the remedy names those that are there: {}", run.err);
    fixture.server().add_organization("team");
    let run = fixture.fly(&["apps", "create", "a"]);
    let missing = "Error: org slug must be specified when not running interactively\n";
    assert!(run.err.starts_with(missing), "{}", run.err);
    assert_eq!(fixture.fly_in(&[("FLY_ORG", "team")], &["apps", "create", "a"]).code, 0);
    assert_eq!(fixture.server().apps(), ["a"]);
}

#[test]
fn a_name_that_is_taken_brings_the_suggestion() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let run = fixture.fly(&["apps", "create", "web"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("Error: Name has already been taken: web\nApp names are unique"));
}

#[test]
fn save_writes_a_file_and_overwrites_none_without_a_yes() {
    let fixture = Fixture::new();
    let run = fixture.fly(&["apps", "create", "web", "--save"]);
    assert_eq!(run.out, "New app created: web\nWrote config file fly.toml\n");
    let file = std::fs::read_to_string(fixture.path("fly.toml")).expect("it is written");
    assert!(file.ends_with("app = 'web'\n"), "{file}");
    let run = fixture.fly(&["apps", "create", "two", "--save"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("yes flag must be specified when not running interactively"));
    assert_eq!(fixture.fly(&["apps", "create", "three", "--save", "-y"]).code, 0);
    let file = std::fs::read_to_string(fixture.path("fly.toml")).expect("it is there");
    assert!(file.ends_with("app = 'three'\n"), "{file}");
}

#[test]
fn destroy_warns_asks_and_looks_all_names_up_first() {
    let fixture = Fixture::new();
    fixture.fly(&["apps", "create", "web"]);
    let run = fixture.fly(&["apps", "destroy"]);
    assert!(run.err.starts_with("Error: no app names provided\n"), "{}", run.err);
    let run = fixture.fly(&["apps", "delete", "web"]);
    assert_eq!(run.code, 1);
    let expected = "Destroying an app is not reversible.\nError: yes flag must be specified when not \
                    running interactively\n";
    assert!(run.err.starts_with(expected), "{}", run.err);
    let run = fixture.fly(&["apps", "rm", "web", "gone", "--auto-confirm"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("gone"), "{}", run.err);
    assert_eq!(fixture.server().apps(), ["web"], "nothing was destroyed");
    assert_eq!(fixture.fly(&["apps", "remove", "web", "--yes=true"]).out, "Destroyed app web\n");
}
