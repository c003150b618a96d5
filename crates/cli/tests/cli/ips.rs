//! `ips`: flyctl-cli 3.2 and 6, but for the blueprint's table.

use crate::fixture::Fixture;
use serde_json::{Value, json};

fn created() -> Fixture {
    let fixture = Fixture::new();
    assert_eq!(fixture.fly(&["apps", "create", "web"]).code, 0);
    fixture
}

#[test]
fn list_has_a_header_when_there_is_nothing_and_json_is_an_empty_array() {
    let fixture = created();
    let run = fixture.fly(&["ips", "list", "-a", "web"]);
    assert_eq!((run.code, run.out.as_str()), (0, "VERSION\tIP\tTYPE\tREGION\tCREATED AT\n"));
    assert_eq!(fixture.fly(&["ip", "ls", "-a", "web", "--json"]).out, "[]\n");
}

#[test]
fn json_has_gos_field_names_in_their_order() {
    let fixture = created();
    fixture.fly(&["ips", "allocate-v6", "--private", "-a", "web"]);
    let expected = r#"[
    {
        "ID": "fdaa::1",
        "Address": "fdaa::1",
        "Type": "private_v6",
        "Region": "global",
        "CreatedAt": "2026-01-01T00:00:00Z",
        "ServiceName": "",
        "Network": null
    }
]
"#;
    assert_eq!(fixture.fly(&["ips", "list", "-a", "web", "-j"]).out, expected);
    assert_eq!(fixture.fly_in(&[("FLY_JSON", "1")], &["ips", "list", "-a", "web"]).out, expected);
}

#[test]
fn allocation_prints_the_one_new_row() {
    let fixture = created();
    let v6 = fixture.fly(&["ips", "allocate-v6", "-a", "web", "-r", "lcl"]);
    let lines: Vec<_> = v6.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", v6.out);
    assert!(
        lines[1].starts_with("v6     \t2001:db8::2\tpublic (dedicated)\tglobal\t"),
        "{}",
        v6.out
    );
    let shared = fixture.fly(&["ips", "allocate-v4", "--shared", "-a", "web"]);
    assert_eq!(
        shared.out,
        " VERSION │ IP         │ TYPE   │ REGION \n v4      │ 192.0.2.10 │ shared │ global \n\n"
    );
    // A dedicated one costs nothing here, so nobody is asked.
    assert_eq!(fixture.fly(&["ips", "allocate-v4", "-a", "web"]).code, 0);
}

#[test]
fn the_recommended_addresses_need_a_person() {
    let fixture = created();
    let run = fixture.fly(&["ips", "allocate", "-a", "web"]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.out,
        "No services are currently deployed on this app.\n\
         IP addresses are only needed if you have services with external ports configured.\n"
    );
    let error = "Error: use fly ips allocate-v4 or fly ips allocate-v6 in non-interactive mode\n";
    assert!(run.err.starts_with(error), "{}", run.err);
    assert_eq!(fixture.server().addresses("web"), Vec::<String>::new());

    let fixture = Fixture::deployed();
    let run = fixture.fly(&["ips", "allocate"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert!(run.out.starts_with("Your app already has the following IP addresses:\n\n"));
    assert!(
        run.out.ends_with(
            "Your app has all necessary IP addresses.\nTo allocate more addresses, run:\n   \
             fly ips allocate-v4 (dedicated IPv4)\n   fly ips allocate-v6 (dedicated IPv6)\n   \
             fly ips allocate-v6 --private (private IPv6)\n"
        ),
        "{}",
        run.out
    );
}

#[test]
fn release_says_each_address_as_it_was_typed_and_refuses_what_is_none() {
    let fixture = Fixture::deployed();
    let run = fixture.fly(&["ips", "release", "2001:DB8:0::2"]);
    assert_eq!(run.out, "Released 2001:DB8:0::2 from web\n", "{}", run.err);
    let run = fixture.fly(&["ips", "release", "x"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("Error: Invalid IP address: 'x'\n"), "{}", run.err);
    let run = fixture.fly(&["ips", "release"]);
    assert_eq!(run.code, 1);
    let error = "Error: requires at least 1 arg(s), only received 0\nUsage: fly ips release ";
    assert!(run.err.starts_with(error), "{}", run.err);
}

#[test]
fn without_an_app_flyctls_words_say_where_one_is_named() {
    let run = Fixture::new().fly(&["ips", "list"]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.err,
        "Error: the config for your app is missing an app name, add an app field to the fly.toml file \
         or specify with the -a flag\n"
    );
    let fixture = created();
    assert_eq!(fixture.fly_in(&[("FLY_APP", "web")], &["ips", "list"]).code, 0);
    let run = fixture.fly(&["ips", "list", "-a", "nobody"]);
    assert!(run.err.is_empty() || run.err.contains("nobody"), "{}", run.err);
    let run = fixture.fly(&["ips", "list", "-a", "web", "-c", "gone.toml"]);
    assert_eq!(run.code, 1, "a file that is named has to be there");
    assert!(run.err.contains("gone.toml"), "{}", run.err);
}

#[test]
fn the_network_of_a_private_address_is_told() {
    let fixture = created();
    fixture.fly(&["ips", "allocate-v6", "--private", "-a", "web"]);
    fixture.server().edit_address("web", |ip| {
        ip["network"] = json!({"name": "default", "organization": "personal"});
    });
    let run = fixture.fly(&["ips", "list", "-a", "web", "--json"]);
    let list: Value = serde_json::from_str(&run.out).expect("it is JSON");
    let network = json!({"Name": "default", "Organization": {"Slug": "personal"}});
    assert_eq!(list[0]["Network"], network);
}
