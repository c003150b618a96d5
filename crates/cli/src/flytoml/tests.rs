use super::*;

fn loaded(text: &str) -> Loaded {
    parse(Path::new("fly.toml"), text).expect("the text is TOML")
}

fn problems(text: &str) -> Vec<String> {
    loaded(text).problems.iter().map(ToString::to_string).collect()
}

fn machine(text: &str, group: &str) -> serde_json::Value {
    let loaded = loaded(text);
    assert!(!loaded.has_errors(), "{:?}", loaded.problems);
    serde_json::Value::Object(loaded.config.machine_config(group).expect("it converts"))
}

/// The snippet of the blueprint, with its comments.
const BLUEPRINT: &str = r#"app = "backend"

[http_service]
  # the port on which your app receives requests over the 6PN
  internal_port = 8081
  # must be false - Flycast is http-only
  force_https = false
  # Fly Proxy stops Machines based on traffic
  auto_stop_machines = "stop"
  # Fly Proxy starts Machines based on traffic
  auto_start_machines = true
  # Number of Machines to keep running in primary region
  min_machines_running = 0
  [http_service.concurrency]
    type = "requests"
    # Fly Proxy uses this limit to determine Machine excess capacity
    soft_limit = 250
"#;

#[test]
fn a_text_that_is_not_toml_names_line_and_column_and_shows_the_place() {
    let error = parse(Path::new("fly.toml"), "app = \"x\"\ninternal_port = = 1\n");
    let text = error.expect_err("two equals signs").to_string();
    assert!(text.starts_with("fly.toml:2:17: "), "{text}");
    assert!(text.contains("   2 | internal_port = = 1"), "{text}");
}

#[test]
fn a_value_of_the_wrong_type_names_place_key_and_remedy_and_keeps_the_app() {
    let loaded = loaded("app = \"x\"\n[http_service]\n  internal_port = \"8080\"\n");
    assert_eq!(loaded.config, Config { app: Some("x".into()), ..Config::default() });
    assert_eq!(
        loaded.problems[0].to_string(),
        "3:19: http_service.internal_port: must be a whole number, found a string; \
         write internal_port = 8080"
    );
}

#[test]
fn a_port_out_of_range_is_an_error_at_its_place() {
    let text = "[[services]]\ninternal_port = 80\n[[services.ports]]\nport = 99999\n";
    assert_eq!(
        problems(text),
        [
            "4:8: services[0].ports[0].port: port 99999 is out of range; write a port from 1 to 65535"
        ]
    );
}

#[test]
fn another_version_of_the_proxy_protocol_is_refused_where_it_stands() {
    let text = |version: &str| {
        format!(
            "[[services]]\ninternal_port = 1\n[[services.ports]]\nport = 9\nhandlers = \
             [\"proxy_proto\"]\nproxy_proto_options = {{ version = \"{version}\" }}\n"
        )
    };
    assert_eq!(problems(&text("v2")), Vec::<String>::new());
    let found = problems(&text("v3"));
    assert!(found[0].starts_with("6:") && found[0].contains("unknown version \"v3\""), "{found:?}");
    let port = &machine(&text("v2"), "app")["services"][0]["ports"][0];
    assert_eq!(port["proxy_proto_options"]["version"], "v2");
}

#[test]
fn a_field_of_answers_that_is_not_the_apps_to_change_is_refused_where_it_stands() {
    let found = problems(
        "[http_service]\ninternal_port = 1\n[http_service.http_options.response.headers]\n\
         X-Frame-Options = \"DENY\"\nServer = false\nContent-Length = \"1\"\nX-List = [\"a\", true]\n",
    );
    let starts: Vec<_> = found.iter().filter_map(|it| it.split_once(": ")).collect();
    let key = |name: &str| format!("http_service.http_options.response.headers.{name}: ");
    assert_eq!(starts.len(), 3, "{found:?}");
    for ((place, text), (line, name)) in
        starts.iter().zip([("5:", "Server"), ("6:", "Content-Length"), ("7:", "X-List")])
    {
        assert!(place.starts_with(line) && text.starts_with(&key(name)), "{found:?}");
    }
}

