//! `perch down --purge` leaves nothing, and SIGTERM leaves Machines running.

use anyhow::{Result, ensure};
use perch_testkit::{Host, Network};

use crate::stage::{AWAKE, check_answer, on, on_host, private_app};

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
