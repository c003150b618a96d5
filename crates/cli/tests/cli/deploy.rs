//! `deploy`: flyctl-cli 4.1 and 4.3. Each of flyctl's flags works, is accepted in silence, or is refused
//! with the reason.

use crate::fixture::Fixture;
use serde_json::{Value, json};

#[test]
fn a_first_deploy_says_its_steps_in_flyctls_order() {
    let fixture = Fixture::new();
    crate::fixture::oci_layout(&fixture.path("img"));
    let launch =
        ["launch", "--name", "web", "--image", "oci:img", "--flycast", "--no-deploy", "-y"];
    assert_eq!(fixture.fly(&launch).code, 0);
    let run = fixture.fly(&["deploy"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let in_order = |text: &str, parts: &[&str]| {
        let mut rest = text;
        for part in parts {
            let at = rest.find(part);
            rest =
                at.map(|at| &rest[at + part.len()..]).unwrap_or_else(|| panic!("{part}\n{text}"));
        }
    };
    in_order(
        &run.out,
        &[
            "Validating ",
            "✓ Configuration is valid\n",
            "\nWatch your deployment ",
            "\n\nProvisioning ip address for web\n  Private ipv6: fdaa::1\n\n",
            "This deployment will:\n * create 2 \"app\" machines\n\n",
            "No machines in group app, launching a new machine\n",
            "Machine m0 [app] was created\n",
            "Creating a second machine for high availability and zero downtime deployments.\n",
            "Machine m1 [app] was created\n",
            "\n\nNOTE: The machines for [app] have services with 'auto_stop_machines = \"stop\"' that \
             will be stopped when idling\n\n",
            "under http://web.flycast\n",
        ],
    );
    in_order(
        &run.err,
        &[
            "==> Verifying app config\n",
            "--> Verified app config\n",
            "==> Building image\n",
            "Searching for image 'oci:img' locally...\n",
            "image found: sha256:",
            "Finished launching new machines\n",
        ],
    );
}

/// Which is which, and why, is in `answers.txt`.
#[test]
fn what_steers_nothing_here_is_accepted_and_what_would_be_missed_is_refused_before_anything_happens()
 {
    let fixture = Fixture::deployed();
    let flags = "--local-only=1 --now --depot=true --dns-checks=0 --compression zstd --compression-level \
                 3 --wg=false --deploy-retries 3 --skip-release-command --yes --max-concurrent 4 \
                 --immediate-max-concurrent 2 --ha=T";
    let args: Vec<_> = std::iter::once("deploy").chain(flags.split_whitespace()).collect();
    let run = fixture.fly(&args);
    assert_eq!(run.code, 0, "{}", run.err);
    fixture.server().take_calls();
    for flags in [
        &["--ignorefile", "x"][..],
        &["--nixpacks"],
        &["--buildpacks-volume", "x"],
        &["--file-local", "/a=b"],
        &["--file-secret", "/a=b"],
        &["--vm-gpus", "1"],
        &["--vm-gpukind", "l40s"],
        &["--export-manifest", "-"],
        &["--from-manifest", "-"],
    ] {
        let run = fixture.fly(&[&["deploy"], flags].concat());
        assert_eq!((run.code, run.out.as_str()), (1, ""), "{flags:?}");
        assert!(run.err.starts_with("Error: `fly deploy --"), "{flags:?}\n{}", run.err);
        assert!(run.err.contains("` is not here: "), "{flags:?}\n{}", run.err);
    }
    assert_eq!(fixture.server().take_calls(), Vec::<String>::new());
}

#[test]
fn bad_values_are_refused_in_flyctls_words() {
    let fixture = Fixture::deployed();
    for (flags, error) in [
        (
            &["--wait-timeout", "soon"][..],
            "Error: invalid duration value soon used for --wait-timeout",
        ),
        (
            &["--lease-timeout", "x"],
            "Error: invalid duration value x used for --lease-timeout flag",
        ),
        (&["--max-unavailable", "0"], "Error: the value for --max-unavailable must be > 0\n"),
        (&["--strategy", "slow"], "Error: unknown strategy 'slow'\n"),
        (
            &["--process-groups", "web"],
            "Error: there is no process group 'web' in fly.toml\nThere is app",
        ),
        (&["--ha=maybe"], "Error: invalid argument \"maybe\" for \"--ha\" flag"),
        (&["a", "b"], "Error: accepts at most 1 arg(s), received 2\n"),
        (&["gone"], "Error: could not enter "),
    ] {
        let run = fixture.fly(&[&["deploy"], flags].concat());
        assert_eq!(run.code, 1, "{flags:?}");
        assert!(run.err.contains(error), "{flags:?}\n{}", run.err);
    }
    assert_eq!(fixture.server().release_statuses("web"), ["complete"]);
}

#[test]
fn filters_leave_the_other_machines_as_they_are() {
    for (flags, changed, note) in [
        (
            &["--only-machines", "m1"][..],
            &["m1"][..],
            "--only-machines filter applied, deploying to 1/2",
        ),
        (
            &["--exclude-machines", "m1,m7"],
            &["m0"],
            "--exclude-machines filter applied, deploying to 1/2",
        ),
        (&["--regions", "lcl"], &["m0", "m1"], "--regions filter applied, deploying to 2/2"),
        (&["--only-regions", "rmt"], &[], "--regions filter applied, deploying to 0/2"),
        (
            &["--exclude-regions", "lcl", "--process-groups", "app"],
            &[],
            "--exclude-regions/--process-groups filters applied, deploying to 0/2",
        ),
    ] {
        let fixture = Fixture::deployed();
        let run = fixture.fly(&[&["deploy", "-e", "COLOR=green"], flags].concat());
        assert_eq!(run.code, 0, "{flags:?} {}", run.err);
        assert!(run.err.contains(&format!("{note} machines\n")), "{flags:?} {}", run.err);
        let machines = fixture.server().machines("web");
        let green = machines.iter().filter(|it| it["config"]["env"]["COLOR"] == "green");
        let green: Vec<_> = green.filter_map(|machine| machine["id"].as_str()).collect();
        assert_eq!(green, changed, "{flags:?}");
        assert_eq!(machines.len(), 2, "no group is new: {flags:?}");
    }
}

#[test]
fn what_a_machine_that_is_left_alone_has_mounted_is_not_looked_at() {
    let mounted = json!([{"volume": "vol_1", "name": "new", "path": "/data"}]);
    let file_mounts = "\n[[mounts]]\n  source = 'new'\n  destination = '/data'\n";
    for (mounts, of_m0) in [("", json!([])), (file_mounts, mounted)] {
        let fixture = Fixture::deployed();
        let file = fixture.path("fly.toml");
        let text = std::fs::read_to_string(&file).expect("it is there") + mounts;
        std::fs::write(&file, text).expect("it can be written");
        fixture.server().add_volume("web", "vol_1", "new");
        let old = json!([{"volume": "vol_0", "name": "old", "path": "/data"}]);
        fixture.server().edit_machine("m0", |machine| machine["config"]["mounts"] = of_m0);
        fixture.server().edit_machine("m1", |machine| machine["config"]["mounts"] = old);
        let before = fixture.server().machines("web").remove(1);
        for flags in [&["--exclude-machines", "m1"], &["--only-machines", "m0"]] {
            let run = fixture.fly(&[&["deploy"], &flags[..]].concat());
            assert_eq!(run.code, 0, "{flags:?} {}", run.err);
            let machines = fixture.server().machines("web");
            assert!(machines.contains(&before), "{flags:?} {machines:?}");
        }
        let run = fixture.fly(&["deploy", "--only-machines", "m1"]);
        assert_eq!(run.code, 1, "it is looked at when it is meant: {}", run.out);
    }
}

#[test]
fn a_standby_stays_one_unless_it_gets_services() {
    for serves in [true, false] {
        let fixture = Fixture::deployed();
        fixture.server().edit_machine("m1", |machine| {
            machine["state"] = "stopped".into();
            machine["config"]["standbys"] = json!(["m0"]);
            machine["config"]["env"] = json!({"FLY_STANDBY_FOR": "m0"});
        });
        if !serves {
            std::fs::write(fixture.path("fly.toml"), "app = 'web'\n[build]\n  image = 'oci:img'\n")
                .expect("it can be written");
        }
        let run = fixture.fly(&["deploy"]);
        assert_eq!(run.code, 0, "{}", run.err);
        let now = fixture.server().machines("web").remove(1);
        let (standbys, variable) =
            (&now["config"]["standbys"], &now["config"]["env"]["FLY_STANDBY_FOR"]);
        match serves {
            true => assert_eq!((standbys, variable), (&Value::Null, &Value::Null), "DE-55"),
            false => assert_eq!((standbys, variable), (&json!(["m0"]), &json!("m0"))),
        }
        assert_eq!(now["state"], "stopped", "a deploy starts no standby");
    }
}

#[test]
fn detach_looks_at_nothing_and_a_release_command_can_be_skipped() {
    let fixture = Fixture::deployed();
    let file = fixture.path("fly.toml");
    let mut text = std::fs::read_to_string(&file).expect("it is there");
    text.push_str("\n[deploy]\n  release_command = 'migrate'\n");
    std::fs::write(&file, text).expect("it can be written");
    let run = fixture.fly(&["deploy"]);
    assert!(run.err.contains("Error: deploy.release_command is not supported yet"), "{}", run.err);
    fixture.server().take_calls();
    let run = fixture.fly(&["deploy", "--skip-release-command", "--detach"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let calls = fixture.server().take_calls();
    assert!(!calls.iter().any(|call| call.ends_with("/ps")), "{calls:?}");
}

#[test]
fn an_image_can_have_a_label_and_only_be_pushed() {
    let fixture = Fixture::deployed();
    fixture.server().take_calls();
    let run = fixture.fly(&["deploy", "--build-only", "--push", "--image-label", "v7"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let calls = fixture.server().take_calls();
    assert!(calls.contains(&"PUT /v2/web/manifests/v7".to_owned()), "{calls:?}");
    assert_eq!(fixture.server().release_statuses("web"), ["complete"]);
    let run = fixture.fly(&["deploy", "--build-only"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(!fixture.server().take_calls().iter().any(|call| call.starts_with("PUT")));
}

#[test]
fn without_a_file_what_was_deployed_last_is_deployed_again() {
    let fixture = Fixture::deployed();
    std::fs::remove_file(fixture.path("fly.toml")).expect("it is there");
    let run = fixture.fly(&["deploy", "-a", "web", "-i", "oci:img"]);
    assert_eq!(run.code, 0, "{}\n{}", run.out, run.err);
    assert_eq!(fixture.server().release_statuses("web"), ["complete", "complete"]);
    let run = fixture.fly(&["deploy", "-a", "nobody"]);
    let error = "Error: the app name nobody could not be found, did you create the app or misspell it \
                 in the fly.toml file or via -a?\n";
    assert!(run.err.contains(error), "{}", run.err);
    let run = fixture.fly(&["deploy"]);
    assert!(run.err.contains("Error: no fly.toml here\n"), "{}", run.err);
}