#[test]
fn an_unknown_way_to_stop_names_the_known_ones() {
    let found = problems("[http_service]\ninternal_port = 1\nauto_stop_machines = \"on\"\n");
    assert!(found[0].contains("write auto_stop_machines = \"off\", \"stop\" or \"suspend\""));
}

#[test]
fn the_extensions_are_checked_for_their_ranges_and_carried_to_the_machine() {
    let text = |value: &str| {
        format!(
            "[http_service]\ninternal_port = 1\nauto_stop_after = \"{value}\"\nstart_timeout = \"90s\""
        )
    };
    assert!(problems(&text("10ms"))[0].contains("write a duration of 100ms to 720h"));
    let service = &machine(&text("2s"), "app")["services"][0];
    assert_eq!(service["auto_stop_after"], "2s");
    assert_eq!(service["start_timeout"], "1m30s");
}

#[test]
fn the_blueprints_snippet_becomes_one_service_on_80_and_443() {
    let expected = serde_json::json!({
        "env": {"FLY_PROCESS_GROUP": "app"},
        "init": {},
        "services": [{
            "protocol": "tcp", "internal_port": 8081, "autostop": true, "autostart": true,
            "min_machines_running": 0,
            "ports": [
                {"port": 80, "handlers": ["http"]},
                {"port": 443, "handlers": ["http", "tls"]}
            ],
            "concurrency": {"type": "requests", "soft_limit": 250},
            "force_instance_key": null
        }]
    });
    assert_eq!(machine(BLUEPRINT, "app"), expected);
}

#[test]
fn unknown_keys_are_kept_apart_and_change_no_verdict() {
    let loaded =
        loaded("app = \"x\"\n[http_service]\ninternal_port = 1\nmax_machines = 3\n[cron]\n");
    assert_eq!(loaded.unknown, ["http_service.max_machines", "cron"]);
    assert_eq!(loaded.verdict(), Verdict::Accept);
}

#[test]
fn what_is_written_as_toml_reads_back_the_same() {
    let loaded = loaded(BLUEPRINT);
    let written = to_toml(&loaded.config);
    assert!(written.contains("  force_https = false\n"), "{written}");
    assert!(written.contains("  auto_stop_machines = 'stop'\n"), "{written}");
    let again = parse(Path::new("fly.toml"), &written).expect("our own text is TOML");
    assert_eq!(again.config, loaded.config);
}

#[test]
fn legacy_spellings_are_understood() {
    let text = "kill_timeout = 5\nprocesses = []\n[env]\nN = 2\n[services]\ninternal_port = \"80\"\n\
                concurrency = \"20,25\"\n[services.ports]\nport = \"80\"\nhandlers = [\"http\"]\n\
                [[services.tcp_checks]]\ninterval = 10000\n[mount]\nsource = \"d\"\ndestination = \"/d\"\n";
    let machine = machine(text, "app");
    assert_eq!(machine["env"]["N"], "2");
    assert_eq!(machine["stop_config"]["timeout"], "5s");
    let service = &machine["services"][0];
    assert_eq!(service["internal_port"], 80);
    assert_eq!(service["concurrency"]["hard_limit"], 25);
    assert_eq!(service["checks"][0]["interval"], "10s");
    assert_eq!(machine["mounts"][0]["path"], "/d");
}

#[test]
fn a_service_without_processes_is_refused_when_groups_exist() {
    let found = problems("[processes]\nweb = \"a\"\n[http_service]\ninternal_port = 1\n");
    assert!(found[0].contains("write processes = [\"web\"]"), "{found:?}");
}

