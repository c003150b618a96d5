//! What was acknowledged stays, what was destroyed is gone, also when things happen at once or the server dies between.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, Network, Output};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, on, on_host, private_app, wait_asleep,
};
use crate::suspend::one_machine;

#[test]
fn destroying_an_app_takes_its_addresses_and_leaves_the_shared_one_to_others() {
    on_host(|host| {
        let gone = private_app(host, "gone", AWAKE)?;
        private_app(host, "stays", AWAKE)?;
        host.fly(&["apps", "create", "empty"])?.ok()?;
        for app in ["stays", "gone", "empty"] {
            host.fly(&["ips", "allocate-v4", "--shared", "-a", app])?.ok()?;
        }
        for app in ["gone", "empty"] {
            host.fly(&["apps", "destroy", app, "--yes"])?.ok()?;
        }
        let request = b"GET / HTTP/1.1\r\nHost: stays.perch.test\r\nConnection: close\r\n\r\n";
        let shared = ([192, 0, 2, 10], 80).into();
        check_answer(&host.inside(|| perch_testkit::ask(shared, request, SOON))?, "")?;
        let ping = host.run("ping", &["-6", "-c1", "-W1", &gone])?;
        ensure!(!ping.status.success(), "{gone} answers pings after its app is gone");
        host.fly(&["apps", "destroy", "stays", "--yes"])?.ok()?;
        let refused = host.inside(|| perch_testkit::ask(shared, request, SOON));
        ensure!(refused.is_err(), "the shared address answers when nobody has it: {refused:?}");
        Ok(())
    });
}

#[test]
fn machines_that_are_made_while_their_app_is_destroyed_do_not_outlive_it() {
    on_host(|host| {
        for round in 0..3 {
            let app = format!("app-{round}");
            private_app(host, &app, AWAKE)?;
            let machines = format!("/v1/apps/{app}/machines");
            let config = host.api(&machines)?[0]["config"].to_string();
            let input = format!(r#"{{"config":{config},"skip_launch":true}}"#);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        while !done.load(Ordering::SeqCst) {
                            // Refused, or made and destroyed.
                            drop(post(host, &machines, &input));
                        }
                    });
                }
                let destroyed = host.fly(&["apps", "destroy", &app, "--yes"]);
                done.store(true, Ordering::SeqCst);
                destroyed?.ok()
            })?;
            check_no_machines(host)?;
        }
        Ok(())
    });
}

/// Nothing is left of any Machine: no directory, no process.
fn check_no_machines(host: &Host) -> Result<()> {
    let entries = std::fs::read_dir(host.data_dir().join("machines"))?;
    let left: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "directories of Machines that are gone: {left:?}");
    ensure!(host.perch_processes("shim").is_empty(), "a Machine runs whose app is gone");
    Ok(())
}

/// Sends a body to the API.
fn post(host: &Host, path: &str, body: &str) -> Result<Output> {
    let socket = host.socket().to_string_lossy().into_owned();
    let url = format!("http://perch{path}");
    let json = "Content-Type: application/json";
    host.run("curl", &["-sS", "--unix-socket", &socket, "-H", json, "-d", body, &url])
}

