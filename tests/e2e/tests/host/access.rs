//! Who on the host may call private apps.

use std::fs;

use anyhow::{Result, ensure};
use perch_testkit::{Host, Network, Output};

use crate::stage::{AWAKE, on, private_app};

const STRANGER: &str = "54321";
/// What `curl` ends with then; a time-out is another code.
const COULD_NOT_CONNECT: i32 = 7;

fn config(access: &str) -> String {
    format!("host_access = \"{access}\"\n")
}

/// Calls from the host as a user and group.
fn call(host: &Host, user: &str, group: &str, address: &str) -> Result<Output> {
    let url = format!("http://[{address}]/");
    let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
    let curl = ["--clear-groups", "curl", "-sS", "-m", "20", &url];
    host.run("setpriv", &[&[user.as_str(), group.as_str()][..], &curl].concat())
}

fn check(
    host: &Host,
    address: &str,
    allowed: &[(&str, &str)],
    refused: &[(&str, &str)],
) -> Result<()> {
    for (user, group) in allowed {
        call(host, user, group, address)?.ok()?;
    }
    for (user, group) in refused {
        let output = call(host, user, group, address)?;
        ensure!(!output.status.success(), "user {user}, group {group} is let in: {output}");
        ensure!(output.status.code() == Some(COULD_NOT_CONNECT), "not refused at once: {output}");
    }
    Ok(())
}

fn restart_with(host: &mut Host, access: &str) -> Result<()> {
    host.stop_server()?;
    host.configure(&config(access));
    host.start_server()
}

/// Gives this host, and no other, a group `perch` of which `member` is one.
fn make_group(host: &Host, gid: &str, member: &str) -> Result<()> {
    let files = [
        ("/etc/group", format!("perch:x:{gid}:{member}\n")),
        ("/etc/passwd", format!("{member}:x:54322:54322::/:/bin/false\n")),
    ];
    for (path, line) in files {
        let own = host.dir().join(path.trim_start_matches("/etc/"));
        fs::write(&own, fs::read_to_string(path)? + &line)?;
        host.run("mount", &["--bind", &own.to_string_lossy(), path])?.ok()?;
    }
    Ok(())
}

#[test]
fn the_host_calls_as_the_configuration_says() {
    on(
        || Host::start_with(Network::Open, ""),
        |host| {
            let address = private_app(host, "web", AWAKE)?;
            let (root, stranger) = (("0", "0"), (STRANGER, STRANGER));
            check(host, &address, &[root, stranger], &[])?;
            restart_with(host, "root")?;
            check(host, &address, &[root], &[stranger])?;
            make_group(host, "54400", "ann")?;
            restart_with(host, "group")?;
            check(host, &address, &[root, ("54322", "54322"), (STRANGER, "54400")], &[stranger])?;
            restart_with(host, "none")?;
            check(host, &address, &[], &[root, stranger])?;
            host.fly(&["machine", "list", "-a", "web"])?.ok()?;
            restart_with(host, "all")?;
            check(host, &address, &[root, stranger], &[])
        },
    );
}

#[test]
fn a_word_that_nobody_knows_and_a_group_that_is_not_there_are_named_with_the_remedy() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let refused = |host: &mut Host, access: &str, parts: &[&str]| -> Result<()> {
                host.configure(&config(access));
                let error = host.start_server().err().map(|error| format!("{error:#}"));
                let error = error.unwrap_or_default();
                ensure!(parts.iter().all(|part| error.contains(part)), "{parts:?} not in: {error}");
                Ok(())
            };
            refused(host, "friends", &[":1:15", "friends", "`group`"])?;
            let without = host.dir().join("group");
            let text = fs::read_to_string("/etc/group")?;
            let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("perch:")).collect();
            fs::write(&without, lines.join("\n") + "\n")?;
            host.run("mount", &["--bind", &without.to_string_lossy(), "/etc/group"])?.ok()?;
            refused(host, "group", &["groupadd --system perch"])
        },
    );
}