#[test]
fn json_is_read_like_toml() {
    let path = Path::new("fly.json");
    let loaded = parse(path, r#"{"app": "x", "http_service": {"internal_port": 1}}"#);
    assert_eq!(loaded.expect("it is JSON").config.app.as_deref(), Some("x"));
    let error = parse(path, "{\n \"app\": }").expect_err("it is not");
    assert!(error.to_string().starts_with("fly.json:2:9: "), "{error}");
}

/// What a file becomes, as JSON.
fn normal(text: &str) -> serde_json::Value {
    let loaded = loaded(text);
    assert_ne!(loaded.verdict(), Verdict::RejectShape, "{text}: {:?}", loaded.problems);
    serde_json::Value::Object(to_json(&loaded.config))
}

fn check_normal(section: &str, cases: &[(&str, serde_json::Value)]) {
    for (text, expected) in cases {
        assert_eq!(normal(text)[section], *expected, "{text}");
    }
}

/// Each of these texts is judged so.
fn check_verdict(verdict: Verdict, texts: &[&str]) {
    for text in texts {
        let loaded = loaded(text);
        assert_eq!(loaded.verdict(), verdict, "{text}: {:?}", loaded.problems);
    }
}

/// Compat section 3.
#[test]
fn toml_is_read_as_flyctls_parser_reads_it() {
    for text in [
        "a = 1\na = 2",
        "[a]\n[a]",
        "processes = []\n[processes]",
        "a = {b = 1}\n[a.c]",
        "a = 1\rb = 2",
        "a = 1 # \u{7f}",
        "a = 01",
        "a = 9223372036854775808",
        "é = 1",
        "a = b",
        "a = “b”",
        "a = \"b",
        "a = \"\\q\"",
        "a: b",
        "a = 1;",
        "<<<<<<< HEAD",
        "app = {{ name }}",
        "\u{feff}a = 1",
        "a = {\nb = 1}",
        "a = {b = 1,}",
        "a = \"\\x41\"",
        "a = 07:32",
    ] {
        assert!(parse(Path::new("fly.toml"), text).is_err(), "{text}");
    }
    for text in [
        "app = 'x'\r\n\tprimary_region = \"y\"",
        "console_command = \"\"\"a \\\n  b\"\"\"",
        "http_service.internal_port = 8080",
        "\"app\" = \"\\u0041\\e\"",
        "[[services]]\nports = [{ port = 80, handlers = [\"http\",] }]",
        "",
        "# é\napp = \"é\"",
    ] {
        assert!(parse(Path::new("fly.toml"), text).is_ok(), "{text}");
    }
    let error = parse_bytes(Path::new("fly.toml"), b"a = 1\n# \xff").expect_err("it is no text");
    assert!(error.to_string().starts_with("fly.toml:2:3: is not valid UTF-8"), "{error}");
}

/// Compat section 4, services.
#[test]
fn old_forms_of_services_are_understood() {
    use serde_json::json;
    let service = |text: &str| format!("[[services]]\nprotocol = \"tcp\"\n{text}");
    let limits = json!([{"protocol": "tcp",
        "concurrency": {"type": "requests", "soft_limit": 20, "hard_limit": 25}}]);
    let port = |port: i64| json!([{"protocol": "tcp", "ports": [{"port": port}]}]);
    let check = |key: &str, text: &str| json!([{"protocol": "tcp", "http_checks": [{key: text}]}]);
    let checks = |text: &str| service(&format!("[[services.http_checks]]\n{text}"));
    check_normal(
        "services",
        &[
            ("[services]\nprotocol = \"tcp\"", json!([{"protocol": "tcp"}])),
            ("[[services]]", json!(null)),
            ("[services]", json!(null)),
            ("[[services.ports]]\nport = 80", json!([{"ports": [{"port": 80}]}])),
            (&service("concurrency = \"20,25\""), limits),
            (&service("[services.ports]\nport = \"80\""), port(80)),
            (&service("ports = [{ port = 80.9 }]"), port(80)),
            (&service("internal_port = \"+5\""), json!([{"protocol": "tcp", "internal_port": 5}])),
            (&service("tcp_checks = []"), json!([{"protocol": "tcp"}])),
            (&checks("interval = 10000"), check("interval", "10s")),
            (&checks("interval = 1500.9"), check("interval", "1.5s")),
            (&checks("interval = \"\"\ntimeout = true\npath = \"/\""), check("path", "/")),
            (&checks("headers = []\npath = \"/\""), check("path", "/")),
            (
                &checks("headers = [{ name = \"A\", value = 1 }, { name = \"B\" }]"),
                json!([{"protocol": "tcp", "http_checks": [{"headers": {"A": "1", "B": ""}}]}]),
            ),
            (
                &service("[[services.tcp_checks]]\nmethod = \"x\"\nrestart_limit = 0"),
                json!([{"protocol": "tcp", "tcp_checks": [{}]}]),
            ),
        ],
    );
}

/// Compat section 4, the other sections.
// long: a table of forms and what becomes of them.
#[test]
fn old_forms_of_the_other_sections_are_understood() {
    use serde_json::json;
    check_normal(
        "env",
        &[
            (
                "[env]\nA = 1_000\nB = true\nC = 1e21",
                json!({"A": "1000", "B": "true", "C": "1e+21"}),
            ),
            ("[env]\nA = [1, 2]\nB = { a = 1 }", json!({"A": "[1 2]", "B": "map[a:1]"})),
            ("[[env]]\nA = 1\n[[env]]\nA = 2\nB = 3", json!({"A": "2", "B": "3"})),
        ],
    );
    check_normal(
        "processes",
        &[
            (
                "[[processes]]\nname = \"a\"\ncommand = \"x\"\n[[processes]]\nname = \"b\"\ncmd = \"y\"\n\
          [[processes]]\ncommand = \"z\"",
                json!({"a": "x", "b": ""}),
            ),
            ("processes = []", json!(null)),
            ("processes = [\"a\"]", json!(null)),
            ("[processes]", json!(null)),
        ],
    );
    check_normal(
        "kill_timeout",
        &[
            ("kill_timeout = 20", json!("20s")),
            ("kill_timeout = 1.5", json!("1s")),
            ("kill_timeout = \"-1h2m3.5s\"", json!("-1h2m3.5s")),
            ("kill_timeout = \"\"", json!(null)),
            ("kill_timeout = true", json!(null)),
            ("[experimental]\nkill_timeout = 3", json!("3s")),
            ("kill_timeout = 5\n[experimental]\nkill_timeout = 3", json!("5s")),
        ],
    );
    check_normal(
        "experimental",
        &[
            ("[experimental]", json!(null)),
            ("[experimental]\ncmd = \"a b\"", json!({"cmd": ["a b"], "attached": {"secrets": {}}})),
        ],
    );
    check_normal(
        "metrics",
        &[
            (
                "[experimental]\nmetrics_port = 1\nmetrics_path = \"/m\"",
                json!([{"port": 1, "path": "/m"}]),
            ),
            ("[metric]\nport = 1\n[[metrics]]\nport = 2", json!([{"port": 1}, {"port": 2}])),
            (
                "[metric]\nport = 1\n[experimental]\nmetrics_port = 2",
                json!([{"port": 1}, {"port": 2}]),
            ),
        ],
    );
    check_normal(
        "vm",
        &[
            (
                "[vm]\nmemory = 512\n[[compute]]\ncpus = 1\n[[computes]]\ncpus = 2",
                json!([{"cpus": 1}, {"cpus": 2}, {"memory": "512"}]),
            ),
            ("[[VM]]\ncpus = 1", json!(null)),
        ],
    );
    check_normal(
        "mounts",
        &[(
            "[mount]\nsource = \"a\"\n[[mounts]]\nsource = \"b\"\ninitial_size = 200",
            json!([{"source": "a"}, {"source": "b", "initial_size": "200"}]),
        )],
    );
    check_normal(
        "checks",
        &[
            ("[[checks]]\nname = \"a\"\nport = 1\nheaders = []", json!({"a": {"port": 1}})),
            ("[checks]", json!(null)),
            ("checks = []", json!(null)),
        ],
    );
    check_normal(
        "build",
        &[
            ("[build]", json!(null)),
            ("[build]\nbuild_target = \"x\"", json!({"build-target": "x"})),
        ],
    );
    check_normal(
        "http_service",
        &[
            ("[HTTP_Service]\nInternal_Port = 8080.0", json!({"internal_port": 8080})),
            ("[http_service]\nauto_stop_machines = false", json!({"auto_stop_machines": false})),
            ("[http_service]\nauto_stop_machines = \"stop\"", json!({"auto_stop_machines": true})),
            (
                "[http_service]\nauto_stop_machines = \"suspend\"",
                json!({"auto_stop_machines": "suspend"}),
            ),
            (
                "[[x]]\n[http_service.http_options]\nxyz = 1\nresponse.headers = { A = false, B = 1.0 }",
                json!({"http_options": {"response": {"headers": {"A": false, "B": 1}}}}),
            ),
        ],
    );
    check_normal("deploy", &[("[deploy]\nwait_timeout = 300", json!({"wait_timeout": "300ns"}))]);
}

/// Compat sections 4 (second half), 5 and 6.
#[test]
fn looseness_in_other_places_is_an_error_of_shape() {
    check_verdict(
        Verdict::RejectShape,
        &[
            "app = 1",
            "build.args.A = 1",
            "swap_size_mb = \"1\"",
            "swap_size_mb = 1.5",
            "swap_size_mb = inf",
            "unknown = nan",
            "env = 1",
            "services = 1",
            "processes = 1",
            "build = \"x\"",
            "[[build]]",
            "[[experimental]]",
            "experimental.cmd = [1]",
            "[checks]\ntype = \"tcp\"",
            "[[checks]]\nport = 1",
            "[[services]]\nconcurrency = 20",
            "[[services]]\nconcurrency = \"20, 25\"",
            "[[services]]\ninternal_port = \"x\"",
            "[[services]]\nports = [1]",
            "[[services]]\nports = [{ port = true }]",
            "[[services]]\n[[services.http_checks]]\nheaders = \"x\"",
            "[[services]]\n[[services.http_checks]]\nheaders = [{ value = \"x\" }]",
            "[http_service]\ninternal_port = \"8080\"",
            "[http_service]\nconcurrency = \"20,25\"",
            "[http_service]\nforce_https = \"true\"",
            "[http_service]\nauto_stop_machines = \"Stop\"",
            "[http_service]\nauto_stop_machines = 1",
            "[http_service]\nprocesses = \"app\"",
            "[http_service.http_options]\nidle_timeout = -1",
            "[[http_service.checks]]\ninterval = \"\"",
            "[[http_service.checks]]\ninterval = \"1d\"",
            "[[http_service.checks]]\nheaders = { A = 1 }",
            "[[http_service.checks]]\nheaders = [{ name = \"A\" }]",
            "[restart]\npolicy = \"always\"",
            "[files]\nguest_path = \"/x\"",
            "[statics]\nguest_path = \"/x\"",
            "[machine_checks]\ncommand = []",
            "[deploy]\nmax_unavailable = \"30%\"",
            "[deploy.strategy]\nrolling = true",
            "[deploy]\nrelease_command_vm = [{ size = \"x\" }]",
            "[deploy.release_command_vm]\nmemory = 512",
            "[[vm]]\npersist_rootfs = \"sometimes\"",
            "[[vm]]\nkernel_args = \"quiet\"",
            "[[mounts]]\nauto_extend_size_limit = 5",
        ],
    );
}

/// Compat section 7, and what section 5 says nobody checks here.
#[test]
fn validation_refuses_warns_and_passes_over_what_flyctl_does() {
    check_verdict(
        Verdict::RejectValidate,
        &[
            "[deploy]\nrelease_command = \"a 'b\"",
            "console_command = \"a \\\\\"",
            "processes = { app = \"a \\\"b\" }",
            "[deploy]\nstrategy = \"Rolling\"",
            "[deploy]\nstrategy = \"canary\"\n[mount]\nsource = \"a\"",
            "[checks.a]\nport = 1",
            "[checks.a]\ntype = \"tcp\"\nport = 1\ninterval = \"1999ms\"",
            "[checks.a]\ntype = \"tcp\"\nport = 1\ntimeout = \"61s\"",
            "[processes]\na = \"\"\n[http_service]\ninternal_port = 1",
            "[http_service]\nprocesses = [\"web\"]",
            "[mount]\ninitial_size = \"15Mb\"",
            "[mount]\ninitial_size = \"x\"",
            "[mount]\nsnapshot_retention = 61",
            "[mount]\nauto_extend_size_threshold = 80",
            "[mount]\nauto_extend_size_threshold = 49\nauto_extend_size_increment = \"1gb\"",
            "[mount]\nauto_extend_size_threshold = 50\nauto_extend_size_increment = \"101gb\"",
            "[[restart]]\npolicy = \"no\"",
            "[[restart]]\nretries = 1",
            "[[restart]]\npolicy = \"always\"\nprocesses = [\"web\"]",
            "[build]\ncompression = \"lz4\"",
            "[build]\ncompression_level = 10",
        ],
    );
    check_verdict(
        Verdict::AcceptWarn,
        &[
            "[build]\nimage = \"a\"\ndockerfile = \"b\"",
            "[[services]]\ninternal_port = 1",
            "[[http_service.checks]]\ninterval = 10000",
            "[[http_service.checks]]\ntimeout = \"61s\"",
            "[[http_service.checks]]\ngrace_period = \"1ms\"",
        ],
    );
    check_verdict(
        Verdict::Accept,
        &[
            "[deploy]\nstrategy = \"\"",
            "[[http_service.checks]]\ngrace_period = \"0s\"",
            "[mount]\nauto_extend_size_threshold = 0",
            "[[services]]\nprotocol = \"x\"\nports = [{ port = 99999, handlers = [\"x\"] }]",
            "[http_service.concurrency]\ntype = \"x\"\nsoft_limit = 9\nhard_limit = 1",
            "kill_signal = \"x\"",
            "[[mounts]]\nsource = \"a\"\n[[mounts]]\nsource = \"b\"",
            "[[files]]\nlocal_path = \"/nowhere\"",
        ],
    );
    // Section 8.
    check_verdict(
        Verdict::AcceptThenDeployFails,
        &[
            "[[vm]]\nsize = \"dedicated-cpu-1x\"",
            "[[vm]]\nmemory = \"0\"",
            "[checks.a]\ntype = \"tcp\"",
            "machine_config = \"{\"",
            "build.compose.file = \"nowhere.yaml\"",
        ],
    );
}

/// Compat section 10.
#[test]
fn groups_get_what_flyctl_gives_them() {
    let text = "[processes]\nweb = \"w\"\nback = \"# none\"\n\
        [experimental]\ncmd = [\"c\"]\nentrypoint = [\"e\"]\n\
        [[vm]]\nmemory = \"1gb\"\n[[vm]]\ncpus = 3\n\
        [[vm]]\ncpus = 4\nprocesses = [\"web\"]\n[[vm]]\ncpus = 5\nmemory_mb = 7\nprocesses = [\"web\"]\n\
        [[restart]]\npolicy = \"never\"\n[[restart]]\npolicy = \"always\"\nretries = 2\n\
        [[metrics]]\nport = 1\n[[metrics]]\nport = 2\n[[statics]]\nguest_path = \"/s\"\n";
    let (back, web) = (machine(text, "back"), machine(text, "web"));
    assert_eq!(back["init"], serde_json::json!({"entrypoint": ["e"]}));
    assert_eq!(web["init"], serde_json::json!({"entrypoint": ["e"], "cmd": ["w"]}));
    assert_eq!(back["guest"]["memory_mb"], 1024);
    assert_eq!((&web["guest"]["cpus"], &web["guest"]["memory_mb"]), (&5.into(), &7.into()));
    assert_eq!(back["restart"], serde_json::json!({"policy": "always", "max_retries": 2}));
    assert_eq!((&back["metrics"]["port"], &web["metrics"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(web["statics"][0]["guest_path"], "/s");
}

/// Compat section 4: the numbers of YAML durations are dropped, those of JSON are floats.
#[test]
fn numbers_mean_what_each_languages_parser_makes_of_them() {
    let read = |name: &str, text: &str| {
        to_json(&parse(Path::new(name), text).expect("it is readable").config)
    };
    assert!(!read("fly.yaml", "kill_timeout: 5").contains_key("kill_timeout"));
    assert_eq!(read("fly.json", "{\"kill_timeout\": 5}")["kill_timeout"], "5s");
    assert_eq!(read("fly.json", "{\"env\": {\"A\": 1000000}}")["env"]["A"], "1e+06");
    assert_eq!(read("fly.yaml", "env: {A: 1000000}")["env"]["A"], "1000000");
    let empty = parse(Path::new("fly.yaml"), "env:\napp: x").expect("it is YAML");
    assert_eq!((empty.verdict(), empty.config.app.as_deref()), (Verdict::RejectShape, Some("x")));
}
