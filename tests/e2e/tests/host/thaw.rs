//! The proxy wakes what is frozen by itself, and the server believes it.

use anyhow::{Context, Result, ensure};
use perch_testkit::{Host, wait_until};
use rustix::process::{Pid, Signal};

use crate::stage::{SOON, check_answer, machine_processes, on_host};
use crate::suspend::{SUSPENDS, one_machine};

#[test]
fn a_frozen_machine_is_woken_without_a_server_and_the_next_one_believes_it() {
    on_host(|host| {
        let address = asleep(host)?;
        host.kill_server()?;
        let woken = host.get(&address, 80, "/")?;
        check_answer(&woken, "Request 1.")?;
        let how = woken.header("perch-wake").context("no Perch-Wake")?;
        ensure!(how.starts_with("thaw;dur="), "{how}");
        host.start_server()?;
        let machine = host.machines("quotes")?.pop().context("no Machine")?;
        ensure!(machine.events("resume") == 1, "no resume among its events: {machine:?}");
        host.wait_all("quotes", "suspended", SOON)?;

        // Killed before it can say what it did.
        host.kill_server()?;
        check_answer(&host.get(&address, 80, "/")?, "Request 2.")?;
        host.kill_proxy()?;
        host.start_server()?;
        check_answer(&host.get(&address, 80, "/")?, "Request 3.")?;
        host.wait_all("quotes", "suspended", SOON)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 4.")
    });
}

#[test]
fn what_died_frozen_is_started_when_there_is_a_server_again() {
    on_host(|host| {
        let address = asleep(host)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        host.wait_all("quotes", "suspended", SOON)?;
        let id = host.machines("quotes")?.pop().context("no Machine")?.id;
        host.kill_server()?;
        // Its init takes the rest along.
        let init = machine_processes(host, &id).iter().map(|process| process.pid).min();
        let init = init.and_then(Pid::from_raw).context("nothing of it runs")?;
        rustix::process::kill_process(init, Signal::KILL)?;
        wait_until("the end of the run", SOON, || {
            Ok(machine_processes(host, &id).is_empty().then_some(()))
        })?;
        // Nobody can start it now; the next server finds its end, and is asked for a new run.
        host.start_server()?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.").context("not a new run")
    });
}

#[test]
fn the_freezer_of_an_earlier_run_is_not_used() {
    on_host(|host| {
        let address = asleep(host)?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.")?;
        let id = host.machines("quotes")?.pop().context("no Machine")?.id;
        host.fly(&["machine", "stop", &id, "-w", "30s"])?.ok()?;
        check_answer(&host.get(&address, 80, "/")?, "Request 1.").context("no new run")?;
        host.wait_all("quotes", "suspended", SOON)?;
        host.kill_server()?;
        check_answer(&host.get(&address, 80, "/")?, "Request 2.").context("not its new run")
    });
}

/// The example app with one Machine, frozen before its first request; its Flycast address.
fn asleep(host: &Host) -> Result<String> {
    let address = one_machine(host, SUSPENDS)?;
    host.wait_all("quotes", "suspended", SOON)?;
    Ok(address)
}