#[test]
fn a_lease_that_was_held_when_the_server_died_ends_in_time() {
    on_host(|host| {
        one_machine(host, SNIPPET)?;
        wait_asleep(host, "quotes")?;
        let id = host.machines("quotes")?[0].id.clone();
        let lease = format!("/v1/apps/quotes/machines/{id}/lease");
        post(host, &lease, r#"{"ttl":4}"#)?.says(&["nonce"])?;
        check_answer(&host.get(&host.flycast("quotes")?, 80, "/")?, "")?;
        host.kill_server()?;
        host.start_server()?;
        wait_asleep(host, "quotes")
    });
}

#[test]
fn a_stop_that_could_not_be_stored_is_not_acknowledged() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let data = host.data_dir().to_string_lossy().into_owned();
            std::fs::create_dir(&data)?;
            host.run("mount", &["-t", "tmpfs", "-o", "size=64m", "perch-test", &data])?.ok()?;
            host.start_server()?;
            private_app(host, "web", AWAKE)?;
            let id = host.machines("web")?[0].id.clone();
            let fill = format!("{data}/fill");
            let filled = host.run("dd", &["if=/dev/zero", &format!("of={fill}"), "bs=4k"])?;
            ensure!(!filled.status.success(), "the disk is not full");
            let stop = format!("/v1/apps/web/machines/{id}/stop");
            post(host, &stop, "{}")?.says(&["disk", "full", "could not be stored"])?;
            host.run("rm", &[&fill])?.ok()?;
            // Asked again, it is acknowledged.
            let again = post(host, &stop, "{}")?.ok()?;
            ensure!(again.contains("\"ok\":true"), "{again}");
            host.kill_server()?;
            host.start_server()?;
            let states = host.states("web")?;
            ensure!(states.contains(&"stopped".to_owned()), "the stop was undone: {states:?}");
            Ok(())
        },
    );
}

#[test]
fn a_machine_that_was_lost_while_no_server_looked_stays_asleep() {
    on(Host::start, |host| {
        private_app(host, "quotes", SNIPPET)?;
        host.kill_server()?;
        let shims = host.perch_processes("shim");
        let machine = shims.first().and_then(|shim| shim.args.last()).context("nothing runs")?;
        let id = Path::new(machine).file_name().context("a directory")?.to_string_lossy();
        let mut straggler = straggler(&id)?;
        for shim in &shims {
            shim.kill()?;
        }
        let started = host.start_server();
        straggler.kill()?;
        straggler.wait()?;
        started?;
        let machines = host.machines("quotes")?;
        let lost = machines.iter().find(|machine| machine.id == *id).context("it is gone")?;
        ensure!(lost.state == "stopped", "it is {} and nobody needs it", lost.state);
        ensure!(host.perch_processes("shim").is_empty(), "it was started");
        Ok(())
    });
}

/// A process in the groups of a Machine that takes some milliseconds to die, because of the memory that it holds
/// while nobody reads what it writes.
fn straggler(id: &str) -> Result<Child> {
    let mut dd = Command::new("dd");
    let mut child = dd.args(["if=/dev/zero", "bs=256M"]).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.as_mut().context("it has an output")?;
    output.read_exact(&mut [0]).context("its memory is filled")?;
    let groups = groups_of(Path::new("/sys/fs/cgroup"), id, 4);
    ensure!(!groups.is_empty(), "Machine {id} has no cgroup");
    for group in groups {
        std::fs::write(group.join("cgroup.procs"), child.id().to_string())
            .with_context(|| format!("joining {}", group.display()))?;
    }
    Ok(child)
}

fn groups_of(dir: &Path, id: &str, depth: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.flat_map(|entry| match depth {
        _ if entry.file_name() == id => vec![entry.path()],
        0 => Vec::new(),
        _ => groups_of(&entry.path(), id, depth - 1),
    })
    .collect()
}

#[test]
fn a_second_server_does_not_take_the_public_addresses_of_the_first() {
    on(
        || Host::start_with(Network::Open, QUICK_SLEEP),
        |host| {
            private_app(host, "web", AWAKE)?;
            host.fly(&["ips", "allocate-v4", "--shared", "-a", "web"])?.ok()?;
            let other = host.dir().join("other").to_string_lossy().into_owned();
            let second = host.run("timeout", &["20", &perch(), "server", "--data-dir", &other])?;
            second.says(&["public_v6", "shared_v4"])?;
            second.fails()?;
            host.perch(&["down", "--purge", "--data-dir", &other])?.ok()?;
            let request = b"GET / HTTP/1.1\r\nHost: web.perch.test\r\nConnection: close\r\n\r\n";
            let shared = ([192, 0, 2, 10], 80).into();
            check_answer(&host.inside(|| perch_testkit::ask(shared, request, SOON))?, "")
        },
    );
}

/// The program under test.
fn perch() -> String {
    std::env::var("PERCH_BIN").unwrap_or_default()
}
