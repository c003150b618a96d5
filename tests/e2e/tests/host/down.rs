//! `perch down --purge` leaves nothing, and SIGTERM leaves Machines running.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use perch_testkit::{Host, Network};

use crate::stage::{AWAKE, check_answer, fly_toml, on, on_host, private_app, shell_image};

#[test]
fn down_with_purge_leaves_the_host_as_it_was() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let before = host.surroundings(&host.data_dir())?;
            host.start_server()?;
            private_app(host, "web", AWAKE)?;
            let data = host.data_dir().to_string_lossy().into_owned();
            host.perch(&["down", "--data-dir", &data, "--purge"])?.ok()?;
            let after = host.surroundings(&host.data_dir())?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            ensure!(!host.data_dir().exists(), "the data are still there");
            check_no_processes(host)
        },
    );
}

#[test]
fn a_stopped_server_leaves_machines_running_and_adopts_them_again() {
    on_host(|host| {
        let address = private_app(host, "web", AWAKE)?;
        let shims = shims(host);
        ensure!(shims.len() == 2, "not two shims: {shims:?}");
        host.stop_server()?;
        ensure!(host.perch_processes("proxy").is_empty(), "the proxy outlived SIGTERM");
        ensure!(self::shims(host) == shims, "Machines did not stay");
        host.start_server()?;
        check_answer(&host.get(&address, 80, "/")?, "")?;
        ensure!(self::shims(host) == shims, "Machines were started anew");
        Ok(())
    });
}

#[test]
fn down_finds_what_runs_by_another_spelling_and_without_the_data_directory() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let before = host.surroundings(&host.data_dir())?;
            host.start_server()?;
            let spelled = host.dir().join("x/../data").to_string_lossy().into_owned();
            host.perch(&["down", "--data-dir", &spelled])?.ok()?;
            let after = host.surroundings(&host.data_dir())?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");

            host.start_server()?;
            private_app(host, "web", AWAKE)?;
            std::fs::remove_dir_all(host.data_dir())?;
            let data = host.data_dir().to_string_lossy().into_owned();
            host.perch(&["down", "--data-dir", &data])?.ok()?;
            let after = host.surroundings(&host.data_dir())?;
            ensure!(before == after, "before:\n{before}\nafter:\n{after}");
            check_no_processes(host)
        },
    );
}

#[test]
fn down_stops_machines_side_by_side_and_waits_as_long_as_they_say() {
    on_host(|host| {
        let script = "trap '' INT; while :; do busybox sleep 1; done";
        for app in ["stubborn", "obstinate"] {
            let image = shell_image(host, app, script)?;
            let text = format!("kill_timeout = '4s'\n{}", fly_toml(app, &image, ""));
            let dir = host.app_dir(app, &text)?;
            host.fly(&["apps", "create", app])?.ok()?;
            host.fly_in(&dir, &["deploy", "--ha=false"])?.ok()?;
        }
        ensure!(shims(host).len() == 2, "not two shims");
        let data = host.data_dir().to_string_lossy().into_owned();
        let began = Instant::now();
        host.perch(&["down", "--data-dir", &data])?.ok()?;
        let took = began.elapsed();
        let range = Duration::from_secs(4)..Duration::from_secs(8);
        ensure!(range.contains(&took), "two Machines with 4 s each took {took:?}");
        Ok(())
    });
}

/// The processes of the shims; their parent changes when the server ends.
fn shims(host: &Host) -> Vec<i32> {
    let mut pids: Vec<i32> = host.perch_processes("shim").iter().map(|shim| shim.pid).collect();
    pids.sort_unstable();
    pids
}

fn check_no_processes(host: &Host) -> Result<()> {
    let left: Vec<_> =
        host.processes().into_iter().filter(|process| process.state != 'Z').collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
