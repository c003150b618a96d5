//! `launch`: flyctl-cli 4.1, 4.2 and 5.

use crate::fixture::{Fixture, Run, oci_layout};

fn with_image() -> Fixture {
    let fixture = Fixture::new();
    oci_layout(&fixture.path("img"));
    fixture
}

fn launch(fixture: &Fixture, more: &[&str]) -> Run {
    let args = ["launch", "--name", "web", "--image", "oci:img", "-y", "--no-deploy"];
    fixture.fly(&[&args, more].concat())
}

#[test]
fn the_plan_has_three_aligned_columns_and_says_where_each_setting_comes_from() {
    let fixture = with_image();
    let run = launch(&fixture, &["-r", "lcl", "--org", "personal"]);
    assert_eq!(run.code, 0, "{}", run.err);
    let plan = "Here's what you're getting:\n\n\
        Organization: personal               (specified on the command line)\n\
        Name:         web                    (specified on the command line)\n\
        Region:       lcl                    (specified on the command line)\n\
        App Machines: shared-cpu-1x, 1GB RAM (most apps need about 1GB of RAM)\n\n\
        Created app 'web' in organization 'personal'\nHostname: web.perch.test\n\
        Wrote config file fly.toml\nValidating ";
    assert!(run.out.contains(plan), "{}", run.out);
    let end = "✓ Configuration is valid\nYour app is ready! Deploy with `fly deploy`\n";
    assert!(run.out.ends_with(end), "{}", run.out);
    let file = std::fs::read_to_string(fixture.path("fly.toml")).expect("it is written");
    let body = "\
app = 'web'
primary_region = 'lcl'

[build]
  image = 'oci:img'

[http_service]
  internal_port = 8080
  force_https = false
  auto_stop_machines = 'stop'
  auto_start_machines = true
  min_machines_running = 0
  processes = ['app']

[[vm]]
  memory = '1gb'
  cpu_kind = 'shared'
  cpus = 1
  memory_mb = 1024
";
    assert!(file.ends_with(body), "{file}");
}

#[test]
fn defaults_are_said_too() {
    let fixture = with_image();
    let run = launch(&fixture, &["--vm-memory", "512", "--vm-cpus", "2"]);
    for row in [
        "Organization: personal               (fly launch defaults to the personal org)\n",
        "Region:       lcl                    (this is the fastest region for you)\n",
        "App Machines: shared-cpu-2x, 512MB RAM (specified on the command line)\n",
    ] {
        let row = row.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        let has = |line: &str| {
            format!("{}\n", line.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" "))
        };
        assert!(run.out.lines().any(|line| has(line) == row), "{row}\n{}", run.out);
    }
}

#[test]
fn the_file_can_be_json_or_yaml() {
    for (flag, name, begin) in [
        ("--json", "fly.json", "{\n  \"app\": \"web\",\n"),
        ("--yaml", "fly.yaml", "# fly.yaml app "),
    ] {
        let fixture = with_image();
        let run = launch(&fixture, &[flag]);
        assert_eq!(run.code, 0, "{}", run.err);
        assert!(run.out.contains(&format!("Wrote config file {name}\n")), "{}", run.out);
        let text = std::fs::read_to_string(fixture.path(name)).expect("it is written");
        assert!(text.starts_with(begin), "{text}");
        let run = fixture.fly(&["config", "validate"]);
        assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    }
}

#[test]
fn bad_input_creates_nothing_and_says_what_there_is() {
    let fixture = with_image();
    let image = "oci:img";
    for (args, error) in [
        (&["--region", "mars"][..], "Error: region mars not found\nThere is lcl, rmt"),
        (&["--org", "nobody"], "Error: organization nobody not found\nThere is personal"),
        (
            &["--auto-stop", "maybe"],
            "Error: 'maybe' is not a way to stop Machines\nUse --auto-stop",
        ),
        (&["--internal-port", "70000"], "Error: internal port 70000 is out of range\nUse"),
        (&["--vm-cpus", "0"], "Error: --vm-cpus must be greater than zero, got: 0\n"),
        (
            &["--vm-cpu-kind", "big"],
            "Error: --vm-cpu-kind must be set to 'shared' or 'performance'\n",
        ),
        (&["-e", "X"], "Error: 'X' is not NAME=VALUE\n"),
        (&["here"], "Error: unknown command \"here\" for \"fly launch\"\n"),
        (&["--reuse-app"], "Error: `fly launch --reuse-app` is not here: "),
        (&["--from", "URL"], "Error: `fly launch --from` is not here: "),
        (&["--volume", "d:/d"], "Error: `fly launch --volume` is not here: "),
        (&["--db"], "Error: `fly launch --db` is not here: "),
    ] {
        let run =
            fixture.fly(&[&["launch", "--name", "web", "--image", image, "-y"], args].concat());
        assert_eq!(run.code, 1, "{args:?}");
        assert!(run.err.contains(error), "{args:?}\n{}", run.err);
        assert_eq!(fixture.server().apps(), Vec::<String>::new(), "{args:?}");
        assert!(!fixture.path("fly.toml").exists(), "{args:?}");
    }
}

#[test]
fn what_steers_nothing_here_is_accepted_in_silence() {
    let fixture = with_image();
    let flags = [
        "--no-db",
        "--no-redis",
        "--no-object-storage",
        "--no-github-workflow",
        "--force-name",
        "--now",
        "--",
        "--scanner",
        "argument",
    ];
    let run = launch(&fixture, &flags);
    assert_eq!((run.code, run.err.contains("db")), (0, false), "{}", run.err);
}

#[test]
fn an_existing_file_is_asked_about() {
    let fixture = with_image();
    std::fs::write(fixture.path("fly.toml"), "app = 'old'\n").expect("it can be written");
    let run = fixture.fly(&["launch", "--image", "oci:img", "--no-deploy"]);
    assert_eq!(run.code, 1);
    assert_eq!(run.out, "An existing fly.toml file was found for app old\n");
    assert!(run.err.contains("yes flag must be specified when not running interactively"));
    let run = fixture.fly(&["launch", "--image", "oci:img", "--no-deploy", "--copy-config"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.contains("Name:         old                    (from your fly.toml)\n"));
}
